"""Corruption errors (Hendrycks and Dietterich, ICLR 2019, section 4.4): how wrong a classifier is on corrupted images.

A corruption's error is summed over its severities and divided by that of a baseline classifier, so that hard corruptions
do not drown the others; the mean over corruptions is the mCE. The relative mCE takes each side's clean error off first: it
says how much corruption costs, whatever the classifier does on clean images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustmim.errors import InputError

Errors = Mapping[str, Sequence[float]]
"""Corruption → error rates in [0, 1], one per severity."""

_ALEXNET_MEANS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}

ALEXNET: dict[str, tuple[float, ...]] = {name: (mean,) * 5 for name, mean in _ALEXNET_MEANS.items()}
"""AlexNet's top-1 errors on ImageNet-C. Published are means over the five severities (the paper's table of corruption
errors, to more digits); each is repeated five times, which gives the right sums over all five and over no fewer."""
ALEXNET_CLEAN = 0.435
"""AlexNet's top-1 error on clean ImageNet, in the same table."""


@dataclass(frozen=True)
class Baseline:
    """What corruption errors are divided by.

    Attributes:
        name: of the classifier.
        errors: its error rates by corruption and severity.
        clean: its error on clean images.
    """

    name: str
    errors: Errors
    clean: float


def alexnet(names: Sequence[str], severities: Sequence[int]) -> Baseline:
    """Return AlexNet on ImageNet-C, the baseline of published mCEs.

    Raises:
        InputError: other severities than all five, or corruptions that are not among the fifteen.
    """
    extra = [name for name in names if name not in ALEXNET]
    if list(severities) != [1, 2, 3, 4, 5] or extra:
        raise InputError(
            "AlexNet's errors are known for the fifteen corruptions over all five severities: take --names all and "
            "--severities 1,2,3,4,5, or another --baseline"
        )
    return Baseline("AlexNet on ImageNet-C", {name: ALEXNET[name] for name in names}, ALEXNET_CLEAN)


def baseline_of(claim: Mapping[str, Any], own: Mapping[str, Any], defence: str = "bare") -> Baseline:
    """Return the errors of a claim about corruptions, as the baseline of another one.

    Args:
        claim: of the classifier that is divided by.
        own: the claim that is divided.
        defence: bare, or purified.

    Raises:
        InputError: it is of other images, or lacks a corruption or severity.
    """
    for key, what in (("data", "data"), ("images", "number of images"), ("seed", "seed")):
        if claim.get(key) != own[key]:
            raise InputError(
                f"the baseline's {what} is {claim.get(key)}, not {own[key]}: its errors are of other images"
            )
    errors = {
        (row["corruption"], row["severity"]): 1 - row["correct"] / row["n"]
        for row in claim["cells"]
        if row["defence"] == defence
    }
    wanted = {name: [(name, severity) for severity in own["severities"]] for name in own["corruptions"]}
    for cell in (cell for cells in wanted.values() for cell in cells):
        if cell not in errors:
            raise InputError(f"the baseline was not measured on {cell[0]}, severity {cell[1]}")
    name = claim["classifier"] + (" without the purifier" if claim is own else "")
    return Baseline(name, {name: [errors[cell] for cell in cells] for name, cells in wanted.items()}, errors["none", 0])


def _sums(errors: Errors, baseline: Errors | None) -> list[tuple[float, float, int]]:
    """Return each corruption's summed error, the baseline's, and the number of severities."""
    if not errors:
        raise InputError("a mean corruption error needs the errors of one corruption at least")
    found = []
    for name, own in errors.items():
        if baseline is not None and name not in baseline:
            raise InputError(f"the baseline has no errors for {name}; it has: {', '.join(sorted(baseline))}")
        other = own if baseline is None else baseline[name]
        if len(own) != len(other) or not own:
            raise InputError(f"{name}: {len(own)} severities, but {len(other)} of the baseline; give the same ones")
        for rate in (*own, *other):
            if not 0 <= rate <= 1:
                raise InputError(f"{name}: an error rate of {rate:g}; errors are fractions from 0 to 1")
        found.append((sum(own), sum(other), len(own)))
    return found


def _ratio(name: str, above: float, below: float) -> float:
    if below <= 0:
        raise InputError(f"{name}: the baseline's error is {below:g}; nothing can be divided by it")
    return above / below


def mean_corruption_error(errors: Errors, baseline: Errors | None = None) -> float:
    """Return the mCE: the mean over corruptions of (summed error / the baseline's summed error).

    Args:
        errors: error rates by corruption and severity.
        baseline: those of the classifier to be measured against: `ALEXNET` for ImageNet-C, for other sets any classifier
            measured on the same images. None: nothing is divided, and the result is the plain mean error.

    Returns:
        1 for a classifier as good as the baseline; papers print it in per cent.

    Raises:
        InputError: no corruptions, a corruption that the baseline lacks, other severities, or errors outside [0, 1].
    """
    sums = _sums(errors, baseline)
    if baseline is None:
        return sum(own / count for own, _, count in sums) / len(sums)
    return sum(_ratio(name, own, other) for name, (own, other, _) in zip(errors, sums, strict=True)) / len(sums)


def relative_mean_corruption_error(
    errors: Errors, clean: float, baseline: Errors | None = None, baseline_clean: float | None = None
) -> float:
    """Return the relative mCE: as the mCE, but of errors above the clean error on both sides.

    Args:
        errors: error rates by corruption and severity.
        clean: the classifier's error on clean images.
        baseline: as for `mean_corruption_error`; None gives the plain mean of error − clean error.
        baseline_clean: the baseline's error on clean images (`ALEXNET_CLEAN`).

    Raises:
        InputError: as for `mean_corruption_error`; or a baseline without its clean error.
    """
    sums = _sums(errors, baseline)
    if baseline is None:
        return sum(own / count - clean for own, _, count in sums) / len(sums)
    if baseline_clean is None:
        raise InputError("a relative corruption error needs the baseline's clean error as well")
    return sum(
        _ratio(name, own - count * clean, other - count * baseline_clean)
        for name, (own, other, count) in zip(errors, sums, strict=True)
    ) / len(sums)
