"""What recipes share: models, data, optimisers, runs. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from robustmim.errors import RecipeError


def at_least_one(**counts: int) -> None:
    """Refuse counts of nothing.

    Raises:
        RecipeError: one of them is below one.
    """
    for name, count in counts.items():
        if count < 1:
            raise RecipeError(f"{name} is at least 1, not {count}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A registered model and the options it is built with."""

    name: str
    """Registered name; `robustmim list` shows them."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Strong augmentation of training images; all of it is off by default."""

    rand_augment: int = 0
    """RandAugment (Cubuk et al. 2020): operations on each image, drawn from fourteen; 0 for none."""
    magnitude: float = 9.0
    """Strength of these operations, 0 to 10."""
    magnitude_deviation: float = 0.5
    """Deviation of that strength from image to image."""
    erasing: float = 0.0
    """Probability that a random box of an image is filled with noise (Zhong et al. 2020)."""
    mixup: float = 0.0
    """α of MixUp (Zhang et al. 2018): an image's weight is drawn from Beta(α, α); 0 for none."""
    cutmix: float = 0.0
    """α of CutMix (Yun et al. 2019): the share of an image's area is drawn from Beta(α, α); 0 for none. With MixUp too, each
    image gets one of the two."""
    mix_probability: float = 1.0
    """Probability that an image is mixed with another one at all."""
    warmup_epochs: float = 0.0
    """Epochs over which the magnitude grows from 1, and the probability of mixing from half (MIMIR, section IV-C)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set and how its training images are augmented."""

    name: str = "cifar10"
    """Registered name: cifar10, cifar100, svhn, tiny-imagenet, imagenet, folder, samples-cifar10, …"""
    root: str | None = None
    """Folder that holds the data sets; default: ROBUSTMIM_DATA."""
    split: str = "train"
    """The set's own split: train, val or test."""
    part: Literal["all", "development", "held-out"] = "all"
    """Of that split: all, the three quarters meant for development, or every fourth sample, kept out of it."""
    skip: int = 0
    """Leave out the first so many, such as those a recipe was chosen on."""
    limit: int | None = None
    """Use only the first so many of the rest."""
    size: int | None = None
    """Side of the square images, for folders of photographs."""
    resize: int | None = None
    """Shorter side before the centre crop to `size`."""
    crop: int | None = None
    """Side of a random crop; default: the whole image."""
    padding: int = 0
    """Pixels reflected around the image before the random crop."""
    flip: Literal["none", "random", "alternate"] = "none"
    """Mirror left to right: at random, or each image in every second epoch."""
    cutout: int = 0
    """Side of a random square set to the mean grey, 0 for none."""
    augment: AugmentConfig = AugmentConfig()
    """Strong augmentation."""
    share: int = 1
    """In a mixture: steps in a row that this set gets."""
    corruption: str | None = None
    """Corrupt the images (fog, gaussian_noise, jpeg_compression, …), each always alike; none for clean ones."""
    severity: int = 3
    """Severity of the corruption, 1 to 5."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    learning_rate: float = 1e-3
    """Peak rate, for the batch size given (no hidden scaling)."""
    weight_decay: float = 0.05
    """Decoupled for adamw, l2 for sgd; not applied to biases and norms."""
    momentum: float = 0.9
    """Momentum of sgd; first beta of adamw."""
    second_momentum: float = 0.95
    """Second beta of adamw."""
    bias_scale: float = 1.0
    """Factor on the learning rate of biases and norms."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it, for models that know their layers (ViT); the head's
    rate is the full one."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    warmup: float = 0.05
    """Fraction of the run over which the rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    final: float = 0.0
    """Rate at the end, as a fraction of the peak."""

    def __post_init__(self) -> None:
        """Refuse a rate that would climb or stand still."""
        if not self.learning_rate > 0:
            raise RecipeError(f"optimizer.learning_rate is above 0, not {self.learning_rate:g}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has in common."""

    epochs: float = 10
    """Passes over the (first) data set."""
    batch_size: int = 128
    """Images per optimiser step, over all processes."""
    accumulate: int = 1
    """Parts each process cuts its share of a batch into; their gradients add up to one step. Less memory, the same batch."""
    seed: int = 0
    """Seed of everything that is drawn."""
    ema: float = 0.0
    """Decay of the averaged weights that are evaluated and saved; 0 for none."""
    evaluate_every: float = 1.0
    """Epochs between evaluations."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    skips: int = 5
    """Steps in a row that may be skipped because their gradient is not a number; after more, the run stops, all saved."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on CUDA where supported, else float32."""
    compile: bool = False
    """Compile the transformer's blocks (`torch.compile`, block by block): minutes that a long run on a GPU, where small kernels
    wait for their launch, may earn back; not timed on one. For a CPU it is not meant."""

    def __post_init__(self) -> None:
        """Refuse a run of nothing."""
        at_least_one(batch_size=self.batch_size, accumulate=self.accumulate)
        if not self.epochs > 0:
            raise RecipeError(f"epochs are above 0 (a fraction will do), not {self.epochs:g}")
