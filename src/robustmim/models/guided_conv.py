"""Guided convolution: the masked convolution, told what a classifier believes of the image. Not in the papers.

A classifier that withstands attacks knows what an image shows; one that others trained, and that must stay where it is, does
not once it is attacked. The guided convolution paints between the two: it has the guide's belief on every level, as a
class-conditional generator has its label, and is trained through the classifier that stays (`robustmim robustify`). How
much it paints, and when it leaves the image alone, is learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustmim.errors import RecipeError
from robustmim.models.importer import load_into
from robustmim.models.masked import freeze
from robustmim.models.masked_conv import Conditions, MaskedConvolution
from robustmim.models.zoo import about_model, load_model
from robustmim.registry import build, register


@register("masked-model", "guided-conv")
class GuidedConvolution(MaskedConvolution):
    """Predict pixels of [0, 1] images as `MaskedConvolution` does, told a classifier's belief; begins without heeding it.

    The guide sees what the convolution sees: hidden pixels reach it only as they were filled. Its weights are kept with the
    model's and are not trained.

    Args:
        guide: name and options of a registered classifier: {"name": …, "options": {"classes": …, …}}.
        patch_size, widths, blocks: see `MaskedConvolution`.
    """

    def __init__(
        self,
        *,
        guide: dict[str, Any],
        patch_size: int = 1,
        widths: tuple[int, ...] = (48, 96),
        blocks: tuple[int, ...] = (2, 2),
    ) -> None:
        super().__init__(patch_size=patch_size, widths=widths, blocks=blocks)
        classes = guide["options"]["classes"]
        self.told_down = nn.ModuleList(nn.Linear(classes, width, bias=False) for width in widths)
        self.told_up = nn.ModuleList(nn.Linear(classes, width, bias=False) for width in widths[:-1])
        for layer in [*self.told_down, *self.told_up]:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
        self.guide = freeze(build("classifier", guide["name"], **guide["options"]))

    def train(self, mode: bool = True) -> GuidedConvolution:
        """Set the mode of everything but the guide, whose batch norms keep their statistics."""
        super().train(mode)
        self.guide.eval()
        return self

    def conditions(self, seen: Tensor) -> tuple[Conditions, Conditions]:
        """Return what the guide's probabilities add to the features of each level, on the way down and on the way up.

        Args:
            seen: `[B, 3, H, W]`, pixels minus a half, of a size that the guide takes.
        """
        belief = torch.softmax(self.guide(seen + 0.5), dim=1)
        down, up = ([layer(belief)[..., None, None] for layer in told] for told in (self.told_down, self.told_up))
        return down, up


def open_guided(
    masked_model: str | Path, guide: str | Path, *, device: torch.device | str = "cpu"
) -> tuple[GuidedConvolution, dict[str, Any]]:
    """Put a saved guide into a saved masked convolution; return the model and the config that it is saved with.

    Args:
        masked_model: zoo name or folder of a masked convolution, whose predictions the model begins with; one that has a guide
            already is told by the new one as it was by its own.
        guide: zoo name or folder of a classifier.
        device: where to.

    Raises:
        CheckpointError: one of the two is not there, damaged, or of another kind.
        RecipeError: a masked model that is no masked convolution.
    """
    plain, about = load_model(masked_model, kind="masked-model"), about_model(masked_model)
    if about["name"] not in ("masked-conv", "guided-conv"):
        raise RecipeError(f"guide: {masked_model} is a {about['name']}; only a masked-conv can be given a guide")
    classifier, believed = load_model(guide, kind="classifier"), about_model(guide)
    options = about["options"] | {"guide": {"name": believed["name"], "options": believed["options"]}}
    model: GuidedConvolution = build("masked-model", "guided-conv", **options)
    own = {name: value for name, value in plain.state_dict().items() if not name.startswith("guide.")}
    state = model.state_dict() | own
    state |= {f"guide.{name}": value for name, value in classifier.state_dict().items()}
    load_into(model, state, path=masked_model)
    return model.to(device).eval(), about | {"name": "guided-conv", "options": options}
