"""Batches of augmented images, on the device. What step t yields is a pure function of (seed, t): nothing to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from robustmim.config import DataConfig
from robustmim.data.sources import Source
from robustmim.errors import RecipeError
from robustmim.rng import Keys, keys, permutation
from robustmim.types import Images, Labels


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] with labels and ids, on the device.

    `ids` name the samples for random draws: a sample's draws depend on its id, the seed and the epoch, not on its batch.
    """

    images: Images
    labels: Labels
    ids: Int[Tensor, " batch"]


@runtime_checkable
class Batches(Protocol):
    """A stream of training batches, indexed by step."""

    steps_per_epoch: int
    replays: int
    """Steps in a row that see the same batch. What a step leaves for the next may matter to it, so runs are only saved
    between batches."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (this process's share of it)."""


def random_crop(x: UInt8[Tensor, "b c h w"], keys: Keys, size: int, padding: int) -> UInt8[Tensor, "b c s s"]:
    """Cut a square of `size` at a random place out of each image, reflected by `padding` at its borders."""
    if padding:
        x = F.pad(x.to(torch.float32), (padding,) * 4, mode="reflect").to(torch.uint8)
    room = torch.tensor([x.shape[2] - size + 1, x.shape[3] - size + 1], device=x.device)
    corner = (keys.fold("crop").uniform(2) * room).long()
    line = torch.arange(size, device=x.device)
    rows, columns = corner[:, :1] + line, corner[:, 1:] + line
    sample = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return x[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def flip(x: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right."""
    return torch.where(chosen.view(-1, 1, 1, 1), x.flip(3), x)


def cutout(x: Images, keys: Keys, side: int) -> Images:
    """Set a random square of each image to mid grey (DeVries and Taylor 2017); it may reach over the border."""
    height, width = x.shape[2:]
    middle = keys.fold("cutout").uniform(2) * torch.tensor([height, width], device=x.device)
    row = (torch.arange(height, device=x.device) + 0.5 - middle[:, :1]).abs() <= side / 2
    column = (torch.arange(width, device=x.device) + 0.5 - middle[:, 1:]).abs() <= side / 2
    return torch.where((row[:, :, None] & column[:, None, :])[:, None], torch.full_like(x, 0.5), x)


class Loader:
    """Shuffled, augmented batches of one data set.

    Args:
        source: the images, uint8.
        config: augmentation.
        batch_size: over all processes; the last, incomplete batch of an epoch is dropped.
        seed: of order and augmentation.
        device: where batches are made.
        rank, world: this process and their number; each gets an equal slice of every batch.
    """

    replays = 1

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise RecipeError(f"a batch of {batch_size} cannot be split over {world} processes; choose a multiple")
        if len(source) < batch_size:
            raise RecipeError(f"{source.name} has {len(source)} images, fewer than one batch of {batch_size}")
        self.source, self.config, self.seed, self.device = source, config, seed, device
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.steps_per_epoch = len(source) // batch_size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, step: int) -> Batch:
        """Return this process's share of the batch of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self.seed, epoch, len(self.source)))
        share = self.batch_size // self.world
        first = place * self.batch_size + self.rank * share
        indices = self._order[1][first : first + share]
        images = self.source.fetch(indices).to(self.device)
        ids = self.source.ids[indices].to(self.device)
        drawn = keys(self.seed, "augment", ids, epoch)
        config = self.config
        if config.padding or config.crop:
            images = random_crop(images, drawn, config.crop or images.shape[-1], config.padding)
        if config.flip == "random":
            images = flip(images, drawn.fold("flip").uniform(1)[:, 0] < 0.5)
        elif config.flip == "alternate":
            # Each image begins on a random side and changes it every epoch: no side is seen twice in a row.
            side = keys(self.seed, "side", ids).uniform(1)[:, 0] < 0.5
            images = flip(images, side ^ bool(epoch % 2))
        result = images.to(torch.float32) / 255
        if config.cutout:
            result = cutout(result, drawn, config.cutout)
        return Batch(result, self.source.labels[indices].to(self.device), ids)


class Mixture:
    """Several loaders taken in turns: each step's batch comes from one of them, by a fixed cycle of their shares.

    An epoch is an epoch of the first.
    """

    replays = 1

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders
        self._cycle = [number for number, loader in enumerate(loaders) for _ in range(loader.config.share)]
        self.steps_per_epoch = loaders[0].steps_per_epoch * len(self._cycle) // self._cycle.count(0)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        turn, place = divmod(step, len(self._cycle))
        number = self._cycle[place]
        own_step = turn * self._cycle.count(number) + self._cycle[:place].count(number)
        return self.loaders[number].batch(own_step)


class Replayed:
    """Each batch several times in a row; an epoch has so many times more steps.

    Args:
        batches: whose batches.
        replays: how often each.
    """

    def __init__(self, batches: Batches, replays: int) -> None:
        self.replays = replays
        self.steps_per_epoch = batches.steps_per_epoch * replays
        self._batches = batches
        self._last: tuple[int, Batch | None] = (-1, None)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        turn = step // self.replays
        if self._last[1] is None or self._last[0] != turn:
            self._last = turn, self._batches.batch(turn)
        batch = self._last[1]
        assert batch is not None
        return batch
