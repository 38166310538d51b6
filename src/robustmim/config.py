"""Typed recipes: what a YAML file may say. Free of torch, so that `--help` is quick. Field docs appear in `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from robustmim.errors import RecipeError
from robustmim.radius import Radius


def _at_least_one(**counts: int) -> None:
    """Refuse counts of nothing.

    Raises:
        RecipeError: one of them is below one.
    """
    for name, count in counts.items():
        if count < 1:
            raise RecipeError(f"{name} is at least 1, not {count}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A registered model and the options it is built with."""

    name: str
    """Registered name; `robustmim list` shows them."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Strong augmentation of training images; all of it is off by default."""

    rand_augment: int = 0
    """RandAugment (Cubuk et al. 2020): operations on each image, drawn from fourteen; 0 for none."""
    magnitude: float = 9.0
    """Strength of these operations, 0 to 10."""
    magnitude_deviation: float = 0.5
    """Deviation of that strength from image to image."""
    erasing: float = 0.0
    """Probability that a random box of an image is filled with noise (Zhong et al. 2020)."""
    mixup: float = 0.0
    """α of MixUp (Zhang et al. 2018): an image's weight is drawn from Beta(α, α); 0 for none."""
    cutmix: float = 0.0
    """α of CutMix (Yun et al. 2019): the share of an image's area is drawn from Beta(α, α); 0 for none. With MixUp too, each
    image gets one of the two."""
    mix_probability: float = 1.0
    """Probability that an image is mixed with another one at all."""
    warmup_epochs: float = 0.0
    """Epochs over which the magnitude grows from 1, and the probability of mixing from half (MIMIR, section IV-C)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set and how its training images are augmented."""

    name: str = "cifar10"
    """Registered name: cifar10, cifar100, svhn, tiny-imagenet, imagenet, folder, samples-cifar10, …"""
    root: str | None = None
    """Folder that holds the data sets; default: ROBUSTMIM_DATA."""
    split: str = "train"
    """The set's own split: train, val or test."""
    part: Literal["all", "development", "held-out"] = "all"
    """Of that split: all, the three quarters meant for development, or every fourth sample, kept out of it."""
    skip: int = 0
    """Leave out the first so many, such as those a recipe was chosen on."""
    limit: int | None = None
    """Use only the first so many of the rest."""
    size: int | None = None
    """Side of the square images, for folders of photographs."""
    resize: int | None = None
    """Shorter side before the centre crop to `size`."""
    crop: int | None = None
    """Side of a random crop; default: the whole image."""
    padding: int = 0
    """Pixels reflected around the image before the random crop."""
    flip: Literal["none", "random", "alternate"] = "none"
    """Mirror left to right: at random, or each image in every second epoch."""
    cutout: int = 0
    """Side of a random square set to the mean grey, 0 for none."""
    augment: AugmentConfig = AugmentConfig()
    """Strong augmentation."""
    share: int = 1
    """In a mixture: steps in a row that this set gets."""
    corruption: str | None = None
    """Corrupt the images (fog, gaussian_noise, jpeg_compression, …), each always alike; none for clean ones."""
    severity: int = 3
    """Severity of the corruption, 1 to 5."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    learning_rate: float = 1e-3
    """Peak rate, for the batch size given (no hidden scaling)."""
    weight_decay: float = 0.05
    """Decoupled for adamw, l2 for sgd; not applied to biases and norms."""
    momentum: float = 0.9
    """Momentum of sgd; first beta of adamw."""
    second_momentum: float = 0.95
    """Second beta of adamw."""
    bias_scale: float = 1.0
    """Factor on the learning rate of biases and norms."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it, for models that know their layers (ViT); the head's
    rate is the full one."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    warmup: float = 0.05
    """Fraction of the run over which the rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    final: float = 0.0
    """Rate at the end, as a fraction of the peak."""


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
class RunConfig:
    """What every training run has in common."""

    epochs: float = 10
    """Passes over the (first) data set."""
    batch_size: int = 128
    """Images per optimiser step, over all processes."""
    accumulate: int = 1
    """Parts each process cuts its share of a batch into; their gradients add up to one step. Less memory, the same batch."""
    seed: int = 0
    """Seed of everything that is drawn."""
    ema: float = 0.0
    """Decay of the averaged weights that are evaluated and saved; 0 for none."""
    evaluate_every: float = 1.0
    """Epochs between evaluations."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    skips: int = 5
    """Steps in a row that may be skipped because their gradient is not a number; after more, the run stops, all saved."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on CUDA where supported, else float32."""

    def __post_init__(self) -> None:
        """Refuse a run of nothing."""
        _at_least_one(batch_size=self.batch_size, accumulate=self.accumulate)
        if not self.epochs > 0:
            raise RecipeError(f"epochs are above 0 (a fraction will do), not {self.epochs:g}")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guard against catastrophic overfitting (Wong et al. 2020): one-step training that suddenly holds against one step only.

    PGD is run now and then on a few training images as they are. Where its accuracy has fallen far below the best so far, the
    weights go back to the check before.
    """

    action: Literal["none", "stop", "enlarge"] | None = None
    """What follows: no guard at all; the end of the run; or attacks of one step more from then on. Default: enlarge for the
    method fast, which collapses without one, and none for others."""
    every: int = 200
    """Optimiser steps between checks."""
    images: int = 128
    """Training images that PGD is run on."""
    steps: int = 10
    """Its steps."""
    drop: float = 0.2
    """Fall of the accuracy that counts as overfitting."""


@dataclass(frozen=True, kw_only=True)
class AdversarialTrainingConfig:
    """Adversarial training (Madry et al. 2018): the loss is taken on images that a few steps have made worse.

    What is left out is the method's own, as in its paper (docs/concepts).
    """

    method: str = "n-fgsm"
    """natural, pgd-at, apgd-at, n-fgsm, fast, free, trades, mart, generalist, dbat or score; `robustmim list methods`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the method: beta of trades, mart and score, replays of free, …"""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    radius: Radius = Radius("8/255")
    """Budget."""
    steps: int | None = None
    """Gradient steps."""
    step_size: float | None = None
    """Step as a fraction of the budget."""
    start: Literal["uniform", "normal"] | None = None
    """Distribution of the start noise."""
    start_noise: float | None = None
    """Half-width of the uniform, deviation of the normal start noise, as a multiple of the budget."""
    project: bool | None = None
    """Project onto the ball; otherwise images only stay in [0, 1]."""
    statistics: Literal["batch", "running"] | None = None
    """Batch norm in the attack: by the batch, as the model trains, or by running averages, as it is used."""
    validation_images: int = 512
    """Images that PGD is run on at each evaluation."""
    validation_steps: int = 10
    """Its steps."""
    guard: GuardConfig = GuardConfig()
    """Against catastrophic overfitting."""


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """Images from a generative model beside the training set's, such as the published EDM sets (Wang et al. 2023)."""

    file: str
    """An npz with `image` [n, H, W, 3], bytes, and `label` [n]; looked for as it is, then in the folder of data sets."""
    fraction: float = 0.7
    """Share of each batch that comes from it."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Train a classifier."""

    model: ModelConfig
    start_from: str | None = None
    """Begin with the weights of a saved model (zoo name or folder) instead of random ones; of a masked autoencoder, its
    encoder."""
    start_norm: Literal["new", "kept"] = "new"
    """Norm before the head where the start is an encoder: a new one (MIMIR's code), or the encoder's own final norm."""
    data: DataConfig = DataConfig()
    generated: GeneratedConfig | None = None
    """Generated images in each batch; an epoch has as many steps as without."""
    validation: DataConfig = DataConfig(split="test")
    """Images the accuracy is measured on."""
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the targets."""
    adversarial: AdversarialTrainingConfig | None = None
    """Train against attacks, by one of many methods; none for plain training, whose robustness is not measured either."""


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


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack of an evaluation, and how it meets the defence."""

    name: str
    """Its name in tables and records."""
    attack: str = "pgd"
    """Registered attack; `robustmim list attacks`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the attack."""
    against: Literal["defence", "classifier"] = "defence"
    """What is attacked: classifier behind purifier, or the bare classifier (the purifier then meets its result)."""
    eot: int = 1
    """Draws of a random defence averaged in each query."""
    average: Literal["loss", "logits"] = "loss"
    """What is averaged over the draws."""
    gradient: GradientConfig = GradientConfig()
    """Gradient through the purifier."""
    randomness: Literal["fresh", "known", "fixed"] = "fresh"
    """Draws of the verdict: fresh ones; the very draws the attacker had (known); or one draw for every sample and call,
    which the attacker knows (fixed)."""
    radii: tuple[Radius, ...] | None = None
    """Budgets it is run at; default: all of the recipe's."""
    images: int | None = None
    """Attack only the first so many images."""
    optional: bool = False
    """Leave the attack out, and say so, where the defence lacks what it needs (a masked model, a gradient of its own) or the norm
    is none of its norms; otherwise that is an error."""


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """Active checks: attacks run on a few images only to find out whether the numbers can be believed (docs/honesty)."""

    images: int = 0
    """Images they use; 0 for none of them."""
    large_radius: Radius = Radius("128/255")
    """A budget at which nothing may hold."""
    factor: int = 4
    """How many times more steps, and draws, must not find much more."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """What a defence is measured on, and how it is attacked."""

    data: DataConfig = DataConfig(split="test", limit=512)
    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the attacks."""
    radii: tuple[Radius, ...] = (Radius("2/255"), Radius("4/255"), Radius("8/255"))
    """Budgets."""
    attacks: tuple[AttackConfig, ...] = ()
    """The attacks, cheap ones first."""
    draws: int = 1
    """Fresh draws of a random defence on which each adversarial image is judged; with more than one, a second set of as
    many must confirm a break."""
    cascade: bool = False
    """An image that has fallen to a white-box attack is not given to the next ones at that budget. What falls to an attacker who
    knows less (of the bare classifier, of another one, of answers alone, of a stand-in for the purifier) is, so that white-box
    attacks which miss it are found out. Takes two draws or more, if the defence is random."""
    checks: ChecksConfig = ChecksConfig()
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        _at_least_one(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class CorruptionsRecipe:
    """Accuracy under common corruptions (Hendrycks and Dietterich 2019), which nobody has chosen to fool anyone."""

    data: DataConfig = DataConfig(split="test", limit=512)
    names: str | tuple[str, ...] = "all"
    """Corruptions: all (the fifteen of the benchmark), extra (four more), or names joined by commas."""
    severities: int | str | tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities, joined by commas."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Seed of the corruptions and of the purifier's draws."""

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        _at_least_one(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class CertifyRecipe:
    """Randomised smoothing (Cohen et al. 2019): radii in l2 within which the class provably does not change."""

    data: DataConfig = DataConfig(split="test", limit=200)
    sigma: float = 0.25
    """Standard deviation of the Gaussian noise, for pixels in [0, 1]."""
    selection_draws: int = 100
    """Noisy copies on which the class is chosen, n₀."""
    draws: int = 1000
    """Other noisy copies, on which the probability of that class is bounded, n. They limit the radius:
    σ Φ⁻¹(α^(1/n)) at most."""
    alpha: float = 0.001
    """Probability, for each image, that its certificate is wrong."""
    batch_size: int = 100
    """Noisy copies at a time."""
    seed: int = 0
    """Seed of the noise and of the purifier's draws."""

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        _at_least_one(batch_size=self.batch_size)


@dataclass(frozen=True, kw_only=True)
class RobustifyRecipe:
    """Fine-tune a masked model through the purification and a classifier (RAMRM; AMRM-Pure, appendix D.1)."""

    masked_model: str
    """Zoo name or folder of the masked model to begin with."""
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
    anchor: float = 0.0
    """Weight of the reconstruction loss of clean images (ours), which keeps the model a masked autoencoder. Where nothing is
    hidden: of the squared distance of purified images from the clean ones."""


@dataclass(frozen=True, kw_only=True)
class DetectRecipe:
    """Tell attacked images from clean ones by a masked model, with a threshold from clean images."""

    data: DataConfig = DataConfig(split="test", limit=256)
    """Clean images. The first ones calibrate the threshold, the rest are attacked."""
    calibration: int = 128
    """Images that the threshold is taken from."""
    score: Literal["reconstruction", "descent", "disagreement", "attention"] = "disagreement"
    """reconstruction: the masked loss. descent: log of its ratio to that after purification. disagreement: of the classifier's
    answers before and after. attention: entropy of attention maps."""
    false_positive_rate: float = 0.05
    """Share of clean images that may be taken for attacked ones."""
    norm: Literal["linf", "l2"] = "linf"
    radii: tuple[Radius, ...] = (Radius("2/255"), Radius("4/255"), Radius("8/255"))
    """Budgets of the attacks."""
    steps: int = 40
    """Steps of PGD, and of each run of the attack that knows the detector."""
    weights: tuple[float, ...] = (0.0, 1.0, 10.0)
    """Weights of the detector in the objective of that attack, tried in turn."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        _at_least_one(batch_size=self.batch_size)
