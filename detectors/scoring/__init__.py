"""From patch scores to figures: anomaly map, metrics, evaluation, threshold."""
