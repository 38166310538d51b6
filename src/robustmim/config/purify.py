"""Recipes of purifiers, and the gradients that attackers and trainings take through them. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from robustmim.radius import Radius


@dataclass(frozen=True, kw_only=True)
class AMRMConfig:
    """AMRM-Pure, Algorithm 1, with each choice that the paper leaves open as a field (A1–A11 of docs/paper-versus-code)."""

    steps: int = 12
    """Iterations S; exactly S are run (A10)."""
    step_size: Radius = Radius("4/255")
    """λ, in pixel fractions (A1)."""
    decay: float = 1.0
    """Factor on the step size (A2); 0.5 in the paper's starred rows."""
    decay_at: float = 0.5
    """Fraction of the steps after which the factor applies, once."""
    schedule: Literal["step", "cosine"] = "step"
    """Step size over the iterations: the factor above, or a cosine to zero (ours)."""
    momentum: float = 0.0
    """Weight of the earlier directions in a step (ours): averages over the masks of several steps."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball and of the step (A3)."""
    radius: Radius = Radius("16/255")
    """η, how far the purified image may be from the input (A3); inf for anywhere in [0, 1]."""
    mask_ratio: float = 0.25
    """Fraction of patches hidden, ρ (A6)."""
    masks: Literal["fresh", "fixed", "fixed-global", "complementary"] = "fresh"
    """Masks from iteration to iteration (A4)."""
    mask_average: int = 1
    """Masks whose losses are averaged in an iteration, K (A5)."""
    mask_scales: tuple[int, ...] = (1,)
    """How many times coarser than the model's cells those of a mask are, mask after mask, in turns (ours): [1, 2] alternates;
    with mask_average 2, both at once; as long as the steps, [4, 4, 2, 2, 1, 1] goes from coarse to fine."""
    gradient: Literal["both", "input", "target"] = "both"
    """Path of the gradient: through the network's input, through the target, or both (A7)."""
    output: Literal["last", "mean", "best"] = "last"
    """Last iterate, mean of the iterates, or the one of least loss (A9)."""
    start_noise: Radius = Radius("0/255")
    """Deviation of Gaussian noise added before the first step (A11)."""


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """How AMRM-Pure descends a masked diffusion model, which the paper leaves open (A12, A13 of docs/paper-versus-code).

    Noise levels σ are those of EDM: deviations on images in [-1, 1], twice as large as in pixel fractions.
    """

    noise_level: Literal["fixed", "log-normal", "descending"] = "fixed"
    """Level of the noise that is added (A12): one; drawn for each sample and iteration, ln σ ~ N(mean, deviation²); or
    falling over the iterations along EDM's grid."""
    sigma: float = 0.2
    """Level; when descending, that of the first iteration."""
    final_sigma: float = 0.02
    """Level of the last iteration, when descending."""
    log_mean: float = -1.2
    """Mean of ln σ, when log-normal."""
    log_deviation: float = 1.2
    """Deviation of ln σ, when log-normal."""
    draws: Literal["fresh", "fixed", "global"] = "fresh"
    """Noise and drawn levels: fresh for each sample and iteration; fixed over the iterations of a call; or fresh ones in each
    iteration, but the same for every sample and call (with fixed-global masks, a deterministic defence)."""
    loss: Literal["hidden", "denoising", "own"] = "hidden"
    """What is descended (A13): the error of the hidden patches; the denoising error of the visible ones, with EDM's weight;
    or MaskDiT's own loss, denoising + weight · hidden."""
    hidden_weight: float = 0.1
    """Weight of the hidden patches in MaskDiT's own loss."""
    hidden_target: Literal["clean", "noised"] = "clean"
    """What hidden patches are compared with: the image, or the noised image."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """A purifier of one pass: each cell is replaced by what the masked model predicts for it when it is hidden."""

    mask_ratio: float = 0.5
    """Fraction of cells hidden at a time; 1/k takes k passes and leaves no cell out. 0: nothing is hidden, and the network,
    which must be one that predicts visible pixels too, maps the image in one pass: deterministic, and after training through
    the classifier (robustify) no longer a prediction of what is hidden."""
    blend: float = 1.0
    """Weight of the prediction in the result, 0 to 1; the rest is the input."""
    masks: Literal["fresh", "fixed-global"] = "fresh"
    """Cells dealt into masks at random for each image and call, or one deal for all images and calls: a deterministic
    defence, which leaves an attacker nothing to average over and no luck to hide behind."""


Solver = Literal["euler", "heun", "ancestral", "sde", "vp-sde"]
Spacing = Literal["edm", "vp"]


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """A purifier that adds noise and takes it away again (DiffPure, Nie et al. 2022), with EDM's noise levels."""

    sigma: float = 0.34
    """Noise that is added: the deviation on images in [-1, 1]. DiffPure's t* = 0.1 is 0.340, its 0.075 is 0.256."""
    steps: int = 20
    """Reverse steps."""
    final_sigma: float = 0.002
    """Last level above zero."""
    solver: Solver = "ancestral"
    """Reverse process: DDPM's ancestral steps, the reverse SDE, or the probability flow by Euler's (DDIM) or Heun's method;
    vp-sde: DiffPure's, by Euler and Maruyama in its own variables."""
    spacing: Spacing = "edm"
    """Levels in between: along EDM's curve, or at evenly spaced times of the variance-preserving diffusion (DiffPure, DDPM)."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """A purifier by its registered name; `robustmim list purifiers`."""

    name: str
    """Registered purifier."""
    model: str | None = None
    """Zoo name or folder of the network it uses, if it uses one; "defended" for the classifier that it stands in front of."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the purifier."""


