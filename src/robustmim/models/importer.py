"""The one importer of other people's files: it reads, renames, checks, and says in a sentence what does not fit.

Files are read as data. Nothing in them is run: pickled files go through `torch.load(..., weights_only=True)`, and one
that needs more than tensors is refused.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustmim.errors import CheckpointError
from robustmim.models.adapters import Normalised
from robustmim.models.hugging_face import convert_hugging_face, is_hugging_face
from robustmim.models.mae import MaskedAutoencoder, Target
from robustmim.models.normalise import IMAGENET, Statistics
from robustmim.registry import build, builder

MaeFamily = Literal["encoder-only", "with-decoder", "not-mae"]

_PICKLED = (".pth", ".pt", ".th", ".bin")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")
_PREFIXES = ("module.", "_orig_mod.")
# Heads of the official encoders by width: ViT-T, S, B, L, H.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = 16
_OFFICIAL_NAMES: dict[str, Target] = {
    r"mae_visualize_vit_(base|large|huge)(_ganloss)?\.pth": "pixels",
    r"mae_pretrain_vit_(base|large|huge)_full\.pth": "normalised",
}


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file can make the reader fail in any way
        foreign = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path} is refused: to read it, Python objects ({foreign[1]}) would have to be unpickled, which can run "
                "any program hidden in the file. Where you trust it, save its tensors alone: "
                "torch.save(model.state_dict(), …), or better safetensors"
            ) from error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is refused: it is a TorchScript program, not weights; save torch.jit.load(…).state_dict() instead"
            ) from error
        raise CheckpointError(
            f"{path} is damaged or no file of weights ({type(error).__name__}); compare its size and checksum with the "
            "source's, and fetch it again"
        ) from error


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read a file of weights as a flat dictionary of tensors, on the CPU.

    Wrapping entries (`state_dict`, `model`, `model_state_dict`, `model_ema`, `net`) are opened; the prefixes that
    DataParallel and `torch.compile` put before every name are taken off.

    Args:
        path: `.safetensors`, or a pickled `.pth`, `.pt`, `.th` or `.bin`.

    Raises:
        CheckpointError: missing, damaged, of an unknown kind, holding no tensors, or needing objects unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not there, or no file; give the path of a file of weights")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or no safetensors file: {error}; fetch it again") from error
    elif path.suffix in _PICKLED:
        content = _read_pickled(path)
    else:
        raise CheckpointError(
            f"{path} ends in none of .safetensors, {', '.join(_PICKLED)}; weights come as one of these"
        )
    entries = list(content) if isinstance(content, Mapping) else []
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = f"its entries are {_some(entries)}" if entries else f"it holds a {type(content).__name__}"
        raise CheckpointError(f"{path} holds no state dictionary: {found}; save model.state_dict() alone")
    return {_bare(str(name)): value for name, value in content.items()}


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _some(names: list[Any], limit: int = 3) -> str:
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, path: Path | str) -> None:
    """Load a state dictionary into a module, every name and shape fitting.

    A `Normalised` wrapper takes the names of the model inside it. Missing `num_batches_tracked` counters, which old
    files lack, are not complained about.

    Args:
        module: changed in place.
        state: names and tensors.
        path: where they come from, for the message.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped entries; the message names the first of each.
    """
    if isinstance(module, Normalised) and not all(name.startswith("model.") for name in state):
        module = module.model
    own = module.state_dict()
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    head = _last_linear(module)
    if head is not None and wrong and set(wrong) <= {f"{head}.weight", f"{head}.bias"} and state[wrong[0]].ndim:
        theirs, ours = len(state[wrong[0]]), len(own[wrong[0]])
        if theirs != ours:
            raise CheckpointError(
                f"{path} is of a classifier with {theirs} classes, but this one has {ours}; set classes: {theirs}, or "
                "take a file that was trained on your data set"
            )
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    complaints = []
    if missing:
        complaints.append(f"it lacks {_some(missing)}")
    if unexpected:
        complaints.append(f"it has {_some(unexpected)}, which the model has not")
    if wrong:
        shapes = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in wrong]
        complaints.append(f"of another shape are {_some(shapes)}")
    if complaints:
        raise CheckpointError(f"{path} does not fit {type(module).__name__}: {'; '.join(complaints)}")
    module.load_state_dict(state)


def _last_linear(module: nn.Module) -> str | None:
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return names[-1] if names else None


def load_classifier(path: Path | str, arch: str, *, classes: int | None = None, **options: Any) -> nn.Module:
    """Build a registered classifier and load somebody's file into it, in evaluation mode.

    Args:
        path: see `read_state`.
        arch: registered name, such as "resnet56".
        classes: number of logits; None takes it from the file's last linear layer.
        options: further options of the architecture.

    Raises:
        CheckpointError: see `read_state` and `load_into`.
        RecipeError: no such architecture, or an option it does not have.
    """
    state = read_state(path)
    accepted = inspect.signature(builder("classifier", arch)).parameters
    if "pretrained" in accepted:
        options = {"pretrained": False} | options
    if classes is not None:
        options["classes"] = classes
    model: nn.Module = build("classifier", arch, **options)
    inner = model.model if isinstance(model, Normalised) else model
    head = _last_linear(inner)
    weight = state.get(f"{head}.weight")
    if classes is None and "classes" in accepted and weight is not None and weight.ndim == 2:
        found = len(weight)
        if found != len(inner.state_dict()[f"{head}.weight"]):
            model = build("classifier", arch, classes=found, **options)
    load_into(model, state, path=path)
    return model.eval()


def mae_family(state: Mapping[str, Tensor]) -> MaeFamily:
    """Tell by its (official) names what a state dictionary is: an MAE with its decoder, its encoder alone, or neither.

    The two families with a decoder, one predicting pixels and one predicting normalised patches, have the same names
    and shapes: no key tells them apart.
    """
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= state.keys():
        return "not-mae"
    return "with-decoder" if {"mask_token", "decoder_pred.weight"} <= state.keys() else "encoder-only"


def official_target(path: Path | str) -> Target | None:
    """Return what an official MAE file predicts, by its name; None for any other name."""
    for pattern, target in _OFFICIAL_NAMES.items():
        if re.fullmatch(pattern, Path(path).name):
            return target
    return None


def _hugging_face_settings(path: Path) -> dict[str, Any]:
    """Read the `config.json` that transformers puts beside a model; {} where there is none."""
    beside = path.with_name("config.json")
    if not beside.is_file():
        return {}
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{beside} is damaged: {error}; fetch it again, or move it away") from error
    return settings if isinstance(settings, dict) else {}


def _depth(state: Mapping[str, Tensor], stem: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{stem}.")})


def load_mae(
    path: Path | str,
    *,
    target: Target | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    statistics: Statistics = IMAGENET,
) -> MaskedAutoencoder:
    """Load somebody's masked autoencoder, in evaluation mode; all its sizes are read off the shapes.

    Files of transformers' ViTMAEForPreTraining are renamed; heads and target then come from the `config.json` beside.

    Args:
        path: see `read_state`.
        target: what the decoder predicts, "pixels" or "normalised" patches; None goes by the official file's name.
        heads: of the encoder; None takes the usual number for its width.
        decoder_heads: of the decoder; None takes the official 16.
        statistics: mean and deviation it was trained with; the official files' by default.

    Raises:
        CheckpointError: see `read_state` and `load_into`; also a file without decoder, one that is no MAE, an unknown
            target, or a number of heads that cannot be told.
    """
    path = Path(path)
    state = read_state(path)
    if is_hugging_face(state):
        state = convert_hugging_face(state)
        settings = _hugging_face_settings(path)
        heads = heads or settings.get("num_attention_heads")
        decoder_heads = decoder_heads or settings.get("decoder_num_attention_heads")
        if target is None and "norm_pix_loss" in settings:
            target = "normalised" if settings["norm_pix_loss"] else "pixels"
    family = mae_family(state)
    if family == "not-mae":
        raise CheckpointError(f"{path} is no masked autoencoder: its entries are {_some(list(state))}")
    if family == "encoder-only":
        raise CheckpointError(
            f"{path} holds the encoder of a masked autoencoder without its decoder, and so cannot reconstruct anything; "
            "get mae_visualize_vit_base.pth, _large.pth or _huge.pth, the official files with the pixel decoder"
        )
    target = target or official_target(path)
    if target is None:
        raise CheckpointError(
            f"nothing in {path} tells whether its decoder predicts pixels or normalised patches; say target='pixels' "
            "(as mae_visualize_vit_*.pth do) or target='normalised' (trained with norm_pix_loss, as "
            "mae_pretrain_vit_*_full.pth are)"
        )
    model = MaskedAutoencoder(
        **_sizes(state, path, heads=heads, decoder_heads=decoder_heads), target=target, statistics=statistics
    )
    load_into(model, state, path=path)
    return model.eval()


def _sizes(state: Mapping[str, Tensor], path: Path, *, heads: int | None, decoder_heads: int | None) -> dict[str, Any]:
    """Read a masked autoencoder's sizes off its shapes."""
    try:
        width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
        decoder_width = state["mask_token"].shape[-1]
        side = isqrt(state["pos_embed"].shape[1] - 1)
        square = side * side + 1 == state["pos_embed"].shape[1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is no masked autoencoder of the official form: {error}") from error
    if not square:
        raise CheckpointError(f"{path} is of a model for oblong images; only square ones are supported")
    heads = heads or _HEADS.get(width)
    if heads is None:
        raise CheckpointError(f"{path} has an encoder {width} wide, whose number of heads no table tells; give heads=…")
    decoder_heads = decoder_heads or _DECODER_HEADS
    for count, of, option in ((heads, width, "heads"), (decoder_heads, decoder_width, "decoder_heads")):
        if of % count:
            raise CheckpointError(f"{path}: a width of {of} cannot be split over {count} heads; give {option}=…")
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": _depth(state, "blocks"),
        "heads": heads,
        "decoder_width": decoder_width,
        "decoder_depth": _depth(state, "decoder_blocks"),
        "decoder_heads": decoder_heads,
        "mlp_ratio": hidden / width,
    }
