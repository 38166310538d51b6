"""Watch a purification: loss, attention, distance and saturation at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustmim.models.masked import MaskedModel, with_draws
from robustmim.models.masking import random_mask
from robustmim.models.record import AttentionRecorder
from robustmim.models.vit import Attention
from robustmim.rng import Keys
from robustmim.types import Images, PerSample


def variation(maps: Sequence[Tensor], reference: Sequence[Tensor]) -> PerSample:
    """Return the variation `[B]` of attention matrices `[B, heads, T, T]`, one a layer, against those of a reference.

    The Frobenius norm of their difference, averaged over layers and heads; differentiable.
    """
    per_layer = [(a - b).square().sum((-2, -1)).sqrt().mean(1) for a, b in zip(maps, reference, strict=True)]
    return torch.stack(per_layer).mean(0)


def attention_matrix_variation(
    model: MaskedModel, x: Images, reference: Images, *, keys: Keys, ratio: float = 0.5
) -> PerSample | None:
    """Return the attention matrix variation (AMV) of `x` against `reference`; None for a model without attention.

    That of the decoder's attention matrices under the same mask (AMRM-Pure, section 3.1 and Figure 4: decoder attention, mask
    ratio 0.5); see `variation`.
    """
    if not isinstance(model, nn.Module) or not any(isinstance(layer, Attention) for layer in model.modules()):
        return None
    grid = model.grid(*x.shape[-2:])
    mask = random_mask(keys.fold("amv"), grid, ratio)
    drawn = with_draws(model, keys.fold("amv"))
    with torch.no_grad(), AttentionRecorder(model, prefix="decoder_blocks") as recorder:
        drawn.reconstruct(x, mask)
        own = list(recorder.maps)
        recorder.clear()
        drawn.reconstruct(reference, mask)
    return variation(own, recorder.maps)


class Trace:
    """A callback that keeps, for each step and sample, what the purification did.

    After the run, `rows` holds one dict a step of lists over the batch: "loss"; "distance", how far the image has moved,
    in the ball's norm; "saturation", the fraction of pixels at the edge of the η-ball (l∞; for l2, 1.0 at the edge); and
    "amv" against `reference`, where the model has attention and a reference is given.

    Args:
        model: the masked model, for the attention.
        reference: the images that attention is compared with (the clean ones, where they are known).
        keys: for the mask of the attention.
    """

    def __init__(
        self, model: MaskedModel | None = None, *, reference: Images | None = None, keys: Keys | None = None
    ) -> None:
        self._model, self._reference, self._keys = model, reference, keys
        self.rows: list[dict[str, list[float]]] = []

    def __call__(self, state: dict[str, Any]) -> None:
        """Take down one step."""
        x, center, ball = state["x"], state["center"], state["ball"]
        distance = ball.distance(x, center)
        if ball.norm == "linf":
            saturation = ((x - center).abs() >= ball.eps * (1 - 1e-4)).float().mean((1, 2, 3))
        else:
            saturation = (distance >= ball.eps * (1 - 1e-4)).float()
        row: dict[str, Tensor] = {"loss": state["value"], "distance": distance, "saturation": saturation}
        if self._model is not None and self._reference is not None and self._keys is not None:
            amv = attention_matrix_variation(self._model, x, self._reference, keys=self._keys)
            if amv is not None:
                row["amv"] = amv
        self.rows.append({name: value.tolist() for name, value in row.items()})

    def mean(self) -> dict[str, list[float]]:
        """Return each curve averaged over the batch, one value a step."""
        if not self.rows:
            return {}
        return {name: [sum(row[name]) / len(row[name]) for row in self.rows] for name in self.rows[0]}
