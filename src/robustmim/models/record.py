"""Record the attention of a transformer; attach, look, remove. The model is as it was afterwards."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustmim.models.vit import Attention


class AttentionRecorder:
    """Collect the attention weights of every layer of a model, in the order of its forward pass.

    While attached, the layers use their explicit path. Use it as a context manager, or call `remove` when done:

        with AttentionRecorder(model, prefix="decoder_blocks") as recorder:
            model.reconstruct(x, mask)
        recorder.maps   # one [B, heads, T, T] per layer

    Args:
        model: anything built of `Attention` layers.
        prefix: record only layers of the part whose name starts so ("decoder_blocks" for the decoder of an MAE), at
            whatever depth the model is wrapped.
    """

    def __init__(self, model: nn.Module, *, prefix: str = "") -> None:
        self.maps: list[Tensor] = []
        layers = [m for name, m in model.named_modules() if isinstance(m, Attention) and f".{prefix}" in f".{name}"]
        self._before = [(layer, layer.explicit) for layer in layers]
        self._handles: list[RemovableHandle] = []
        for layer in layers:
            layer.explicit = True
            self._handles.append(layer.weights.register_forward_hook(self._keep))

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.maps.append(output)

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.maps.clear()

    def remove(self) -> None:
        """Take the hooks off and give each layer its former path back. The maps stay."""
        for handle in self._handles:
            handle.remove()
        for layer, explicit in self._before:
            layer.explicit = explicit
        self._handles, self._before = [], []

    def __enter__(self) -> AttentionRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
