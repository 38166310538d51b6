"""A frozen classifier with its batch norms folded into the convolutions before them: the same function in less time.

In evaluation mode a batch norm is an affine map of each channel, so that the convolution before it can do its work. An attack
passes through the classifier thousands of times; with small channels the norms cost as much as the convolutions do.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from robustmim.models.masked import freeze


def folded(classifier: nn.Module) -> nn.Module:
    """Return a frozen module that computes what `classifier` does in evaluation mode, to within rounding.

    Folding follows the flow of data that tracing finds (`torch.fx`). A module that cannot be traced, because its forward pass
    depends on its input, is only frozen and returned itself. The result bears the name of the classifier's class; layers that
    only contain others, and the norms that were folded, are gone from it.

    Args:
        classifier: logits from images; a copy is made of what is folded.
    """
    freeze(classifier)
    if not any(isinstance(part, nn.BatchNorm2d) for part in classifier.modules()):
        return classifier
    try:
        traced: nn.Module = fuse(classifier)
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError, RuntimeError):
        return classifier
    # A traced module has a class of its own; errors and claims name it.
    type(traced).__name__ = type(classifier).__name__
    # Convolutions run faster with the channels last, on CPU and GPU.
    return freeze(traced.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
