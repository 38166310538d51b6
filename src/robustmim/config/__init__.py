"""Typed recipes: what a YAML file may say. Free of torch, so that `--help` is quick. Field docs appear in `--help`."""

from robustmim.config.common import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from robustmim.config.evaluate import (
    AttackConfig,
    CertifyRecipe,
    ChecksConfig,
    CorruptionsRecipe,
    DetectRecipe,
    EvaluateRecipe,
)
from robustmim.config.pretrain import (
    BridgeConfig,
    DenoisingConfig,
    FreeAttackConfig,
    InformationConfig,
    MaskedAttackConfig,
    PerturbedNoiseConfig,
    PretrainRecipe,
    ProbeConfig,
)
from robustmim.config.purify import (
    AMRMConfig,
    BaselineConfig,
    DenoiserConfig,
    DiffusionConfig,
    GradientConfig,
    PurifyRecipe,
    ReconstructionConfig,
    Solver,
    Spacing,
)
from robustmim.config.robustify import (
    RobustifyRecipe,
)
from robustmim.config.train import (
    AdversarialTrainingConfig,
    GeneratedConfig,
    GuardConfig,
    TrainRecipe,
)

__all__ = [
    "AMRMConfig",
    "AdversarialTrainingConfig",
    "AttackConfig",
    "AugmentConfig",
    "BaselineConfig",
    "BridgeConfig",
    "CertifyRecipe",
    "ChecksConfig",
    "CorruptionsRecipe",
    "DataConfig",
    "DenoiserConfig",
    "DenoisingConfig",
    "DetectRecipe",
    "DiffusionConfig",
    "EvaluateRecipe",
    "FreeAttackConfig",
    "GeneratedConfig",
    "GradientConfig",
    "GuardConfig",
    "InformationConfig",
    "MaskedAttackConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PerturbedNoiseConfig",
    "PretrainRecipe",
    "ProbeConfig",
    "PurifyRecipe",
    "ReconstructionConfig",
    "RobustifyRecipe",
    "RunConfig",
    "Solver",
    "Spacing",
    "TrainRecipe",
]
