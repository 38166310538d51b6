"""From a masked autoencoder to a classifier: the encoder stays, the decoder goes, the head is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from robustmim.errors import CheckpointError
from robustmim.models.zoo import load_model


@runtime_checkable
class HasEncoder(Protocol):
    """A masked autoencoder, or a classifier of its family: their encoders are alike, parameter by parameter.

    Attributes:
        encoder_parts: what the names of the encoder's parameters begin with; a family is known by them.
        encoder_norm: name of the norm behind the encoder.
    """

    encoder_parts: tuple[str, ...]
    encoder_norm: str

    def encoder_sizes(self) -> dict[str, Any]:
        """Return what must agree, in the words of a recipe's options."""


def load_encoder(name: str | Path, model: nn.Module, *, keep_norm: bool = False) -> None:
    """Start a classifier from the encoder of a saved masked autoencoder; see `take_encoder`.

    Args:
        name: zoo name or folder of the autoencoder.
        model: the classifier.
        keep_norm: whether the encoder's final norm goes before the head.

    Raises:
        CheckpointError: not there, damaged, no autoencoder, or of other sizes; the message says which, and what to set.
    """
    take_encoder(load_model(name, kind="masked-model"), model, name=str(name), keep_norm=keep_norm)


def take_encoder(source: nn.Module, model: nn.Module, *, name: str, keep_norm: bool = False) -> None:
    """Start a classifier from the encoder of a masked autoencoder, as MAE and MIMIR fine-tune.

    Embeddings and blocks are taken over. The final norm is dropped: the classifier has one of its own, on the mean of the
    patches' tokens, which starts anew unless it is to be kept. So does the head; positions, fixed before, are trained from now on.

    Args:
        source: the autoencoder.
        model: the classifier.
        name: what messages call the autoencoder.
        keep_norm: start the norm before the head from the encoder's final one.

    Raises:
        CheckpointError: no autoencoder, no classifier of its family, or other sizes; the message says what to set.
    """
    if not isinstance(source, HasEncoder):
        raise CheckpointError(
            f"{name} is a {type(source).__name__}, which has no encoder of its own; a masked autoencoder has"
        )
    if not isinstance(model, HasEncoder) or model.encoder_parts != source.encoder_parts:
        raise CheckpointError(
            f"{name} is a {type(source).__name__}, whose encoder does not fit a {type(model).__name__}; set model.name to vit "
            "for a masked autoencoder of that kind"
        )
    theirs, ours = source.encoder_sizes(), model.encoder_sizes()
    if wrong := {key: value for key, value in theirs.items() if value != ours[key]}:
        asked = ", ".join(f"{key}: {value}" for key, value in wrong.items())
        has = ", ".join(f"{key}: {ours[key]}" for key in wrong)
        raise CheckpointError(
            f"the encoder of {name} does not fit the recipe's classifier, which has {has}; set model.options to {{{asked}}}"
        )
    state = {key: value for key, value in source.state_dict().items() if key.startswith(source.encoder_parts)}
    if keep_norm:
        norm = source.get_submodule(source.encoder_norm).state_dict()
        state |= {f"{model.encoder_norm}.{part}": value for part, value in norm.items()}
    missing, _ = model.load_state_dict(state, strict=False)
    assert not any(key.startswith(model.encoder_parts) for key in missing)
