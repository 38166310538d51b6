"""Several classifiers that answer as one, on an image and, if asked, on its mirror image.

Networks of a few minutes' training are wrong on different images, and an attack must turn most of them at once. Trained along
(`robustmim train` with `model: {name: ensemble, …}`), they are one wider network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import RecipeError
from robustmim.models.zoo import about_model, load_model
from robustmim.registry import build, register
from robustmim.types import Images


@register("classifier", "ensemble")
class Ensemble(nn.Module):
    """Mean of the log-probabilities of the members, each on every view: 1/(M V) Σ_m Σ_v log p_m(y | v(x)).

    Args:
        members: of each a zoo name or folder, whose weights it begins with, or name and options of a registered classifier:
            {"name": …, "options": {…}}.
        classes: number of logits of each.
        mirrored: ask about the mirror image as well; not in training mode, where images come mirrored at random.

    Raises:
        RecipeError: no member, or members that tell different numbers of classes apart.
        CheckpointError: a member cannot be loaded.
    """

    def __init__(self, *, members: tuple[str | dict[str, Any], ...], classes: int = 10, mirrored: bool = False) -> None:
        super().__init__()
        if not members:
            raise RecipeError("ensemble: name at least one member")
        for member in architectures(members):
            if member["options"].get("classes", classes) != classes:
                raise RecipeError(
                    f"ensemble: all members are to tell {classes} classes apart, but {member['name']} has "
                    f"{member['options']['classes']}"
                )
        self.members = nn.ModuleList(
            load_model(member, kind="classifier")
            if isinstance(member, str)
            else build("classifier", member["name"], **member["options"])
            for member in members
        )
        self.mirrored, self.classes = mirrored, classes

    @staticmethod
    def saved_options(options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that a saved ensemble is built again with, whose weights lie beside them."""
        return options | {"members": architectures(options["members"])}

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return the mean log-probabilities of images in [0, 1]."""
        views = [x, x.flip(-1)] if self.mirrored and not self.training else [x]
        asked = torch.cat(views)
        found = torch.stack([torch.log_softmax(member(asked), dim=1) for member in self.members]).mean(0)
        return found.view(len(views), -1, self.classes).mean(0)


def architectures(members: Sequence[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """Return name and options of each member.

    Raises:
        CheckpointError: a member that is named is not there.
    """
    return [
        {key: about_model(member)[key] for key in ("name", "options")} if isinstance(member, str) else member
        for member in members
    ]
