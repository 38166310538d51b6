"""Fixtures all tests share. One thread per worker; jaxtyping's shapes are checked at run time."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# An int where a float is asked for is fine, as it is for mypy.
install_import_hook("robustmim", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch  # noqa: E402

torch.set_num_threads(1)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    return Path(value)


@pytest.fixture
def data_root() -> Path:
    return _folder("ROBUSTMIM_DATA")


@pytest.fixture
def models_root() -> Path:
    return _folder("ROBUSTMIM_MODELS")


@pytest.fixture
def unchecked():
    """Without the checks of shapes, as the package runs: a classifier that is traced (`folded`) is shown no tensors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
