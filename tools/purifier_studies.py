"""Two studies beyond the papers: the scale of AMRM-Pure's masks, and few steps. Same images, attacks and seed for all rows.

python tools/purifier_studies.py scales [ROW …]        writes results/mask-scales.json
python tools/purifier_studies.py few-steps [ROW …]     writes results/few-steps.json
python tools/purifier_studies.py learn                 learns the scale of each step, writes results/mask-schedule.json
python tools/purifier_studies.py write scales          writes that file from what has been measured so far
python tools/purifier_studies.py chart                 draws docs/images/mask-scales.svg from the first

Needs CIFAR-10 under ROBUSTMIM_DATA, one thread, and the models that rows name (`robustmim pretrain masked-conv-scales-cifar10`,
`robustmim robustify masked-conv-distilled-cifar10`; the others are in the zoo); a row whose model is not there is passed over.
Records go to runs/purifier-studies batch by batch, and what is there is not computed again.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustmim.config import (
    AMRMConfig,
    AttackConfig,
    DataConfig,
    DenoiserConfig,
    EvaluateRecipe,
    GradientConfig,
    PurifyRecipe,
    ReconstructionConfig,
)
from robustmim.data import sources
from robustmim.data.loader import Batch
from robustmim.errors import CheckpointError
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.claims import tally, worst_case
from robustmim.evaluate.run import Evaluator
from robustmim.evaluate.table import NO_ATTACK, Cell, cell_of, radii_of
from robustmim.evaluate.verdict import broken
from robustmim.models.masked import with_draws
from robustmim.models.masking import enlarge, random_mask
from robustmim.models.zoo import open_classifier
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.load import describe, make_purifier
from robustmim.radius import Radius, radius_text
from robustmim.rng import keys
from robustmim.runs import append_line, environment, read_lines, write_json
from robustmim.types import Images

ROOT = Path(__file__).parent.parent
CLASSIFIER, SKIP, IMAGES, BATCH, SEED = "fast-cnn-cifar10", 128, 128, 32, 0
RADII = (Radius("2/255"), Radius("4/255"), Radius("8/255"))
GRAY = AttackConfig(name="gray-box", against="classifier", options={"steps": 20})
# All steps are taken: to confirm on fresh draws that an image has fallen costs more than the steps it saves.
WHITE = (
    AttackConfig(name="identity", options={"steps": 10, "drop": False}, eot=2),
    AttackConfig(name="tanh", options={"steps": 10, "drop": False}, eot=2, gradient=GradientConfig(mode="tanh")),
)
PARTS = {GRAY.name: [GRAY.name], "white box": [attack.name for attack in WHITE]}
"""What is measured first, on all images and rows, and what then."""
SHOWN = ("n", "accuracy", "low", "high", "rules")
DESCENT = AMRMConfig(
    steps=8, step_size=Radius("3/255"), schedule="cosine", momentum=0.7, radius=Radius("16/255"), mask_ratio=0.4
)
LEARNED_ON, LEARNED_AT = 128, Radius("4/255")
NOISY, SCALES = "masked-conv-noise-cifar10", "runs/masked-conv-scales-cifar10"


def at_scales(model: str, *scales: int, **changes: Any) -> PurifyRecipe:
    denoiser = DenoiserConfig(sigma=0.1) if "maskdit" in model else DenoiserConfig()
    return PurifyRecipe(masked_model=model, amrm=replace(DESCENT, mask_scales=scales, **changes), denoiser=denoiser)


def in_steps(steps: int, **changes: Any) -> PurifyRecipe:
    """Return the recommended descent in other steps, as long on the whole: a cosine's lengths add up to λ (S + 1) / 2."""
    return PurifyRecipe(
        masked_model=NOISY, amrm=replace(DESCENT, steps=steps, step_size=Radius(27 / 255 / (steps + 1)), **changes)
    )


def one_pass(model: str, **options: Any) -> PurifyRecipe:
    return PurifyRecipe(masked_model=model, reconstruction=ReconstructionConfig(**options))


