"""What Python programs, notebooks and the commands call. Each name is imported when it is first used.

The names that are promised to stay are those of `studies`; the others serve the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from studies.api.lazy import lazy_names

if TYPE_CHECKING:
    from studies.api.comparing import StudyComparison, compare, format_of
    from studies.api.detector import Predictor, Result, Results, image_files, load_detector
    from studies.api.exporting import Export, export_model
    from studies.api.images import (
        CheckReport,
        check_images,
        data_source,
        default_root,
        fetch_images,
        foresee_images,
        render_images,
        run_command,
    )
    from studies.api.models import ModelVersions, list_models
    from studies.api.predictions import Predictions, write_predictions
    from studies.api.registry import Promotion, promote, retrain, rollback
    from studies.api.reports import write_report
    from studies.api.running import plan_study, remarks, run, run_plan
    from studies.api.study import Study, Trial, distinct_studies, list_studies, open_study
    from studies.api.thresholds import Thresholds, threshold
    from studies.api.weights import fetch_weights, list_weights, parse_names, weights_licence
    from studies.show.study_json import outcome_json, study_json
    from studies.show.study_tables import insight_parts, outcome_parts, plan_tables, study_parts
    from studies.upkeep.inventory import KINDS, chosen_kinds, delete, take_inventory
    from tracking.views import address_of, experiment_pages, study_pages

_MODULES = {
    "studies.api.comparing": ("StudyComparison", "compare", "format_of"),
    "studies.api.detector": ("Predictor", "Result", "Results", "image_files", "load_detector"),
    "studies.api.exporting": ("Export", "export_model"),
    "studies.api.images": (
        "CheckReport", "check_images", "data_source", "default_root", "fetch_images", "foresee_images",
        "render_images", "run_command",
    ),
    "studies.api.predictions": ("Predictions", "write_predictions"),
    "studies.api.models": ("ModelVersions", "list_models"),
    "studies.api.registry": ("Promotion", "promote", "retrain", "rollback"),
    "studies.api.reports": ("write_report",),
    "studies.api.running": ("plan_study", "remarks", "run", "run_plan"),
    "studies.api.study": ("Study", "Trial", "distinct_studies", "list_studies", "open_study"),
    "studies.api.thresholds": ("Thresholds", "threshold"),
    "studies.api.weights": ("fetch_weights", "list_weights", "parse_names", "weights_licence"),
    "tracking.views": ("address_of", "experiment_pages", "study_pages"),
    "studies.show.study_json": ("outcome_json", "study_json"),
    "studies.show.study_tables": ("insight_parts", "outcome_parts", "plan_tables", "study_parts"),
    "studies.upkeep.inventory": ("KINDS", "chosen_kinds", "delete", "take_inventory"),
}  # fmt: skip
"""{module: names that it holds}"""

__all__ = [
    "KINDS",
    "CheckReport",
    "Export",
    "ModelVersions",
    "Predictions",
    "Predictor",
    "Promotion",
    "Result",
    "Results",
    "Study",
    "StudyComparison",
    "Thresholds",
    "Trial",
    "address_of",
    "check_images",
    "chosen_kinds",
    "compare",
    "data_source",
    "default_root",
    "delete",
    "distinct_studies",
    "experiment_pages",
    "export_model",
    "fetch_images",
    "fetch_weights",
    "foresee_images",
    "format_of",
    "image_files",
    "insight_parts",
    "list_models",
    "list_studies",
    "list_weights",
    "load_detector",
    "open_study",
    "outcome_json",
    "outcome_parts",
    "parse_names",
    "plan_study",
    "plan_tables",
    "promote",
    "remarks",
    "render_images",
    "retrain",
    "rollback",
    "run",
    "run_command",
    "run_plan",
    "study_json",
    "study_pages",
    "study_parts",
    "take_inventory",
    "threshold",
    "weights_licence",
    "write_predictions",
    "write_report",
]

__getattr__, __dir__ = lazy_names(
    __name__, {name: module for module, names in _MODULES.items() for name in names}, globals()
)
