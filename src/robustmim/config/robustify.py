"""Recipes that fine-tune a masked model through its purification. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustmim.config.common import DataConfig, OptimizerConfig, RunConfig
from robustmim.config.purify import AMRMConfig, DenoiserConfig, GradientConfig, ReconstructionConfig
from robustmim.radius import Radius


@dataclass(frozen=True, kw_only=True)
class RobustifyRecipe:
    """Fine-tune a masked model through the purification and a classifier (RAMRM; AMRM-Pure, appendix D.1)."""

    masked_model: str
    """Zoo name or folder of the masked model to begin with."""
    guide: str | None = None
    """Zoo name or folder of a classifier whose belief the masked convolution is told (ours); it is not trained, and kept with the
    model."""
    classifier: str = "fast-cnn-cifar10"
    """Zoo name or folder of the classifier, or someone else's checkpoint; it stays as it is."""
    arch: str | None = None
    """Architecture of someone else's checkpoint."""
    data: DataConfig = DataConfig()
    validation: DataConfig = DataConfig(split="test", limit=128)
    """Images that clean, gray-box and white-box accuracy are measured on."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    run: RunConfig = RunConfig()
    amrm: AMRMConfig = AMRMConfig()
    """The purification that the model is trained for."""
    reconstruction: ReconstructionConfig | None = None
    """Train it for a purification of one pass instead; `amrm` is then not used, and its gradient is exact in any mode."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Noise, loss and target of a MaskDiT's descent."""
    gradient: GradientConfig = GradientConfig(mode="tanh", product="central-difference")
    """Gradient through the purification, into the weights; with mode identity or exact there is none (A16)."""
    examples: Literal["online", "static", "gray-box"] = "online"
    """Stage I (A18): PGD through the purifier as it is now, as it was at the start, or on the classifier alone."""
    norm: Literal["linf", "l2"] = "linf"
    radius: Radius = Radius("8/255")
    """Budget of these examples."""
    radius_warmup: int = 0
    """Optimiser steps over which the budget grows from nothing. At once at its full size, it may drive the training into a corner:
    a purifier that blots every image out, since a classifier that is surely wrong costs more than one that does not know."""
    attack_steps: int = 5
    attack_step_size: float = 0.4
    """Step as a fraction of the budget."""
    attack_gradient: GradientConfig = GradientConfig()
    """Gradient of that attack through the purifier."""
    start_noise: Radius = Radius("8/255")
    """Deviation of the Gaussian noise that the attack begins with (x' of Eq. 6)."""
    clean_share: float = 0.0
    """Share of each batch that is not attacked."""
    weights: Literal["all", "decoder", "low-rank"] = "all"
    """Which weights move (A19)."""
    teacher: str | None = None
    """A purification recipe, by name or file, to be learnt by heart: the loss is then the squared distance to what it makes of
    the same images, not the classification (ours); the classifier only makes the examples. None for RAMRM."""
    rank: int = 4
    """Rank of the change of each layer, for low-rank."""
    temperature: float = 1.0
    """What the logits are divided by in the loss (ours). A classifier that is not trained along is surely wrong under attack; above 1
    that costs little more than not to know, and less speaks for blotting images out."""
    anchor: float = 0.0
    """Weight of the reconstruction loss of clean images (ours), which keeps the model a masked autoencoder. Where nothing is
    hidden: of the squared distance of purified images from the clean ones."""