STUDIES: dict[str, dict[str, PurifyRecipe]] = {
    "scales": {
        "masked convolution, 1": at_scales(NOISY, 1),
        "masked convolution, 2": at_scales(NOISY, 2),
        "masked convolution, 4": at_scales(NOISY, 4),
        "masked convolution trained on 1, 2, 4: 1": at_scales(SCALES, 1),
        "masked convolution trained on 1, 2, 4: 2": at_scales(SCALES, 2),
        "masked convolution trained on 1, 2, 4: 4": at_scales(SCALES, 4),
        "masked convolution trained on 1, 2, 4: in turns": at_scales(SCALES, 1, 2, 4),
        "masked convolution trained on 1, 2, 4: coarse to fine": at_scales(SCALES, 4, 4, 4, 2, 2, 2, 1, 1),
        "masked convolution trained on 1, 2, 4: fine to coarse": at_scales(SCALES, 1, 1, 2, 2, 2, 4, 4, 4),
        # As many gradients as the others: half the steps, two masks in each.
        "masked convolution trained on 1, 2, 4: 1 and 4 at once": at_scales(
            SCALES, 1, 4, mask_average=2, steps=4, step_size=Radius(27 / 255 / 5)
        ),
        "MAE patch 4: 4": at_scales("mae-patch4-cifar10", 1),
        "MAE patch 4: 4 and 8 in turns": at_scales("mae-patch4-cifar10", 1, 2),
        "MaskDiT patch 4: 4": at_scales("maskdit-micro-cifar10", 1),
        "MaskDiT patch 4: 4 and 8 in turns": at_scales("maskdit-micro-cifar10", 1, 2),
        "MAE patch 2: 2": at_scales("mae-patch2-cifar10", 1),
        "MAE patch 2: 2 and 4 in turns": at_scales("mae-patch2-cifar10", 1, 2),
    },
    "few-steps": {
        "S 8 (recommended)": in_steps(8),
        "S 4": in_steps(4),
        "S 2": in_steps(2),
        "S 4, complementary halves": in_steps(4, masks="complementary", mask_ratio=0.5),
        "S 2, complementary halves": in_steps(2, masks="complementary", mask_ratio=0.5),
        "S 8, target only": in_steps(8, gradient="target"),
        "S 4, target only": in_steps(4, gradient="target"),
        "one pass, as pre-trained": one_pass(NOISY, mask_ratio=0.5, blend=0.5),
        "one pass, distilled": one_pass("runs/masked-conv-distilled-cifar10", mask_ratio=0.0),
    },
}
JOURNALS = ROOT / "runs" / "purifier-studies"
FILES = {"scales": ROOT / "results" / "mask-scales.json", "few-steps": ROOT / "results" / "few-steps.json"}
GRAY_BOX = {"scales": RADII, "few-steps": RADII[:2]}
WHITE_BOX = {"scales": RADII[:1], "few-steps": RADII[:2]}


