"""Checkpoints other people trained reach the accuracy they were published with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustmim.data.sources import load
from robustmim.models.importer import load_classifier


@pytest.mark.data
@pytest.mark.models
@pytest.mark.parametrize(
    ("arch", "file", "accuracy"),
    # resnet56: 92.95 % of the first 2,000 images; resnet20: published error 8.27 % on all 10,000.
    [("resnet20", "resnet20-12fca82f.th", 0.9173), ("resnet56", "resnet56-4bfd9763.th", 0.9295)],
)
def test_published_accuracy(arch: str, file: str, accuracy: float, data_root: Path, models_root: Path) -> None:
    source = load("cifar10", "test", root=data_root, limit=1000)
    model = load_classifier(models_root / file, arch)
    right = 0
    with torch.no_grad():
        for indices in torch.arange(1000).split(250):
            images = source.fetch(indices)
            if images.dtype == torch.uint8:
                images = images.float() / 255
            right += int((model(images).argmax(1) == source.labels[indices]).sum())
    # Three standard errors of a proportion near 0.92 over 1,000 images are 2.6 points.
    assert right / 1000 == pytest.approx(accuracy, abs=0.026)
