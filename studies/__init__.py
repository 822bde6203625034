"""Studies: search space, driver, trials, executors, feature store and the command ``study``. Knows Optuna."""

import os

# Before torch is imported: its threads otherwise spin while they wait, and with anything else running on the machine
# (a second job, a test suite) one image took 650 ms instead of 25. On a quiet machine it makes no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