class Study:
    """The images, clean and attacked on the bare classifier, that every row of a study meets."""

    def __init__(self, name: str) -> None:
        self.recipe = EvaluateRecipe(
            data=DataConfig(split="test", skip=SKIP, limit=IMAGES),
            radii=GRAY_BOX[name],
            attacks=(GRAY, *(replace(attack, radii=WHITE_BOX[name]) for attack in WHITE)),
            draws=2,
            seed=SEED,
        )
        self.classifier = open_classifier(CLASSIFIER)
        source = sources.load("cifar10", "test", skip=SKIP, limit=IMAGES)
        self.batches = list(in_order(source, BATCH, torch.device("cpu")))
        alone = replace(GRAY, against="defence", options=GRAY.options | {"drop": False})
        self._bare = Evaluator(self.classifier, None, replace(self.recipe, attacks=(alone,)))
        self._attacked: dict[tuple[Radius, int], Images] = {}

    def attacked(self, radius: Radius, place: int) -> Images:
        """Return a batch attacked on the bare classifier."""
        if (radius, place) not in self._attacked:
            found = self._bare.attacked(self._bare.recipe.attacks[0], self.batches[place], radius)[0]
            self._attacked[radius, place] = found
        return self._attacked[radius, place]

    def judged(
        self, purify: PurifyRecipe, place: int, attacks: tuple[AttackConfig, ...], before: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the records of a batch under some attacks. An image that has fallen at a budget is spared later ones.

        Args:
            purify: the row.
            place: of the batch.
            attacks: in the order of the recipe.
            before: records of the batch under the attacks before them; none for the first, with which clean images are judged.
        """
        evaluator = Evaluator(self.classifier, make_purifier(purify), self.recipe)
        batch, records = self.batches[place], []

        def judge(some: Batch, x: Images, cell: Cell) -> None:
            verdict = evaluator.judge(some, x, cell, None)
            attack, radius, defence = cell.key
            for i, number in enumerate(some.ids.tolist()):
                row = {"id": number, "attack": attack, "radius": radius, "defence": defence, "draws": verdict.draws}
                row |= {"right": int(verdict.right[i])}
                records.append(row if verdict.again is None else row | {"again": int(verdict.again[i])})

        if not before:
            judge(batch, batch.images, Cell(NO_ATTACK, 0.0, "purified"))
        for attack in attacks:
            for radius in radii_of(attack, self.recipe):
                known = [row for row in before + records if row["radius"] == radius_text(radius)]
                fallen = {row["id"] for row in known if broken(row)}
                left = torch.tensor([number not in fallen for number in batch.ids.tolist()])
                if not left.any():
                    continue
                some = Batch(batch.images[left], batch.labels[left], batch.ids[left])
                white = attack.against == "defence"
                x = evaluator.attacked(attack, some, radius)[0] if white else self.attacked(radius, place)
                judge(some, x, Cell(attack.name, radius, "purified"))
        return records

    @torch.no_grad()
    def sight(self, purify: PurifyRecipe) -> dict[str, Any]:
        """Return what a masked model sees under the masks of its descent, the mean over their scales.

        "sigma": RMS error of the prediction of hidden pixels of clean images, in 255ths; "sees": masked loss attacked / clean.
        """
        purifier, config = make_purifier(purify), purify.amrm
        assert isinstance(purifier, AMRMPure)
        model, wrong, losses = purifier.model, 0.0, dict.fromkeys((0.0, *RADII), 0.0)
        for place, batch in enumerate(self.batches):
            drawn = keys(SEED, "sight", batch.ids)
            for turn, scale in enumerate(config.mask_scales):
                own = drawn.fold("mask", turn)
                mask = random_mask(own, model.grid(*batch.images.shape[-2:]), config.mask_ratio, scale)
                asked = with_draws(model, own)
                found = asked.reconstruct(batch.images, mask, need_pixels=True)
                assert found.pixels is not None
                hidden = enlarge(mask, model.patch_size).expand_as(batch.images)
                wrong += float((found.pixels - batch.images)[hidden].square().mean()) / len(config.mask_scales)
                losses[0.0] += float(found.loss.sum())
                for radius in RADII:
                    losses[radius] += float(asked.reconstruct(self.attacked(radius, place), mask).loss.sum())
        sees = {radius_text(radius): round(losses[radius] / losses[0.0], 4) for radius in RADII}
        return {"sigma": round((wrong / len(self.batches)) ** 0.5 * 255, 2), "sees": sees}

    def milliseconds(self, purify: PurifyRecipe) -> float:
        """Return CPU time, of one thread, that an image takes: the clock on the wall would tell of other programs too."""
        purifier, spent = make_purifier(purify), []
        some = self.batches[0].images[:16]
        drawn = keys(SEED, "timing", self.batches[0].ids[:16])
        for _ in range(4):
            began = time.process_time()
            purifier(some, keys=drawn)
            spent.append(time.process_time() - began)
        return round(min(spent) / len(drawn) * 1000, 2)

    def summary(self, gray: list[dict[str, Any]], white: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what records say: accuracy clean and in the gray box, and the worst case as each white-box attack joins in.

        Args:
            gray: records of clean images and of the gray box.
            white: records of the images that met all attacks.
        """

        def worst(rows: list[dict[str, Any]], last: int) -> None:
            attack, by_cell = self.recipe.attacks[last], _by_cell(rows)
            so_far = replace(self.recipe, attacks=self.recipe.attacks[: last + 1])
            for radius in radii_of(attack, self.recipe) if rows else ():
                case = worst_case(by_cell, so_far, radius, purified=True)
                found[f"{attack.name} {radius_text(radius)}"] = {key: case[key] for key in SHOWN}

        clean = tally(_by_cell(gray), Cell(NO_ATTACK, 0.0, "purified"))
        found: dict[str, Any] = {"clean": {key: clean[key] for key in SHOWN if key in clean}}
        worst(gray, 0)
        for number in range(1, len(self.recipe.attacks)):
            worst(white, number)
        return found


def _by_cell(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(cell_of(row), {})[row["id"]] = row
    return found


def passes(purify: PurifyRecipe) -> dict[str, int]:
    """Return how often an image goes through the masked model, and how often its gradient comes back through it."""
    if purify.reconstruction is not None:
        ratio = purify.reconstruction.mask_ratio
        return {"forward": int(1 / ratio) if ratio else 1, "backward": 0}
    masks = purify.amrm.steps * purify.amrm.mask_average
    return {"forward": masks, "backward": 0 if purify.amrm.gradient == "target" else masks}


def there(purify: PurifyRecipe) -> bool:
    try:
        make_purifier(purify)
    except CheckpointError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return False
    return True


def measured(name: str) -> dict[str, dict[str, dict[int, list[dict[str, Any]]]]]:
    """Return the records that there are: by row, by part, by batch."""
    found: dict[str, dict[str, dict[int, list[dict[str, Any]]]]] = {}
    for line in read_lines(JOURNALS / f"{name}.jsonl"):
        purify = STUDIES[name].get(line["row"])
        if purify is not None and describe(purify) == line["purifier"]:
            parts = found.setdefault(line["row"], {part: {} for part in PARTS})
            parts[line["part"]][line["place"]] = line["records"]
    return found


def run(name: str, wanted: list[str]) -> None:
    chosen = {title: p for title, p in STUDIES[name].items() if (not wanted or title in wanted) and there(p)}
    study = Study(name)
    JOURNALS.mkdir(parents=True, exist_ok=True)
    for part, attacks in PARTS.items():
        for place in range(len(study.batches)):
            for title, purify in chosen.items():
                known = measured(name).get(title, {})
                if place in known.get(part, {}):
                    continue
                began, own = time.perf_counter(), [a for a in study.recipe.attacks if a.name in attacks]
                before = known[GRAY.name][place] if part != GRAY.name else []
                line = {"row": title, "purifier": describe(purify), "part": part, "place": place}
                line["records"] = study.judged(purify, place, tuple(own), before)
                append_line(JOURNALS / f"{name}.jsonl", line)
                print(f"{title}, {part}, batch {place}: {time.perf_counter() - began:.0f} s", flush=True)
    write(name, study)


def write(name: str, study: Study) -> None:
    """Write what has been measured: accuracies on those images that all rows which have met any have met."""
    found = {title: parts for title, parts in measured(name).items() if parts[GRAY.name]}
    # Batches are met in order, each by all rows before the next one.
    common = {part: min((len(own[part]) for own in found.values() if own[part]), default=0) for part in PARTS}
    rows: dict[str, Any] = {}
    for title, purify in STUDIES[name].items():
        if not there(purify):
            continue
        rows[title] = {"purifier": describe(purify), **passes(purify), "cpu_milliseconds": study.milliseconds(purify)}
        rows[title] |= study.sight(purify) if name == "scales" else {}
        if title not in found:
            continue
        done = {part: range(common[part] if found[title][part] else 0) for part in PARTS}
        gray = [row for place in done[GRAY.name] for row in found[title][GRAY.name][place]]
        white = [row for place in done["white box"] for part in PARTS for row in found[title][part][place]]
        rows[title] |= study.summary(gray, white)
    content = {
        "classifier": CLASSIFIER,
        "data": f"CIFAR-10 test, images from {SKIP} on",
        "protocol": "gray box: PGD-20 on the bare classifier; identity, tanh: PGD-10 through the purifier by that gradient, EOT 2, "
        "on what still stands; worst case so far on two sets of two fresh draws",
        "seed": SEED,
        "environment": environment(),
        "rows": rows,
    }
    write_json(FILES[name], content)


def learn() -> None:
    """Learn the scale of each step of the descent: coordinate descent from the scales in turns, until a sweep changes nothing.

    What is minimised is the classifier's cross-entropy on purified images, clean ones and ones attacked in the gray box, of
    others than those that the studies judge on; a change must also be better on other draws than those it was found on.
    """
    classifier = open_classifier(CLASSIFIER)
    first = SKIP + IMAGES
    source = sources.load("cifar10", "test", skip=first, limit=LEARNED_ON)
    (batch,) = in_order(source, LEARNED_ON, torch.device("cpu"))
    alone = replace(GRAY, against="defence", options=GRAY.options | {"drop": False})
    data = DataConfig(split="test", skip=first, limit=LEARNED_ON)
    bare = Evaluator(
        classifier, None, EvaluateRecipe(data=data, radii=(LEARNED_AT,), attacks=(alone,), draws=1, seed=SEED)
    )
    images = torch.cat([batch.images, bare.attacked(bare.recipe.attacks[0], batch, LEARNED_AT)[0]])
    labels, ids = batch.labels.repeat(2), batch.ids.repeat(2)
    known: dict[tuple[tuple[int, ...], str], float] = {}

    @torch.no_grad()
    def cost(scales: tuple[int, ...], draws: str) -> float:
        if (scales, draws) not in known:
            purified = make_purifier(at_scales(SCALES, *scales))(images, keys=keys(SEED, draws, ids))
            known[scales, draws] = float(torch.nn.functional.cross_entropy(classifier(purified), labels))
        return known[scales, draws]

    scales: tuple[int, ...] = (1, 2, 4, 1, 2, 4, 1, 2)
    path: list[dict[str, Any]] = []
    while not path or path[-1]["scales"] != list(scales):
        path.append({"scales": list(scales), "cross_entropy": round(cost(scales, "found"), 4)})
        print(path[-1], flush=True)
        for step in range(DESCENT.steps):
            others = [(*scales[:step], scale, *scales[step + 1 :]) for scale in (1, 2, 4)]
            best = min(others, key=lambda some: cost(some, "found"))
            if cost(best, "confirmed") < cost(scales, "confirmed"):
                scales = best
    alike = {str(scale): round(cost((scale,) * DESCENT.steps, "found"), 4) for scale in (1, 2, 4)}
    write_json(
        ROOT / "results" / "mask-schedule.json",
        {
            "classifier": CLASSIFIER,
            "masked_model": SCALES,
            "data": f"CIFAR-10 test, {LEARNED_ON} images from {first} on, clean and attacked on the bare classifier by PGD-20 at "
            f"{radius_text(LEARNED_AT)}",
            "seed": SEED,
            "environment": environment(),
            "sweeps": path,
            "one_scale_alone": alike,
        },
    )


def chart() -> None:
    """Draw accuracy over σ / ε: the colour is ε, the shape the model; empty shapes are the worst case in the white box."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    # The same file from the same numbers.
    plt.rcParams |= {"svg.hashsalt": "robustmim", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    rows = json.loads(FILES["scales"].read_text())["rows"]
    shapes = {"masked convolution trained on 1, 2, 4": "^", "masked convolution": "o", "MAE": "D", "MaskDiT": "s"}
    colours = dict(zip(RADII, ("#0072b2", "#00735c", "#d55e00"), strict=True))
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    used: set[str] = set()
    for title, row in rows.items():
        family = next(name for name in shapes if title.startswith(name))
        for radius, colour in colours.items():
            for attack, face in (("gray-box", colour), (WHITE[-1].name, "none")):
                found = row.get(f"{attack} {radius_text(radius)}")
                if found is not None:
                    place, marker = row["sigma"] / (radius * 255), shapes[family]
                    axes.scatter(place, found["accuracy"], s=32, marker=marker, facecolor=face, edgecolor=colour)
                    used.add(family)
    axes.set_xscale("log")
    ticks = [1, 2, 4, 8, 16]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("σ / ε: error of the masked prediction over the attack's budget")
    axes.set_ylabel("accuracy after purification")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for family in (name for name in shapes if name in used):
        axes.scatter([], [], s=32, marker=shapes[family], color="#555555", label=family)
    # Colours as patches: a square would be taken for the marker of a family.
    patches = [Patch(color=colour, label=f"ε = {radius_text(radius)}, gray box") for radius, colour in colours.items()]
    patches.append(Patch(facecolor="none", edgecolor=colours[RADII[0]], label="worst case, white box"))
    figure.legend(
        handles=[*axes.get_legend_handles_labels()[0], *patches],
        frameon=False,
        fontsize=8,
        loc="outside upper center",
        ncols=3,
    )
    figure.subplots_adjust(top=0.84)
    path = ROOT / "docs" / "images" / "mask-scales.svg"
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    print(path)


def main() -> None:
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["chart"]:
            chart()
        case ["learn"]:
            learn()
        case ["write", ("scales" | "few-steps") as name]:
            write(name, Study(name))
        case [("scales" | "few-steps") as name, *wanted]:
            run(name, wanted)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
