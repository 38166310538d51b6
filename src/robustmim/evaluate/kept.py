"""Adversarial images that an evaluation keeps: one file for each attack and budget, whatever was killed or shared on the way.

A file holds "id" int64 `[n]`, "label" int64 `[n]` and "perturbation" float16 `[n, C, H, W]`, image + perturbation being what the
attack found, up to 2⁻¹² of the perturbation's size; samples that were spared the attack are not in it. Its metadata names
attack, budget and norm.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from robustmim.data.loader import Batch
from robustmim.radius import Radius, radius_text
from robustmim.runs import atomic
from robustmim.types import Images

FOLDER = "adversarial"


class KeptImages:
    """What goes into the folder `adversarial` of a run.

    The folder is there before the run has any record: it says that none of them lacks its images.

    Args:
        run: folder of the run.
        norm: of the attacks.
    """

    def __init__(self, run: Path, norm: str) -> None:
        self.folder, self.norm = run / FOLDER, norm
        self.folder.mkdir(exist_ok=True)

    def keep(self, attack: str, radius: Radius, part: Batch, found: Images) -> None:
        """Write what an attack found for some samples, before their records: a run that is resumed then lacks none.

        Args:
            attack: its name.
            radius: the budget.
            part: clean images, labels and ids of the samples.
            found: adversarial images, in the same order.
        """
        tensors = {
            "id": part.ids.cpu(),
            "label": part.labels.cpu(),
            "perturbation": (found - part.images).to(torch.float16).cpu().contiguous(),
        }
        name = f"{_file_name(attack, radius)}.{int(part.ids[0])}.piece"
        self._write(self.folder / name, tensors, {"attack": attack, "radius": radius_text(radius), "norm": self.norm})

    def merge(self) -> None:
        """Put the parts of each attack and budget into one file, in the order of the ids; called once all are there."""
        parts: dict[str, list[Path]] = {}
        for path in self.folder.glob("*.piece"):
            parts.setdefault(path.name.rsplit(".", 2)[0], []).append(path)
        for name, paths in parts.items():
            whole = self.folder / f"{name}.safetensors"
            loaded = [load_file(path) for path in ([whole] if whole.exists() else []) + sorted(paths)]
            joined = {key: torch.cat([one[key] for one in loaded]) for key in loaded[0]}
            # A part that was computed twice, before and after a kill, is the same both times.
            ids, order = joined["id"].numpy(), joined["id"].argsort(stable=True).tolist()
            kept = [place for at, place in enumerate(order) if at == 0 or ids[place] != ids[order[at - 1]]]
            with safe_open(paths[0], "pt") as file:
                metadata = file.metadata()
            self._write(whole, {key: value[kept].contiguous() for key, value in joined.items()}, metadata)
            for path in paths:
                path.unlink()

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        with atomic(path) as part:
            save_file(tensors, part, metadata=metadata)


def _file_name(attack: str, radius: Radius) -> str:
    return quote(f"{attack} {radius_text(radius)}", safe=" ,()+=")
