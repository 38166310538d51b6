"""Recipes of everything that measures: attacks, corruptions, certificates, detection. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from robustmim.config.common import DataConfig, at_least_one
from robustmim.config.purify import GradientConfig
from robustmim.radius import Radius


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack of an evaluation, and how it meets the defence."""

    name: str
    """Its name in tables and records."""
    attack: str = "pgd"
    """Registered attack; `robustmim list attacks`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the attack."""
    against: Literal["defence", "classifier"] = "defence"
    """What is attacked: classifier behind purifier, or the bare classifier (the purifier then meets its result)."""
    eot: int = 1
    """Draws of a random defence averaged in each query."""
    average: Literal["loss", "logits"] = "loss"
    """What is averaged over the draws."""
    gradient: GradientConfig = GradientConfig()
    """Gradient through the purifier."""
    randomness: Literal["fresh", "known", "fixed"] = "fresh"
    """Draws of the verdict: fresh ones; the very draws the attacker had (known); or one draw for every sample and call,
    which the attacker knows (fixed)."""
    radii: tuple[Radius, ...] | None = None
    """Budgets it is run at; default: all of the recipe's."""
    images: int | None = None
    """Attack only the first so many images."""
    optional: bool = False
    """Leave the attack out, and say so, where the defence lacks what it needs (a masked model, a gradient of its own) or the norm
    is none of its norms; otherwise that is an error."""


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """Active checks: attacks run on a few images only to find out whether the numbers can be believed (docs/honesty)."""

    images: int = 0
    """Images they use; 0 for none of them."""
    large_radius: Radius = Radius("128/255")
    """A budget at which nothing may hold."""
    factor: int = 4
    """How many times more steps, and draws, must not find much more."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """What a defence is measured on, and how it is attacked."""

    data: DataConfig = DataConfig(split="test", limit=512)
    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the attacks."""
    radii: tuple[Radius, ...] = (Radius("2/255"), Radius("4/255"), Radius("8/255"))
    """Budgets."""
    attacks: tuple[AttackConfig, ...] = ()
    """The attacks, cheap ones first."""
    draws: int = 1
    """Fresh draws of a random defence on which each adversarial image is judged; with more than one, a second set of as
    many must confirm a break."""
    cascade: bool = False
    """An image that has fallen to a white-box attack is not given to the next ones at that budget. What falls to an attacker who
    knows less (of the bare classifier, of another one, of answers alone, of a stand-in for the purifier) is, so that white-box
    attacks which miss it are found out. Takes two draws or more, if the defence is random."""
    checks: ChecksConfig = ChecksConfig()
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        at_least_one(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class CorruptionsRecipe:
    """Accuracy under common corruptions (Hendrycks and Dietterich 2019), which nobody has chosen to fool anyone."""

    data: DataConfig = DataConfig(split="test", limit=512)
    names: str | tuple[str, ...] = "all"
    """Corruptions: all (the fifteen of the benchmark), extra (four more), or names joined by commas."""
    severities: int | str | tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities, joined by commas."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Seed of the corruptions and of the purifier's draws."""

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        at_least_one(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class CertifyRecipe:
    """Randomised smoothing (Cohen et al. 2019): radii in l2 within which the class provably does not change."""

    data: DataConfig = DataConfig(split="test", limit=200)
    sigma: float = 0.25
    """Standard deviation of the Gaussian noise, for pixels in [0, 1]."""
    selection_draws: int = 100
    """Noisy copies on which the class is chosen, n₀."""
    draws: int = 1000
    """Other noisy copies, on which the probability of that class is bounded, n. They limit the radius:
    σ Φ⁻¹(α^(1/n)) at most."""
    alpha: float = 0.001
    """Probability, for each image, that its certificate is wrong."""
    batch_size: int = 100
    """Noisy copies at a time."""
    seed: int = 0
    """Seed of the noise and of the purifier's draws."""

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        at_least_one(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class DetectRecipe:
    """Tell attacked images from clean ones by a masked model, with a threshold from clean images."""

    data: DataConfig = DataConfig(split="test", limit=256)
    """Clean images. The first ones calibrate the threshold, the rest are attacked."""
    calibration: int = 128
    """Images that the threshold is taken from."""
    score: Literal["reconstruction", "descent", "disagreement", "attention"] = "disagreement"
    """reconstruction: the masked loss. descent: log of its ratio to that after purification. disagreement: of the classifier's
    answers before and after. attention: entropy of attention maps."""
    false_positive_rate: float = 0.05
    """Share of clean images that may be taken for attacked ones."""
    norm: Literal["linf", "l2"] = "linf"
    radii: tuple[Radius, ...] = (Radius("2/255"), Radius("4/255"), Radius("8/255"))
    """Budgets of the attacks."""
    steps: int = 40
    """Steps of PGD, and of each run of the attack that knows the detector."""
    weights: tuple[float, ...] = (0.0, 1.0, 10.0)
    """Weights of the detector in the objective of that attack, tried in turn."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        at_least_one(batch_size=self.batch_size)