@dataclass(frozen=True, kw_only=True)
class PurifyRecipe:
    """A purifier: a masked model and how it is descended, or one of those that this is compared with."""

    masked_model: str = ""
    """Zoo name or folder of the masked model, or, with `diffusion`, of any denoiser; only a baseline goes without."""
    amrm: AMRMConfig = AMRMConfig()
    reconstruction: ReconstructionConfig | None = None
    """Predict once instead of descending; `amrm` is then not used."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Noise and loss of a masked diffusion model that is descended."""
    diffusion: DiffusionConfig | None = None
    """Diffuse and denoise instead of descending, with a diffusion model; `amrm` is then not used."""
    baseline: BaselineConfig | None = None
    """Another purifier altogether; nothing else of the recipe is then used."""


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """What an attacker takes for the gradient of a purifier whose steps go by a sign (docs/honesty).

    The forward pass is that of the published purifier unless `forward` is "smooth".
    """

    mode: Literal["identity", "exact", "straight-through", "tanh", "rational", "normalised", "replacement"] = "identity"
    """identity: the purifier is skipped (BPDA). exact: of the algorithm as published; the sign has derivative zero, so
    only its clips are seen. replacement: that of another function (BPDA as well). The others put a smooth function's
    derivative in the place of the sign's: g / mean|g|, tanh(g / (τ mean|g|)), g / (|g| + τ mean|g|), √n g / ‖g‖."""
    replacement: Literal["blur", "one-step", "reconstruction", "imitation"] = "blur"
    """Whose derivative that is: a Gaussian blur's; that of a single step of the purifier, with the derivative of tanh for
    the sign's; that of the masked model's prediction of every pixel in one pass; or that of a small network which has been
    trained to imitate the purifier."""
    blur: float = 1.0
    """Standard deviation of the blur, in pixels."""
    temperature: float = 1.0
    """τ of tanh and rational."""
    final_temperature: float | None = None
    """τ at the end of the attack, annealed geometrically from `temperature`."""
    clip: Literal["exact", "straight-through"] = "straight-through"
    """Derivative of the clips to the η-ball and to [0, 1]: zero where they bind, or one everywhere."""
    product: Literal["forward-difference", "central-difference", "hessian"] = "forward-difference"
    """How the reconstruction loss is differentiated a second time: by one or two more gradients, or exactly. In single precision
    the patch-4 MAE's gradient is then off by 1e-3, 1e-4 or 1e-6 of its length after 6 steps, by twice to five times as much after
    24; central differences and exact products take half as long again."""
    last: int | None = None
    """See only the last so many steps; the ones before count as the identity."""
    forward: Literal["hard", "smooth"] = "hard"
    """hard: the purifier's own sign. smooth: the attacker's purifier steps by the smooth function as well, or is the
    replacement altogether, which is cheap: no image is purified during the attack."""
    ball_scale: float = 1.0
    """Factor on η in the attacker's purifier: a wider ball saturates less, and saturation hides gradients."""
    steps: int | None = None
    """Purification steps of the attacker's purifier; default: the defence's own."""
