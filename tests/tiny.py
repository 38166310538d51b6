"""Runs so small that tests can start, kill and resume them."""

from __future__ import annotations

TINY_PRETRAIN = [
    *("pretrain", "masked-conv-cifar10", "--device", "cpu", "--probe.classifier", "null"),
    *("--data.name", "samples-cifar10", "--data.split", "test", "--validation.name", "samples-cifar10"),
    *("--run.batch_size", "4", "--model.options", "{widths: [8, 16], blocks: [1, 1]}"),
]

TINY_EVALUATION = [
    *("evaluate", "cifar10-linf", "--device", "cpu", "--data.name", "samples-cifar10", "--data.skip", "0"),
    *("--radii", "[4/255]", "--draws", "1"),
    "--attacks",
    "[{name: gray-box, against: classifier, options: {steps: 3}}, {name: white-box, options: {steps: 1}, eot: 2, images: 2}]",
]
"""An evaluation of a few seconds: one budget, an attack on the classifier and one through the purifier."""
