"""From a trial to production: finding detectors, the gate, promotion and retraining."""
