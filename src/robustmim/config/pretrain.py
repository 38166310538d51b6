"""Recipes of masked models and denoisers. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from robustmim.config.common import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from robustmim.config.purify import AMRMConfig
from robustmim.radius import Radius


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What a masked model is for, measured while it trains: does it see an attack, and does it undo it?

    A fixed set of images is attacked once with PGD on a bare classifier; then, at each evaluation, the masked loss of
    clean and attacked images is compared, and both are purified and classified (gray box).
    """

    classifier: str | None = None
    """Zoo name, folder or checkpoint; none for no probe."""
    arch: str | None = None
    """Architecture of someone else's checkpoint."""
    data: str = "cifar10"
    """Data set the probe's images come from."""
    split: str = "test"
    part: Literal["all", "development", "held-out"] = "all"
    images: int = 128
    """Number of images."""
    radii: tuple[Radius, ...] = (Radius("2/255"), Radius("4/255"), Radius("8/255"))
    """l∞ budgets of the attack."""
    attack_steps: int = 20
    """Steps of PGD."""
    amrm: AMRMConfig = AMRMConfig()
    """Purification used for the gray-box accuracy."""


@dataclass(frozen=True, kw_only=True)
class MaskedAttackConfig:
    """Attack on the reconstruction while a masked model trains: MIMIR's Eq. 9, or what its code does instead.

    A point is drawn in the ball, then moved so that the model reconstructs worse (docs/paper-versus-code).
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    radius: Radius = Radius("8/255")
    """Budget."""
    steps: int = 1
    """Gradient steps, 1 to k."""
    step_size: Radius = Radius("10/255")
    """Length of a step."""
    target: Literal["clean", "attacked", "latent"] = "clean"
    """What the reconstruction is to miss: the clean image (Eq. 9), the attacked image itself (MIMIR's code), or, without a
    decoder, the encoding of the clean image."""
    mask: Literal["shared", "fresh"] = "shared"
    """The mask of the training step, or another one for each step of the attack (MIMIR's code)."""
    mask_ratio: float | None = None
    """Fraction that fresh masks hide; default: that of the training step."""
    support: Literal["all", "visible", "hidden"] = "visible"
    """Patches that may be changed, by the attack's mask: all (MIMIR's code), visible ones (its text), or, as a control,
    hidden ones."""
    units: Literal["model", "pixels"] = "model"
    """Error in the units the model is trained in, or undo a target's normalisation patch by patch."""
    precision: Literal["training", "float32", "bfloat16", "float16"] = "training"
    """Of the attack's passes; MIMIR's code: float16, where most gradients of a mean vanish."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the attack's loss over the batch; the same but for rounding."""


@dataclass(frozen=True, kw_only=True)
class FreeAttackConfig:
    """Adversarial pre-training at the cost of none (after Shafahi et al. 2019): the weights' backward pass gives the image's
    gradient too.

    Each batch is trained on several times in a row. The first time it carries random noise; after each, the perturbation
    takes a step along the gradient that the training step has computed anyway.
    """

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    radius: Radius = Radius("8/255")
    """Budget."""
    step_size: Radius = Radius("8/255")
    """Length of a step."""
    replays: int = 4
    """Steps in a row on the same images, m; an epoch has so many times more steps, so divide the epochs."""
    mask: Literal["shared", "fresh"] = "shared"
    """One mask for all replays of a batch, so that the gradient is that of the patches still seen, or one for each."""


@dataclass(frozen=True, kw_only=True)
class InformationConfig:
    """Penalty on the dependence of image and encoding (MIMIR, Eq. 8): weight times an estimate over the batch is added."""

    weight: float = 1e-5
    """λ."""
    estimator: str = "kernel-cka"
    """hsic (Eq. 29), unbiased-hsic, hsic-cca (MIMIR's code), cka, kernel-cka or renyi."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the estimator, as {unbiased: true, width: {rule: median}}."""
    x: Literal["attacked", "clean", "perturbation", "visible"] = "attacked"
    """The image as the encoder gets it, hidden patches included (MIMIR); the clean image; what the attack has added; or the
    attacked image with its hidden patches blanked. Always a constant to the gradient."""
    z: Literal["tokens", "mean", "class"] = "tokens"
    """All tokens (MIMIR's code), the mean of the patches' tokens, or the class token."""
    layer: int = 0
    """0: the encoder's output, after the final norm; n: that of block n, before any norm (MIMIR, Table XXI)."""
    batch: Literal["process", "global"] = "process"
    """Estimate over each process's share of the batch, or over the whole batch, gathered from all processes."""
    group: int | None = None
    """Estimate over groups of so many samples and average; default: all at once."""
    pairing: Literal["own", "other"] = "own"
    """other: each encoding is paired with another sample's image. Nothing is left to measure but how far the encodings lie
    apart: a control that shows how much of the penalty's effect is that."""


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How a diffusion model is trained: denoising, for a masked one of the visible patches + weight · error of the hidden."""

    log_mean: float = -1.2
    """Mean of ln σ (EDM, Table 1)."""
    log_deviation: float = 1.2
    """Deviation of ln σ."""
    hidden_weight: float = 0.1
    """Weight of the hidden patches (MaskDiT)."""
    hidden_target: Literal["clean", "noised"] = "clean"
    """What hidden patches are compared with: the image, or, as in MaskDiT, the noised image. The best prediction of pixels
    is the same for both; the first has the lesser variance."""
    label_dropout: float = 0.1
    """Fraction of the images whose class is not told, for a model with classes."""


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """ADBM (Li et al. 2025): fine-tune a denoiser to lead from noised attacked images to clean ones."""

    classifier: str = "fast-cnn-cifar10"
    """Classifier that is attacked through the denoiser: zoo name, folder, or someone else's checkpoint."""
    arch: str | None = None
    """Architecture of someone else's checkpoint."""
    radius: Radius = Radius("8/255")
    """Budget of the attack, l∞."""
    steps: int = 3
    """Its steps."""
    step_size: Radius = Radius("8/255")
    """Length of a step."""
    start_times: tuple[float, float] = (0.1, 0.2)
    """Least and greatest time of the variance-preserving diffusion at which a bridge starts."""


@dataclass(frozen=True, kw_only=True)
class PerturbedNoiseConfig:
    """ADDT (Liu et al. 2025): fine-tune a denoiser on noise into which a classifier's slope is mixed."""

    classifier: str = "fast-cnn-cifar10"
    """Classifier whose slope it is: zoo name, folder, or someone else's checkpoint."""
    arch: str | None = None
    """Architecture of someone else's checkpoint."""
    steps: int = 5
    """Slopes that are taken and added up."""
    strength: float = 0.03
    """Share of the perturbation in the noise, times the noise level: about as much at each level, in pixels."""
    most: float = 0.3
    """The greatest share."""


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Train a masked model.

    Masked autoencoding as it is; adversarial with `attack` or `free`; MIMIR with `information` too.
    """

    model: ModelConfig
    start_from: str | None = None
    """Begin with the weights of a saved model (zoo name or folder) instead of random ones."""
    data: DataConfig = DataConfig()
    mixture: list[DataConfig] = field(default_factory=list)
    """More data sets, taken in turns with `data` by their shares; batches never mix image sizes."""
    validation: DataConfig = DataConfig(split="test", limit=512)
    """Images the masked loss is measured on."""
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    mask_ratios: tuple[float, ...] = (0.5,)
    """Fractions hidden, taken in turns, step by step. A masked diffusion model takes 0 as well, and so does `loss_over` all:
    nothing is hidden."""
    mask_scales: tuple[int, ...] = (1,)
    """How many times coarser than the model's cells those of a mask are (see `AMRMConfig`), taken in turns, once all ratios
    have had theirs: one model then serves several scales."""
    denoising: DenoisingConfig = DenoisingConfig()
    """Noise and loss of a diffusion model."""
    bridge: BridgeConfig | None = None
    """Fine-tune a denoiser as a bridge from attacked images to clean ones (ADBM)."""
    perturbed_noise: PerturbedNoiseConfig | None = None
    """Fine-tune a denoiser on adversarially perturbed noise (ADDT)."""
    input_noise: Radius = Radius("0/255")
    """Largest deviation of Gaussian noise on what the network sees (each image draws its own, from zero up); the target
    stays clean, so that predictions do not follow small perturbations of their surroundings (ours)."""
    noise_law: Literal["uniform", "constant", "gamma"] = "uniform"
    """How an image draws the deviation of its input noise: from zero up, the result clipped to [0, 1] (ours); always
    `input_noise` (DMAE); or by a gamma distribution of shape 25 whose mean that is (NIM). The latter two are not clipped."""
    loss_over: Literal["hidden", "all"] = "hidden"
    """Patches the training loss counts."""
    attack: MaskedAttackConfig | None = None
    """What the network sees is attacked; its target stays clean. None for clean images."""
    free: FreeAttackConfig | None = None
    """Attack with the gradients of training, instead of `attack`."""
    information: InformationConfig | None = None
    """Penalty on what the encoding tells of the image; none without."""
    validation_ratio: float = 0.25
    """Fraction hidden when the loss is measured."""
    probe: ProbeConfig = ProbeConfig()
