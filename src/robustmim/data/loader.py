"""Batches of augmented images, on the device. What step t yields is a pure function of (seed, t): nothing to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from robustmim.config import DataConfig
from robustmim.data.augment import erase, rand_augment
from robustmim.data.mixing import mix
from robustmim.data.sources import Source
from robustmim.errors import RecipeError
from robustmim.rng import Keys, keys, permutation
from robustmim.types import Images, Labels


@dataclass(frozen=True)
class Batch:
    """Images in [0, 1] with labels and ids, on the device.

    `ids` name the samples for random draws: a sample's draws depend on its id, the seed and the epoch, not on its batch.
    `mixed` is the distribution over the classes of images that were mixed; None where each image is of its label.
    """

    images: Images
    labels: Labels
    ids: Int[Tensor, " batch"]
    mixed: Float[Tensor, "batch classes"] | None = None

    @property
    def goal(self) -> Tensor:
        """What the images should be taken for: labels `[B]`, or a distribution over the classes `[B, K]`."""
        return self.labels if self.mixed is None else self.mixed

    @property
    def likeliest(self) -> Labels:
        """The label of each image; of a mixed one, that of its larger part."""
        return self.labels if self.mixed is None else self.mixed.argmax(1)

    def parts(self, count: int) -> list[Batch]:
        """Cut the batch into equal parts."""
        size = len(self.images) // count
        mixed = [None] * count if self.mixed is None else self.mixed.split(size)
        columns = (self.images.split(size), self.labels.split(size), self.ids.split(size), mixed)
        return [Batch(*part) for part in zip(*columns, strict=True)]


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
        self.warmup_steps = config.augment.warmup_epochs * self.steps_per_epoch
        """Steps over which strong augmentation grows to its strength."""
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(self, step: int) -> Batch:
        """Return this process's share of the batch of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self.seed, epoch, len(self.source)))
        share = self.batch_size // self.world
        whole = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        own = slice(self.rank * share, (self.rank + 1) * share)
        indices, augment = whole[own], self.config.augment
        labels, ids = self.source.labels[indices].to(self.device), self.source.ids[indices].to(self.device)
        grown = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        images = self._augmented(indices, epoch, grown)
        if not (augment.mixup or augment.cutmix):
            return Batch(images, labels, ids)
        # The partner is the image at the same place from the end of the whole batch, whoever holds it.
        others = whole.flip(0)[own]
        partners = self._augmented(others, epoch, grown)
        drawn = keys(self.seed, "augment", ids, epoch)
        images, weight = mix(images, partners, drawn, augment, augment.mix_probability * (1 + grown) / 2)
        goal, other = (
            F.one_hot(self.source.labels[some].to(self.device), len(self.source.classes)).to(images)
            for some in (indices, others)
        )
        return Batch(images, labels, ids, torch.lerp(other, goal, weight[:, None]))

    def _augmented(self, indices: Int[Tensor, " share"], epoch: int, grown: float) -> Images:
        """Return the images at these places, each augmented on its own; `grown` is the strength reached, 0 to 1."""
        config, augment = self.config, self.config.augment
        images = self.source.fetch(indices).to(self.device)
        ids = self.source.ids[indices].to(self.device)
        drawn = keys(self.seed, "augment", ids, epoch)
        if config.padding or config.crop:
            images = random_crop(images, drawn, config.crop or images.shape[-1], config.padding)
        if config.flip == "random":
            images = flip(images, drawn.fold("flip").uniform(1)[:, 0] < 0.5)
        elif config.flip == "alternate":
            # Each image begins on a random side and changes it every epoch: no side is seen twice in a row.
            side = keys(self.seed, "side", ids).uniform(1)[:, 0] < 0.5
            images = flip(images, side ^ bool(epoch % 2))
        result = images.to(torch.float32) / 255
        if augment.rand_augment:
            result = rand_augment(
                result,
                drawn,
                operations=augment.rand_augment,
                magnitude=1 + (augment.magnitude - 1) * grown,
                deviation=augment.magnitude_deviation,
            )
        if config.cutout:
            result = cutout(result, drawn, config.cutout)
        if augment.erasing:
            result = erase(result, drawn, augment.erasing)
        return result


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


class Extended:
    """Batches of which a part comes from another set: generated images beside real ones.

    Each set goes through its own images in its own order; images are mixed with others of their set. An epoch has as many
    steps as the first set alone would have, as in the work the published sets come from.

    Args:
        loaders: whose batches are joined; the first one's set counts the epochs.
    """

    replays = 1

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders
        self.steps_per_epoch = len(loaders[0].source) // sum(loader.batch_size for loader in loaders)
        for loader in loaders:
            loader.warmup_steps = loader.config.augment.warmup_epochs * self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        parts = [loader.batch(step) for loader in self.loaders]
        mixed = [part.mixed for part in parts if part.mixed is not None]
        return Batch(
            torch.cat([part.images for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.ids for part in parts]),
            torch.cat(mixed) if mixed else None,
        )


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
