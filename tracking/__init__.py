"""Studies in MLflow: their runs, and the registered models that are made of their detectors. Does not depend on Optuna."""
