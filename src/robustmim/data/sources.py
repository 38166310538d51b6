import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@runtime_checkable
class Source(Protocol):
    name: str
    classes: tuple
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int: ...
    def fetch(self, indices): ...


class ResidentSource:
    def __init__(self, name, classes, images, labels, ids):
        self.name, self.classes, self.images, self.labels, self.ids = name, classes, images, labels, ids

    def __len__(self):
        return len(self.labels)

    def fetch(self, i):
        return self.images[i]

    def to(self, d):
        return self


def load(name, split, *, root=None, size=None, resize=None, limit=None, part="all"):
    r = Path(root or os.environ["ROBUSTMIM_DATA"]) / "cifar-10-batches-bin"
    fs = ["test_batch.bin"] if split == "test" else [f"data_batch_{k}.bin" for k in range(1, 6)]
    a = np.concatenate([np.fromfile(r / f, dtype=np.uint8).reshape(-1, 3073) for f in fs])
    x = torch.from_numpy(a[:, 1:].reshape(-1, 3, 32, 32).copy())[:limit]
    y = torch.from_numpy(a[:, 0].astype(np.int64))[:limit]
    return ResidentSource(
        name,
        tuple(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]),
        x,
        y,
        torch.arange(len(x)),
    )
