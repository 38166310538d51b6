"""Randomness without state: every draw is a pure function of (seed, purpose, sample id, step).

A `Keys` holds one 64-bit key per sample. Folding a word or a number into it gives new keys; asking for a draw hashes
each key with a running counter. Nothing is consumed, so a sample draws the same numbers alone or in any batch, before
and after a resume, on any device and under any number of workers. The hash is the finaliser of SplitMix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), in wrapping int64 arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ALL = 2**64 - 1
_PIECE = 2**15  # numbers, 256 KiB


def _signed(bits: int) -> int:
    """Return the signed 64-bit integer of the same bits."""
    return bits - 2**64 if bits >= 2**63 else bits


_GOLDEN, _MIX_1, _MIX_2 = (_signed(bits) for bits in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift_right(bits: Tensor, by: int) -> Tensor:
    # int64's >> keeps the sign; the hash needs zeros shifted in.
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _hash(bits: Tensor) -> Tensor:
    bits = bits + _GOLDEN  # a new tensor, in which the rest is done
    # A processor does it piece by piece: draws of images are larger than its caches.
    for piece in bits.view(-1).split(_PIECE if bits.device.type == "cpu" else bits.numel() or 1):
        piece.bitwise_xor_(_shift_right(piece, 30)).mul_(_MIX_1)
        piece.bitwise_xor_(_shift_right(piece, 27)).mul_(_MIX_2)
        piece.bitwise_xor_(_shift_right(piece, 31))
    return bits


def _hash_word(part: str | int) -> int:
    """Hash a word (FNV-1a first) or a number, as `_hash` does but in Python, so that nothing is sent to a device."""
    if isinstance(part, str):
        bits = 0xCBF29CE484222325
        for byte in part.encode():
            bits = ((bits ^ byte) * 0x100000001B3) & _ALL
    else:
        bits = part & _ALL
    bits = (bits + _GOLDEN) & _ALL
    bits = ((bits ^ bits >> 30) * _MIX_1) & _ALL
    bits = ((bits ^ bits >> 27) * _MIX_2) & _ALL
    return _signed(bits ^ bits >> 31)


@dataclass(frozen=True)
class Keys:
    """One random key per sample: int64 `[B]`. Immutable; draws take nothing away."""

    values: Int[Tensor, " batch"]

    def fold(self, *parts: str | int) -> Keys:
        """Return the keys of a purpose or a step: `keys.fold("mask", step)`. The order of parts matters."""
        values = self.values
        for part in parts:
            values = _hash(values ^ _hash_word(part))
        return Keys(values)

    def fold_each(self, numbers: Int[Tensor, " batch"]) -> Keys:
        """Fold a different number into each sample's key."""
        return Keys(_hash(self.values ^ _hash(numbers.to(self.values))))

    def bits(self, *shape: int) -> Int[Tensor, batch * shape]:
        """Draw uniform 64-bit integers (signed), one array of `shape` per sample."""
        counter = torch.arange(math.prod(shape), device=self.values.device)
        return _hash(self.values[:, None] + counter * _GOLDEN).reshape(-1, *shape)

    def uniform(self, *shape: int) -> Float[Tensor, batch * shape]:
        """Draw float32 numbers in [0, 1), one array of `shape` per sample."""
        return _shift_right(self.bits(*shape), 40).to(torch.float32).mul_(2.0**-24)

    def normal(self, *shape: int) -> Float[Tensor, batch * shape]:
        """Draw standard normal float32 numbers, one array of `shape` per sample (Box and Muller 1958)."""
        radius = (-2 * torch.log1p(-self.fold("radius").uniform(*shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.fold("angle").uniform(*shape))

    def signs(self, *shape: int) -> Float[Tensor, batch * shape]:
        """Draw -1 or 1 with equal chance, one array of `shape` per sample."""
        return 2 * (self.uniform(*shape) < 0.5).float() - 1

    def repeat(self, times: int) -> Keys:
        """Return keys for `x.repeat(times, 1, 1, 1)`: copy k of a sample gets its key folded with k."""
        return Keys(torch.cat([self.fold("copy", k).values for k in range(times)]))

    def shared(self) -> Keys:
        """Return the one key that is the same for every sample and call: what is drawn from it is no secret."""
        return Keys(torch.zeros_like(self.values))

    def to(self, device: torch.device | str) -> Keys:
        """Return the same keys on another device."""
        return Keys(self.values.to(device))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | Tensor) -> Keys:
        return Keys(self.values[index])


def keys(seed: int, purpose: str, ids: Int[Tensor, " batch"], step: int = 0) -> Keys:
    """Make the keys of a purpose at a step for the samples with these ids.

    Args:
        seed: the run's seed.
        purpose: what the draws are for ("mask", "attack", …); different purposes are independent.
        ids: int64 `[B]`, an id per sample that does not depend on its place in a batch.
        step: optimiser or iteration step.
    """
    return Keys(ids.to(torch.int64)).fold(seed, purpose, step)


def content_ids(x: Float[Tensor, "batch channels height width"]) -> Int[Tensor, " batch"]:
    """Derive an id per image from its bits, for callers that have none: the same image gets the same id anywhere."""
    bits = x.detach().to(torch.float32).contiguous().view(torch.int32).flatten(1).to(torch.int64)
    place = torch.arange(bits.shape[1], device=x.device)
    return _hash((_hash(bits + place * _GOLDEN)).sum(1))


def permutation(seed: int, epoch: int, n: int) -> Int[Tensor, " n"]:
    """Return the order in which epoch `epoch` visits `n` samples: a pure function of its arguments."""
    return keys(seed, "order", torch.arange(n), epoch).bits(1)[:, 0].argsort()
