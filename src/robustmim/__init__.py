"""robustmim: adversarial robustness by masked image modelling.

The public names below are imported when first used, so that `import robustmim` loads neither torch nor anything heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustmim.attacks.pgd import PGD
    from robustmim.config import AMRMConfig, AttackConfig, GradientConfig
    from robustmim.data.images import read_image, write_image
    from robustmim.data.sources import load as load_data
    from robustmim.geometry import Ball
    from robustmim.models.adapters import Normalised
    from robustmim.models.importer import load_mae
    from robustmim.models.mae import MaskedAutoencoder
    from robustmim.models.maskdit import MaskDiT
    from robustmim.models.masked_conv import MaskedConvolution
    from robustmim.models.record import AttentionRecorder
    from robustmim.models.zoo import load_model, open_classifier, save_model
    from robustmim.purify.amrm import AMRMPure
    from robustmim.purify.defended import Defended
    from robustmim.purify.load import load_purifier
    from robustmim.purify.trace import Trace
    from robustmim.radius import Radius
    from robustmim.registry import build, register
    from robustmim.rng import Keys, content_ids, keys

__version__ = "0.1.0"

_HOMES = {
    "AMRMConfig": "config",
    "AMRMPure": "purify.amrm",
    "AttackConfig": "config",
    "GradientConfig": "config",
    "AttentionRecorder": "models.record",
    "Ball": "geometry",
    "Defended": "purify.defended",
    "Keys": "rng",
    "MaskDiT": "models.maskdit",
    "MaskedAutoencoder": "models.mae",
    "MaskedConvolution": "models.masked_conv",
    "Normalised": "models.adapters",
    "PGD": "attacks.pgd",
    "Radius": "radius",
    "Trace": "purify.trace",
    "build": "registry",
    "content_ids": "rng",
    "keys": "rng",
    "load_data": "data.sources:load",
    "load_mae": "models.importer",
    "load_model": "models.zoo",
    "load_purifier": "purify.load",
    "open_classifier": "models.zoo",
    "read_image": "data.images",
    "register": "registry",
    "save_model": "models.zoo",
    "write_image": "data.images",
}

__all__ = [
    "PGD",
    "AMRMConfig",
    "AMRMPure",
    "AttackConfig",
    "AttentionRecorder",
    "Ball",
    "Defended",
    "GradientConfig",
    "Keys",
    "MaskDiT",
    "MaskedAutoencoder",
    "MaskedConvolution",
    "Normalised",
    "Radius",
    "Trace",
    "build",
    "content_ids",
    "keys",
    "load_data",
    "load_mae",
    "load_model",
    "load_purifier",
    "open_classifier",
    "read_image",
    "register",
    "save_model",
    "write_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robustmim' has no attribute {name!r}")
    home, _, own = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"robustmim.{home}"), own or name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
