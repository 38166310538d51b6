"""`robustmim purify FILES --out FOLDER`: purified images, and what the purification did to each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from robustmim.config import PurifyRecipe
from robustmim.errors import InputError, RecipeError, RobustmimError
from robustmim.recipe import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class PurifyOptions:
    """What is purified, and where to."""

    out: str = "purified"
    """Folder for the purified images (PNG) and traces.jsonl."""
    size: int | None = None
    """Resize the shorter side to this and crop the centre; default: the size the masked model takes, or as it is."""
    classifier: str | None = None
    """Also classify before and after: zoo name, folder, or (with --arch) someone else's checkpoint."""
    arch: str | None = None
    """Architecture of someone else's checkpoint, such as resnet56."""
    seed: int = 0
    """Seed of masks and noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    json: bool = False
    """Print the traces as JSON on stdout."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    patterns: list[str] = []
    while arguments and not arguments[0].startswith("-"):
        patterns, arguments = [*patterns, arguments[0]], arguments[1:]
    arguments = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith("--recipe=") else [word])
    ]
    recipe_name = "recommended-photos"
    if "--recipe" in arguments:
        place = arguments.index("--recipe")
        if place + 1 == len(arguments) or arguments[place + 1].startswith("--"):
            raise RecipeError("--recipe needs a name or a file")
        recipe_name, arguments = arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    recipe, options, _ = parse(
        "purify",
        PurifyRecipe,
        PurifyOptions,
        arguments if {"-h", "--help"} & set(arguments) else [recipe_name, *arguments],
        usage="robustmim purify FILE|FOLDER|GLOB … [--recipe RECIPE] [--key value …]",
    )
    if not patterns:
        raise RecipeError("name the images: robustmim purify FILE|FOLDER|GLOB … --out FOLDER")
    if options.size is not None and options.size < 1:
        raise RecipeError(f"size is {options.size}, but an image has at least one pixel")
    if options.arch is not None and options.classifier is None:
        raise RecipeError("--arch says what the weights in --classifier are of: name their file there")

    from robustmim.cli.console import Progress, output, say
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import make_purifier
    from robustmim.runs import append_line
    from robustmim.train.distributed import choose_device

    device = choose_device(options.device)
    classifier = open_classifier(options.classifier, options.arch, device=device) if options.classifier else None
    purifier = make_purifier(recipe, device=device, classifier=classifier)
    out = Path(options.out)
    paths, bad = _find(patterns, out)
    traces = out / "traces.jsonl"
    if paths:
        try:
            out.mkdir(parents=True, exist_ok=True)
            traces.write_text("")
        except OSError as error:
            raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from error
    progress = Progress(len(paths), unit="images", every=2.0)
    rows: list[dict[str, Any]] = []
    names = _output_names(paths)
    for number, path in enumerate(paths):
        try:
            row = _purify_file(path, out / names[path], purifier, classifier, options, device)
        except RobustmimError as error:
            bad.append(str(error))
            continue
        append_line(traces, row)
        rows.append(row)
        # What purifies in one pass has no steps to follow.
        note = f"  loss {row['loss'][0]:.5f} → {row['loss'][-1]:.5f}" if "loss" in row else ""
        progress.update(number + 1, path.name + note)
    if paths:
        say(f"{len(rows)} purified images and traces.jsonl are in {out}")
    if options.json:
        output(rows)
    for message in bad:
        say(f"not purified: {message}")
    return 1 if bad else 0


def _find(patterns: list[str], out: Path) -> tuple[list[Path], list[str]]:
    """Return the images that the patterns name, and a sentence for each pattern that finds none.

    What lies in the output folder is left out: it would be purified a second time, or overwritten by its own result.
    """
    from robustmim.data.images import find_images

    found: dict[Path, None] = {}
    bad: list[str] = []
    for pattern in patterns:
        try:
            matches = find_images([pattern])
        except InputError as error:
            bad.append(str(error))
            continue
        others = [path for path in matches if path.parent.resolve() != out.resolve()]
        if not others:
            bad.append(f"{pattern}: this lies in {out}, where the results go; choose another folder with --out")
        found.update(dict.fromkeys(others))
    return list(found), bad


def _output_names(paths: list[Path]) -> dict[Path, str]:
    """Give each image an output name: its own, with its folder's in front where two would collide."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name = f"{path.stem}.png"
        if name in taken:
            name = f"{path.parent.name}-{path.stem}.png"
        count = 2
        while name in taken:
            name, count = f"{path.stem}-{count}.png", count + 1
        taken.add(name)
        names[path] = name
    return names


def _side(purifier: Any) -> int | None:
    """Return the side of the images that a purifier's network takes; None where it takes any, or will say itself what it takes."""
    from robustmim.models.context_encoder import ContextEncoder
    from robustmim.models.mae import MaskedAutoencoder
    from robustmim.models.masked_denoiser import MaskedDenoiser, MaskedDiffusion
    from robustmim.purify.diffusion import DiffusionPurifier
    from robustmim.purify.traits import MaskedPurifier

    network = purifier.model if isinstance(purifier, MaskedPurifier | DiffusionPurifier) else None
    if isinstance(network, MaskedAutoencoder | ContextEncoder | MaskedDenoiser | MaskedDiffusion):
        return network.image_size
    return None


def _purify_file(
    path: Path, target: Path, purifier: Any, classifier: Any, options: PurifyOptions, device: Any
) -> dict[str, Any]:
    import torch

    from robustmim.data.images import fit_image, read_image, write_image
    from robustmim.purify.trace import Trace
    from robustmim.rng import content_ids, keys

    image = read_image(path)
    size = _side(purifier) if options.size is None else options.size
    if size is not None:
        image = fit_image(image, size)
    x = image[None].to(device).float() / 255
    trace = Trace()
    try:
        purified = purifier(x, keys=keys(options.seed, "purify", content_ids(x)), callback=trace)
    except RobustmimError as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:  # one image that does not fit into memory stops no other
        raise InputError(f"{path}: cannot be purified ({str(error).splitlines()[0]}); try a smaller --size") from error
    row: dict[str, Any] = {"file": str(path), "purified": str(target)} | trace.mean()
    if classifier is not None:
        with torch.no_grad():
            try:
                before, after = classifier(torch.cat([x, purified])).softmax(1).cpu()
            except RuntimeError as error:
                raise InputError(
                    f"{path}: the classifier cannot take {x.shape[-2]} × {x.shape[-1]} pixels ({error}); set --size"
                ) from error
        row |= {
            "class_before": int(before.argmax()),
            "confidence_before": round(float(before.max()), 4),
            "class_after": int(after.argmax()),
            "confidence_after": round(float(after.max()), 4),
        }
    write_image(target, purified[0].cpu())
    return row
