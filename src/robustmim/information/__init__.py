"""How much does a representation know of its input? Kernel estimators of dependence, and MIMIR's bounds."""
