"""`robustmim sample MODEL`: images drawn from a diffusion model, as one picture: what it has learned, at a glance."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from robustmim.config import Solver
from robustmim.errors import CheckpointError, RecipeError
from robustmim.recipe import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How many images, and how they are drawn."""

    out: str = "samples.png"
    """The picture (PNG): the images in rows, as near to a square as their number allows, or a row for each class."""
    count: int = 64
    """Number of images; with each_class, of each class."""
    steps: int = 18
    """Noise levels."""
    solver: Solver = "heun"
    """Reverse process: heun and euler are deterministic given the start noise; ancestral and sde are not."""
    label: int | None = None
    """Class of all images, for a model with classes; default: none."""
    each_class: bool = False
    """A row for each class that the model knows; the images of a column begin with the same noise."""
    seed: int = 0
    """Seed of the noise; image i is the same whatever the count."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Nothing:
    """Draw images from a diffusion model: a run folder, or a name of the zoo."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    name: str | None = None
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    _, options, _ = parse(
        "sample", _Nothing, SampleOptions, arguments, usage="robustmim sample MODEL [--out FILE.png] [--key value …]"
    )
    if name is None:
        raise RecipeError("name a diffusion model: robustmim sample runs/NAME")
    if options.count < 1:
        raise RecipeError(f"count is {options.count}, but a picture takes at least one image")
    if options.each_class and options.label is not None:
        raise RecipeError("label is one class and each_class is all of them: leave one out")

    import torch
    from einops import rearrange

    from robustmim.cli.console import say
    from robustmim.data.images import write_image
    from robustmim.models.edm import ImageDenoiser
    from robustmim.models.sampling import sample
    from robustmim.models.zoo import load_model
    from robustmim.rng import keys
    from robustmim.train.distributed import choose_device

    device = choose_device(options.device)
    model = load_model(name, device=device)
    if not isinstance(model, ImageDenoiser):
        raise CheckpointError(f"{name} is no diffusion model: it draws no images")
    if options.each_class and not model.classes:
        raise RecipeError(f"{name} knows no classes: leave each_class out")
    if options.label is not None and not 0 <= options.label < model.classes:
        raise RecipeError(f"{name} knows {model.classes} classes, numbered from 0; there is no class {options.label}")
    number = torch.arange(options.count, device=device)
    columns = math.ceil(math.sqrt(options.count))
    labels = None
    if options.each_class:
        labels = torch.arange(model.classes, device=device).repeat_interleave(options.count)
        number, columns = number.repeat(model.classes), options.count
    elif options.label is not None:
        labels = torch.full_like(number, options.label)
    images = sample(
        model,
        keys(options.seed, "sample", number),
        (3, model.image_size, model.image_size),
        steps=options.steps,
        solver=options.solver,
        labels=labels,
    ).cpu()
    missing = -len(images) % columns
    images = torch.cat([images, torch.ones(missing, *images.shape[1:])])
    write_image(Path(options.out), rearrange(images, "(r c) channels h w -> channels (r h) (c w)", c=columns))
    say(f"{len(number)} images are in {options.out}")
    return 0
