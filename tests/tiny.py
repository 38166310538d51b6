"""A pre-training run so small that tests can start, kill and resume it."""

from __future__ import annotations

TINY_PRETRAIN = [
    *("pretrain", "masked-conv-cifar10", "--device", "cpu", "--probe.classifier", "null"),
    *("--data.name", "samples-cifar10", "--data.split", "test", "--validation.name", "samples-cifar10"),
    *("--run.batch_size", "4", "--model.options", "{widths: [8, 16], blocks: [1, 1]}"),
]
