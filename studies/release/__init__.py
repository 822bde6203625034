"""From a trial to production: gate, promotion, retraining."""
