"""Randomised smoothing: a class that provably holds within an l2 ball, for any base classifier.

The smoothed classifier answers with the class that the base classifier f gives most often to x + noise, noise ~ N(0, σ²I).
If that class has a probability of at least p > 1/2, no perturbation shorter than σ Φ⁻¹(p) changes the answer (Cohen,
Rosenfeld and Kolter 2019, Theorem 1). Here p is a lower confidence bound from draws: a certificate is wrong with a
probability of at most α, for each image by itself.

f is a classifier, alone or behind a purifier that takes the noise away (denoised smoothing, Salman et al. 2020). Two things
are to be said of it.

- The theorem wants noise that nobody clips, while models here take images in [0, 1]. So the clip is made a part of the base
  classifier, f(z) = classifier(purifier(clip(z, 0, 1))): a function of every z, to which the theorem applies as it stands.
- A purifier that draws gets fresh keys in each draw, which depend on the sample's id and the number of the draw, never on the
  pixels. f is then a random function, and h(z), the probability over its own draws that it answers with the class, takes
  the place of the indicator in the theorem; all that its proof asks for is 0 ≤ h ≤ 1. The certificate is one for the
  smoothed classifier that draws noise and keys alike.

The noise is float32 and made from 24 random bits a value, which ends at 5.8 σ: a Gaussian to that precision, as elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustmim.attacks.objectives import Logits
from robustmim.config import CertifyRecipe
from robustmim.errors import RecipeError
from robustmim.evaluate.statistics import clopper_pearson_lower, wilson_interval
from robustmim.models.masked import freeze
from robustmim.purify.amrm import padded_batch
from robustmim.purify.traits import Purifier
from robustmim.rng import Keys, keys
from robustmim.types import Images

RADII = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Radii, in l2 over pixels in [0, 1], that claims give the certified accuracy at."""

Base = Callable[[Images, Keys], Logits]
"""A base classifier: logits of noisy images, which lie anywhere, and one key per image for draws of its own."""


def check_recipe(recipe: CertifyRecipe) -> None:
    """Refuse a recipe that certifies nothing.

    Raises:
        RecipeError: a number out of its range.
    """
    if not 0 < recipe.sigma < math.inf:
        raise RecipeError(f"sigma: the noise has a positive, finite deviation, not {recipe.sigma}")
    if not 0 < recipe.alpha < 0.5:
        raise RecipeError(f"alpha: the probability of an error lies between 0 and 1/2, not at {recipe.alpha}")
    for name in ("selection_draws", "draws", "batch_size"):
        if getattr(recipe, name) < 1:
            raise RecipeError(f"{name}: at least 1, not {getattr(recipe, name)}")


def base_classifier(classifier: nn.Module, purifier: Purifier | None = None) -> Base:
    """Return f(z) = classifier(purifier(clip(z, 0, 1))); the clip is a part of it (see the top of this file).

    Args:
        classifier: logits from [0, 1] images; it is frozen.
        purifier: the denoiser, or None.
    """
    freeze(classifier)

    def classify(z: Images, drawn: Keys) -> Logits:
        images = z.clamp(0, 1)
        if purifier is not None:
            images = purifier(images, keys=drawn)
        with torch.no_grad():
            return classifier(images)

    return classify


def certified_radius(lower: float, sigma: float) -> float:
    """Return σ Φ⁻¹(p), the radius that a lower bound p > 1/2 of the class's probability certifies; 0 for any other.

    Cohen et al., Theorem 1 with the upper bound 1 − p for the other classes (their section 3.2.2).
    """
    return sigma * NormalDist().inv_cdf(lower) if lower > 0.5 else 0.0


def largest_radius(recipe: CertifyRecipe) -> float:
    """Return the radius of an image whose every draw agrees: no image can be certified beyond it."""
    return certified_radius(clopper_pearson_lower(recipe.draws, recipe.draws, recipe.alpha), recipe.sigma)


@dataclass(frozen=True)
class Certificate:
    """What is known of the smoothed classifier at an image.

    Attributes:
        predicted: its class; None where it abstains.
        radius: in l2; the class holds for every perturbation that is shorter. 0 where it abstains.
        count: draws of the second set that gave the class chosen on the first.
        lower: lower bound of that class's probability.
        most: most frequent class of the second set, without any guarantee; None if no draw gave a finite answer.
    """

    predicted: int | None
    radius: float
    count: int
    lower: float
    most: int | None


