"""Our masked autoencoder against transformers' ViTMAEForPreTraining: the same weights, the same mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustmim.models.importer import load_mae

transformers = pytest.importorskip("transformers")


def oracle(norm_pix_loss: bool) -> Any:
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=48,
        layer_norm_eps=1e-6,
        mask_ratio=0.75,
        norm_pix_loss=norm_pix_loss,
    )
    torch.manual_seed(3)
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():  # away from the zeros and ones of a fresh model, so that each parameter counts
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_and_input_gradient_agree(norm_pix_loss: bool, tmp_path: Path) -> None:
    theirs = oracle(norm_pix_loss)
    theirs.config.to_json_file(tmp_path / "config.json", use_diff=False)
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    ours = load_mae(tmp_path / "model.safetensors")
    assert ours.target == ("normalised" if norm_pix_loss else "pixels")

    x = torch.rand(3, 3, 32, 32)
    noise = torch.rand(3, 16)
    mask = (noise.argsort(1).argsort(1) >= 4).view(3, 4, 4)
    for_them, for_us = x.clone().requires_grad_(), x.clone().requires_grad_()
    their_loss = theirs(ours.normalise(for_them), noise=noise).loss
    our_loss = ours.reconstruct(for_us, mask).loss.mean()
    (their_gradient,) = torch.autograd.grad(their_loss, for_them)
    (our_gradient,) = torch.autograd.grad(our_loss, for_us)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    # Relative to the largest entry: the loss is a mean over the batch, so the gradient itself is small.
    assert their_gradient.abs().max() > 0
    assert (our_gradient - their_gradient).abs().max() <= 1e-5 * their_gradient.abs().max()
