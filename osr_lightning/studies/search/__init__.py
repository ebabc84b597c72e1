"""``osr search``: options searched with Optuna on validation images."""