class Smoothed:
    """The smoothed classifier of a base classifier: counts its answers to noisy copies, and certifies.

    Args:
        base: the base classifier.
        recipe: noise, numbers of draws, α, seed. The batch size does not change results.

    Raises:
        RecipeError: a number out of its range.
    """

    def __init__(self, base: Base, recipe: CertifyRecipe) -> None:
        check_recipe(recipe)
        self.base, self.recipe = base, recipe

    def counts(
        self,
        x: Float[Tensor, "channels height width"],
        number: int,
        *,
        purpose: str,
        draws: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> Int[Tensor, " classes"] | None:
        """Count the classes that the base classifier gives to noisy copies of an image.

        An answer that is not finite counts for no class; the counts then add up to less than `draws`.

        Args:
            x: the image, in [0, 1].
            number: its id. Noise and keys of a draw derive from (seed, purpose, id, draw) alone.
            purpose: what the draws are for; those of different purposes are independent.
            draws: number of copies.
            stop: asked before each batch; None is returned once it says so.
        """
        found: Tensor | None = None
        for first in range(0, draws, self.recipe.batch_size):
            if stop():
                return None
            place = torch.arange(first, min(first + self.recipe.batch_size, draws), device=x.device)
            own = keys(self.recipe.seed, purpose, torch.full_like(place, number)).fold_each(place)
            noisy = x + self.recipe.sigma * own.fold("noise").normal(*x.shape).to(x)
            # Whole batches, so that a copy is classified alike to the last bit in batches of any size.
            logits = self.base(*padded_batch(noisy, own.fold("purify")))[: len(place)]
            answers = logits.argmax(1)[logits.isfinite().all(1)]
            counted = torch.bincount(answers, minlength=logits.shape[1]).cpu()
            found = counted if found is None else found + counted
        return found

    def certify(
        self, x: Float[Tensor, "channels height width"], number: int, *, stop: Callable[[], bool] = lambda: False
    ) -> Certificate | None:
        """Choose the class on some draws and bound its probability on others (Cohen et al., CERTIFY in section 3.2.2).

        On a tie the lowest class is chosen.

        Args:
            x: the image, in [0, 1].
            number: its id.
            stop: asked now and then; None is returned once it says so.
        """
        recipe = self.recipe
        chosen = self.counts(x, number, purpose="certify selection", draws=recipe.selection_draws, stop=stop)
        counted = self.counts(x, number, purpose="certify estimation", draws=recipe.draws, stop=stop)
        if chosen is None or counted is None:
            return None
        most = int(counted.argmax()) if counted.any() else None
        if not chosen.any():
            return Certificate(None, 0.0, 0, 0.0, most)
        best = int(chosen.argmax())
        count = int(counted[best])
        lower = clopper_pearson_lower(count, recipe.draws, recipe.alpha)
        radius = certified_radius(lower, recipe.sigma)
        return Certificate(best if lower > 0.5 else None, radius, count, lower, most)


def record_of(certificate: Certificate, *, number: int, label: int) -> dict[str, Any]:
    """Return the line of records.jsonl; the radius is rounded down, which leaves it certified."""
    return {
        "id": number,
        "label": label,
        "predicted": certificate.predicted,
        "radius": math.floor(certificate.radius * 1e6) / 1e6,
        "count": certificate.count,
        "most": certificate.most,
    }


def _share(correct: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(correct, n)
    return {
        "n": n,
        "correct": correct,
        "accuracy": round(correct / n, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def _one_answer(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Warn of a smoothed classifier that has stopped looking: a constant has wide certificates, and is right on its class.

    Told of at least ten images, where one class is the answer to more than half of them and to more than twice as many as
    belong to it. The thresholds are ours.
    """
    answers = Counter(record["most"] for record in records if record["most"] is not None)
    if len(records) < 10 or not answers:
        return []
    [(answer, times)] = answers.most_common(1)
    belong = sum(record["label"] == answer for record in records)
    if times <= max(len(records) / 2, 2 * belong):
        return []
    wrong = sum(record["predicted"] not in (None, record["label"]) for record in records)
    return [
        {
            "level": "amber",
            "sentence": f"Under this noise class {answer} is the most frequent answer to {times} of {len(records)} images, while "
            f"{belong} belong to it: a classifier that hardly looks has wide certificates, and its radii say little. "
            f"{wrong} images are certified with a wrong class.",
        }
    ]


def conclude(
    records: list[dict[str, Any]], recipe: CertifyRecipe, *, classifier: str, purifier: str | None
) -> dict[str, Any]:
    """Sum up the records of all images.

    Returns:
        "certified": the share of images whose class is right and certified beyond each of `RADII`; "curve", their radii
        in ascending order, gives it at any radius. "smoothed": the share whose most frequent class is right, which
        certifies nothing. "mean_radius": the average certified radius (ACR, Zhai et al. 2020), with 0 for images that
        are classified wrongly or abstained from.
    """
    n = len(records)
    right = [record for record in records if record["predicted"] == record["label"]]
    curve = sorted(record["radius"] for record in right)
    limit = largest_radius(recipe)
    beyond = [radius for radius in RADII if radius > limit]
    findings = []
    if beyond:
        findings.append(
            {
                "level": "amber",
                "sentence": f"{recipe.draws} draws certify no radius beyond {limit:.3f}; at {', '.join(map(str, beyond))} "
                "the certified accuracy is zero for want of draws or of noise, whatever the classifier does.",
            }
        )
    findings += _one_answer(records)
    return {
        "classifier": classifier,
        "purifier": purifier,
        "data": f"{recipe.data.name} {recipe.data.split}"
        + (f", {recipe.data.part}" if recipe.data.part != "all" else "")
        + (f", after the first {recipe.data.skip}" if recipe.data.skip else ""),
        "norm": "l2",
        "sigma": recipe.sigma,
        "selection_draws": recipe.selection_draws,
        "draws": recipe.draws,
        "alpha": recipe.alpha,
        "seed": recipe.seed,
        "images": n,
        # The theorem speaks of perturbations that are shorter than the radius.
        "certified": [
            {"radius": radius} | _share(sum(record["radius"] > radius for record in right), n) for radius in RADII
        ],
        "smoothed": _share(sum(record["most"] == record["label"] for record in records), n),
        "abstained": _share(sum(record["predicted"] is None for record in records), n),
        "mean_radius": round(sum(curve) / n, 5),
        "largest_radius": round(limit, 5),
        "curve": curve,
        "guarantee": f"Each certificate holds with a probability of at least {1 - recipe.alpha:g} over the draws of its image.",
        "findings": findings,
    }
