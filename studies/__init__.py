"""Find the best anomaly detector for a product, honestly measured, and bring it into production: the Python interface.

    import studies

    study = studies.run("padim", images="photos/bottle", trials=20)
    study.trials, study.best, study.report(), study.promote()
    studies.load_detector("padim_bottle").predict("new.png")

``docs/python.md`` is the guide. Importing this package costs nothing: a name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studies.api.lazy import lazy_names

if TYPE_CHECKING:
    from detectors.errors import InputError, NumericalError
    from studies.api.comparing import StudyComparison, compare
    from studies.api.detector import Predictor, Result, Results, load_detector
    from studies.api.exporting import Export, export_model
    from studies.api.images import CheckReport, check_images
    from studies.api.models import ModelVersions, list_models
    from studies.api.registry import Promotion, promote, retrain, rollback
    from studies.api.running import run
    from studies.api.study import Study, Trial, list_studies, open_study
    from studies.api.thresholds import Thresholds, threshold
    from studies.api.version import __version__
    from studies.search.outcome import StudyFailedError

_MODULES = {
    "detectors.errors": ("InputError", "NumericalError"),
    "studies.api.comparing": ("StudyComparison", "compare"),
    "studies.api.detector": ("Predictor", "Result", "Results", "load_detector"),
    "studies.api.exporting": ("Export", "export_model"),
    "studies.api.images": ("CheckReport", "check_images"),
    "studies.api.models": ("ModelVersions", "list_models"),
    "studies.api.registry": ("Promotion", "promote", "retrain", "rollback"),
    "studies.api.running": ("run",),
    "studies.api.study": ("Study", "Trial", "list_studies", "open_study"),
    "studies.api.thresholds": ("Thresholds", "threshold"),
    "studies.api.version": ("__version__",),
    "studies.search.outcome": ("StudyFailedError",),
}
"""{module: names that it holds}"""

__all__ = [
    "CheckReport", "Export", "InputError", "ModelVersions", "NumericalError", "Predictor", "Promotion", "Result",
    "Results", "Study", "StudyComparison", "StudyFailedError", "Thresholds", "Trial", "__version__", "check_images", "compare",
    "export_model", "list_models", "list_studies", "load_detector", "open_study", "promote", "retrain", "rollback",
    "run", "threshold",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__, {name: module for module, names in _MODULES.items() for name in names}, globals()
)
