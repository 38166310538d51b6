"""Models as folders: `model.safetensors` beside `config.json`; and the ones this project trained, by name.

A config says what to build: {"kind": "classifier" | "masked-model" | "denoiser", "name": …, "options": {…}, "classes": […]}.
The zoo's weights are stored in half precision and computed with in single. What the demo and the recommended recipes need is in
the package; the rest is in the folder `zoo` of the repository, or wherever ROBUSTMIM_ZOO points.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from robustmim.config import ModelConfig
from robustmim.errors import CheckpointError, InputError, suggest
from robustmim.models.diffusers_unet import is_diffusers, open_diffusers
from robustmim.models.importer import load_into
from robustmim.registry import build, builder, names
from robustmim.runs import atomic, read_json, write_json

ZOO = Path(__file__).parent.parent / "zoo"
"""Models that come with the package."""
REPOSITORY_ZOO = Path(__file__).parents[3] / "zoo"
"""The other ones, where the package runs from a checkout."""
KINDS = ("classifier", "masked-model", "denoiser")
"""What can be saved as a model."""


def _shelves() -> list[Path]:
    own = os.environ.get("ROBUSTMIM_ZOO")
    return [ZOO, REPOSITORY_ZOO] + ([Path(own)] if own else [])


def zoo_names() -> list[str]:
    """List the models of the zoo: of the package, of the checkout it runs from, and of the folder ROBUSTMIM_ZOO."""
    return sorted({path.parent.name for shelf in _shelves() for path in shelf.glob("*/config.json")})


def find(name: str | Path) -> Path:
    """Return the folder of a model: a path to one, or a zoo name.

    Raises:
        CheckpointError: neither; the message gives the nearest zoo name.
    """
    for folder in (Path(name), *(shelf / str(name) for shelf in _shelves())):
        if (folder / "config.json").exists():
            return folder
    if Path(name).is_file():
        raise CheckpointError(
            f"{name} is a file, not a folder with a model: of a classifier, tell the architecture (--arch, `robustmim list "
            'classifiers`); of a masked autoencoder, make a folder (docs/quickstart.md, "Someone else\'s checkpoint")'
        )
    if Path(name).is_dir():
        raise CheckpointError(f"{name} holds no config.json: it is no finished run and no saved model")
    if len(Path(name).parts) > 1:
        raise CheckpointError(f"there is no folder {name}; a training that ends writes its model there")
    near = suggest(str(name), zoo_names(), listed=()) or "`robustmim list zoo` shows what is."
    raise CheckpointError(
        f"{name!r} is neither a folder with a model nor in the zoo. {near} More models than the "
        "package holds are in the folder zoo of its repository: ROBUSTMIM_ZOO may point at a copy of it."
    )


def saved_config(kind: str, model: ModelConfig, *, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the config a model is saved with: enough to build it again, and the names of its classes."""
    options = dict(model.options)
    if kind == "classifier":
        options = {"classes": len(classes)} | options
        kept = getattr(builder("classifier", model.name), "saved_options", None)
        if kept is not None:
            options = kept(options)
    return {"kind": kind, "name": model.name, "options": options, "classes": list(classes)}


def save_model(folder: Path | str, model: nn.Module, config: dict[str, Any], *, half: bool = False) -> None:
    """Write weights and config of a model into a folder that `load_model` and recipes can name.

    Args:
        folder: made if needed.
        model: whose parameters and buffers are kept.
        config: what to build it from: {"kind": …, "name": …, "options": {…}, "classes": […]}. A masked autoencoder tells its
            own: `model.config()`.
        half: store floats in 16 bits; they are computed with in 32.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors = {n: v.half() if v.dtype == torch.float32 else v for n, v in tensors.items()}
    with atomic(folder / "model.safetensors") as part:
        save_file(tensors, part)
    write_json(folder / "config.json", config)


def load_model(name: str | Path, *, kind: str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Build a saved model, in evaluation mode.

    Args:
        name: a zoo name, or a folder with `config.json` and `model.safetensors` (a finished run is one), or a DDPM pipeline
            of `diffusers`.
        kind: "classifier", "masked-model" or "denoiser", where only one will do.
        device: where to.

    Raises:
        CheckpointError: not there, damaged, of another kind, or weights that do not fit the config.
        EnvironmentUnusable: a pipeline of `diffusers`, which is not installed.
    """
    if is_diffusers(name):
        if kind not in (None, "denoiser"):
            raise CheckpointError(f"{name} is a denoiser, but a {kind} is needed here")
        return open_diffusers(name).to(device).eval()
    folder, config = find(name), about_model(name)
    if kind is not None and config["kind"] != kind:
        raise CheckpointError(f"{name} is a {config['kind']}, but a {kind} is needed here")
    model: nn.Module = build(config["kind"], config["name"], **config["options"])
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; the run has not finished, or the file was removed") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or train it again") from error
    load_into(model, {n: v.float() if v.dtype == torch.float16 else v for n, v in state.items()}, path=path)
    return model.to(device).eval()


def copy_weights(name: str | Path, model: nn.Module) -> None:
    """Start a model from the weights of a saved one of the same shape.

    Raises:
        CheckpointError: not there, damaged, or of another shape.
    """
    load_into(model, load_model(name).state_dict(), path=name)


def about_model(name: str | Path) -> dict[str, Any]:
    """Return a saved model's config: what it is, its classes, where it comes from.

    Raises:
        CheckpointError: not there, or the config does not say what to build.
    """
    path = find(name) / "config.json"
    config = read_json(path)
    whole = isinstance(config, dict) and config.get("kind") in KINDS
    if not (whole and isinstance(config.get("name"), str) and isinstance(config.get("options"), dict)):
        raise CheckpointError(
            f"{path} is not the config of a saved model: it must hold a kind ({', '.join(KINDS)}), a name and options"
        )
    return {"classes": []} | config


def open_classifier(name: str | Path, arch: str | None = None, *, device: torch.device | str = "cpu") -> nn.Module:
    """Return a classifier over [0, 1] images, in evaluation mode.

    Args:
        name: a zoo name, a folder, an architecture that comes with weights (efficientnet-lite0), or, with `arch`, someone
            else's file of weights; a file that is not there is looked for in the folder ROBUSTMIM_MODELS.
        arch: registered classifier that the file belongs to.
        device: where to.

    Raises:
        CheckpointError: see `load_model` and `robustmim.models.importer`.
        EnvironmentUnusable: the package with the weights is missing.
    """
    if arch is not None:
        from robustmim.models.importer import load_classifier

        path, models = Path(name), os.environ.get("ROBUSTMIM_MODELS")
        if models and not path.exists() and (Path(models) / path).exists():
            path = Path(models) / path
        return load_classifier(path, arch).to(device).eval()
    if (
        str(name) in names("classifier")
        and "pretrained" in inspect.signature(builder("classifier", str(name))).parameters
    ):
        return build("classifier", str(name), pretrained=True).to(device).eval()
    return load_model(name, kind="classifier", device=device)
