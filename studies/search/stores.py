"""The two stores that a driver writes: Optuna's database, which is the truth, and MLflow, a projection of it."""

from __future__ import annotations

from dataclasses import dataclass

from studies.home import Home
from studies.search.notices import Listener, Remark
from studies.search.patient_storage import PatientStorage
from studies.search.storage import open_storage
from tracking.patience import Patience
from tracking.projection import Projection


@dataclass(frozen=True)
class Stores:
    """Both stores, and the patience with which either is waited for while it is away."""

    storage: PatientStorage
    projection: Projection
    patience: Patience

    @classmethod
    def open(cls, home: Home, listener: Listener = lambda notice: None) -> Stores:
        """Open both, their tables made where they are missing.

        Args:
            listener: hears, as `Remark`, what is waited for.

        Raises:
            InputError: one of them cannot be opened.
        """
        patience = Patience(tell=lambda text: listener(Remark(text)))
        storage = open_storage(home, patience=patience)
        projection = Projection(
            home.tracking_uri, artifact_root=home.mlflow_artifacts, lock_folder=home.locks, patience=patience
        )
        return cls(storage, projection, patience)
