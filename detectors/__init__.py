"""Anomaly detectors for product images: backbones, heads, data, metrics. Knows nothing of Optuna or MLflow."""
