-- Beside `studies`, which holds Optuna's trials: MLflow's runs and models.
CREATE DATABASE mlflow;
