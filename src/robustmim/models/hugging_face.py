"""Names of transformers' ViTMAEForPreTraining, turned into those of the official MAE."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from robustmim.errors import CheckpointError

# The spellings that transformers has used (versions up to 4, and from 5), and the official name of each.
_TOP = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layernorm": "norm",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
}
_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "output.dense": "mlp.fc2",
}
_QUERY_KEY_VALUE = {
    "attention.q_proj": 0,
    "attention.k_proj": 1,
    "attention.v_proj": 2,
    "attention.attention.query": 0,
    "attention.attention.key": 1,
    "attention.attention.value": 2,
}
_LAYER_NAME = re.compile(r"(vit\.(?:encoder\.layer|layers)|decoder\.decoder_layers)\.(\d+)\.(.+)\.(weight|bias)")


def is_hugging_face(state: dict[str, Tensor]) -> bool:
    """Tell whether the names are those of transformers' ViTMAE models."""
    return "vit.embeddings.cls_token" in state


def _top(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    stem, _, last = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{last}"
    raise CheckpointError(f"{name!r} is no parameter of a ViTMAEForPreTraining; is the file of another model?")


def convert_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ViTMAEForPreTraining state dictionary, of any version of transformers, to the official MAE's names.

    Query, key and value are joined to one `qkv`, in this order.

    Raises:
        CheckpointError: a name that ViTMAE does not have, or a layer that lacks its query, key or value.
    """
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        layer = _LAYER_NAME.fullmatch(name)
        if layer is None:
            converted[_top(name)] = value
            continue
        where, index, inner, kind = layer.groups()
        block = f"{'decoder_blocks' if where.startswith('decoder') else 'blocks'}.{index}"
        if inner in _QUERY_KEY_VALUE:
            parts.setdefault(f"{block}.attn.qkv.{kind}", {})[_QUERY_KEY_VALUE[inner]] = value
        elif inner in _LAYER:
            converted[f"{block}.{_LAYER[inner]}.{kind}"] = value
        else:
            raise CheckpointError(f"{name!r} is no parameter of a ViTMAEForPreTraining; is the file of another model?")
    for name, three in parts.items():
        if len(three) != 3:
            raise CheckpointError(f"{name!r} needs a query, a key and a value, but the file has {len(three)} of them")
        converted[name] = torch.cat([three[0], three[1], three[2]])
    return converted
