"""robustmim: adversarial robustness by masked image modelling."""

__version__ = "0.1.0"
