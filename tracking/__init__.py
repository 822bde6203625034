"""What is remembered and deployed: the projection of a study into MLflow. Knows nothing of Optuna."""
