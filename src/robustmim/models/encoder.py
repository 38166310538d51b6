"""From a masked autoencoder to a classifier: the encoder stays, the decoder goes, the head is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from robustmim.errors import CheckpointError
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.vit import Block, VisionTransformer
from robustmim.models.zoo import load_model


def _sizes(model: MaskedAutoencoder | VisionTransformer) -> dict[str, Any]:
    """Return what must agree, in the words of a recipe's options."""
    first = model.blocks[0]
    assert isinstance(first, Block)
    width = first.attn.qkv.in_features
    statistics = [
        [round(float(v), 4) for v in part.flatten()] for part in (model.normalise.mean, model.normalise.deviation)
    ]
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "width": width,
        "depth": len(model.blocks),
        "heads": first.attn.heads,
        "mlp_ratio": first.mlp.fc1.out_features / width,
        "statistics": statistics,
    }


def load_encoder(name: str | Path, model: nn.Module, *, keep_norm: bool = False) -> None:
    """Start a ViT from the encoder of a saved masked autoencoder; see `take_encoder`.

    Args:
        name: zoo name or folder of the autoencoder.
        model: the classifier.
        keep_norm: whether the encoder's final norm goes before the head.

    Raises:
        CheckpointError: not there, damaged, no autoencoder, or of other sizes; the message says which, and what to set.
    """
    take_encoder(load_model(name, kind="masked-model"), model, name=str(name), keep_norm=keep_norm)


def take_encoder(source: nn.Module, model: nn.Module, *, name: str, keep_norm: bool = False) -> None:
    """Start a ViT from the encoder of a masked autoencoder, as MAE and MIMIR fine-tune.

    Embeddings and blocks are taken over. The final norm is dropped: the classifier has one of its own, on the mean of the
    patches' tokens, which starts anew unless it is to be kept. So does the head; positions, fixed before, are trained from now on.

    Args:
        source: the autoencoder.
        model: the classifier.
        name: what messages call the autoencoder.
        keep_norm: start the norm before the head from the encoder's final one.

    Raises:
        CheckpointError: no autoencoder, no ViT, or other sizes; the message says what to set.
    """
    if not isinstance(source, MaskedAutoencoder):
        raise CheckpointError(
            f"{name} is a {type(source).__name__}, which has no encoder of its own; a masked autoencoder has"
        )
    if not isinstance(model, VisionTransformer):
        raise CheckpointError(
            f"{name} is a masked autoencoder, whose encoder fits a vision transformer, not a {type(model).__name__}; set "
            "model.name to vit"
        )
    theirs, ours = _sizes(source), _sizes(model)
    if wrong := {key: value for key, value in theirs.items() if value != ours[key]}:
        asked = ", ".join(f"{key}: {value}" for key, value in wrong.items())
        has = ", ".join(f"{key}: {ours[key]}" for key in wrong)
        raise CheckpointError(
            f"the encoder of {name} does not fit the recipe's classifier, which has {has}; set model.options to {{{asked}}}"
        )
    kept = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
    state = {key: value for key, value in source.state_dict().items() if key.startswith(kept)}
    if keep_norm:
        state |= {f"fc_norm.{part}": value for part, value in source.norm.state_dict().items()}
    missing, _ = model.load_state_dict(state, strict=False)
    assert all(key.startswith(("fc_norm.", "head.")) for key in missing)
