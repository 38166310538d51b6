"""Other people's classifiers behind our contract: an `nn.Module` from [0, 1] images to logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import EnvironmentUnusable, InputError, RecipeError
from robustmim.models.normalise import Normalise, Statistics
from robustmim.registry import register
from robustmim.types import Images

_COMMON_SIZES = (32, 64, 224, 256, 299, 384)


class Normalised(nn.Module):
    """A classifier of normalised pixels, made one of [0, 1] images.

    Args:
        model: takes normalised images `[B, 3, H, W]`, gives logits `[B, classes]`.
        statistics: mean and deviation that `model` was trained with.
    """

    def __init__(self, model: nn.Module, *, statistics: Statistics) -> None:
        super().__init__()
        self.normalise = Normalise(statistics)
        self.model = model

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, H, W]` in [0, 1]."""
        return self.model(self.normalise(x))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise EnvironmentUnusable(
            f"the classifier 'timm' needs the package timm and torchvision ({error}): pip install 'robustmim[timm]'"
        ) from error
    except RuntimeError as error:
        # torchvision registers its operators on import and fails so when it was compiled for another torch.
        raise EnvironmentUnusable(
            f"timm is installed, but importing it fails: {error}. Usually torchvision was built for another version "
            f"than the installed torch {torch.__version__}; reinstall the pair together: "
            "pip install --force-reinstall torch torchvision"
        ) from error
    return timm


def _triple(values: Any, what: str, model: str) -> tuple[float, float, float]:
    if len(values) != 3:
        raise RecipeError(f"timm's {model!r} has a {what} for {len(values)} channels; only RGB classifiers fit here")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@register("classifier", "timm")
def timm_model(*, model: str, classes: int | None = None, pretrained: bool = False) -> Normalised:
    """Build any classifier of timm, normalised by the statistics of its own configuration.

    Args:
        model: timm's name, such as "convnext_tiny.fb_in1k".
        classes: number of logits; None keeps the model's own.
        pretrained: fetch timm's weights (network or cache).

    Raises:
        EnvironmentUnusable: timm is missing, its torchvision is broken, or the weights cannot be fetched.
        RecipeError: timm does not know the model, or has no weights for it.
    """
    timm = _timm()
    options = {} if classes is None else {"num_classes": classes}
    try:
        built = timm.create_model(model, pretrained=pretrained, **options)
    except RuntimeError as error:
        raise RecipeError(f"timm cannot build {model!r}: {error}; timm.list_models() lists what it knows") from error
    except OSError as error:
        raise EnvironmentUnusable(
            f"timm cannot fetch the weights of {model!r}: {error}; check the network, or set pretrained: false and "
            "load a file of your own"
        ) from error
    configuration = built.pretrained_cfg
    mean, deviation = (_triple(configuration[key], key, model) for key in ("mean", "std"))
    return Normalised(built, statistics=(mean, deviation))


def _complaint(module: nn.Module, images: Tensor) -> Exception | None:
    try:
        module(images)
    except (InputError, RuntimeError, ValueError, AssertionError, TypeError) as error:
        return error
    return None


def check_classifier(module: nn.Module, images: Images, classes: int | None) -> None:
    """Run a classifier on the first two images and check that input size and number of classes fit.

    The module's mode (training or evaluation) is as it was afterwards.

    Args:
        module: takes [0, 1] images, gives logits.
        images: `[B, 3, H, W]` in [0, 1], on the module's device.
        classes: number of classes of the data set; None where only the input size matters.

    Raises:
        InputError: the module rejects the images, gives no `[B, classes]` tensor, or another number of classes.
    """
    pair = images[:2]
    channels, height, width = pair.shape[1:]
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            error = _complaint(module, pair)
            if error is not None:
                blanks = ((size, pair.new_zeros(1, channels, size, size)) for size in _COMMON_SIZES)
                takes = [f"{size} × {size}" for size, blank in blanks if _complaint(module, blank) is None]
                wanted = f"it takes {', '.join(takes)} pixels; resize the images" if takes else "nor any common size"
                raise InputError(
                    f"the classifier does not take images of {channels} × {height} × {width}; {wanted} ({error})"
                ) from error
            logits = module(pair)
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(pair):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the classifier should give logits [{len(pair)}, classes], but gave {shape}; wrap it so it does"
        )
    if classes is not None and logits.shape[1] != classes:
        raise InputError(
            f"the classifier has {logits.shape[1]} classes, but the data has {classes}; "
            "choose the data set it was trained on, or a classifier trained on this one"
        )
