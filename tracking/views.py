"""The saved view of a study in MLflow's table of runs: its trials below the study's run, with the most important columns.

MLflow stores saved views as tags of the experiment. ``Views`` above the table lists them, and a link can open one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from mlflow.entities import Experiment

from tracking.addresses import without_password
from tracking.records import StudyRecord
from tracking.store import open_client, store_calls

PREFIX = "mlflow.sharedViewState."
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
WORKFLOW = "machine_learning"
"""Part of a link that opens MLflow's menu for training; otherwise MLflow shows the menu for language models."""
NOTE = "mlflow.note.content"
EXPERIMENT_NOTE = (
    "Studies of {name}. Each run here is a study, the runs below it are its trials. `Views` above the table has one view for "
    "each study: its trials, the best first, with the most important columns; `all studies` has a row for each study with what "
    "it finds and stops on test. `tags.trial.state`, `tags.study.selected` and `tags.trial.feasible` find trials."
)
ALL, ALL_NAME = "studies", "all studies"
"""Key and name of the view of an experiment's studies; a study's key is its uid, which is hexadecimal."""
ALL_COLUMNS = (
    *(f"metrics.test/{name}" for name in ("image_recall", "false_alarm_rate", "image_auroc")),
    "metrics.val/image_auroc",
    "metrics.val/ranking_score",
    "metrics.fps",
    "metrics.trials/complete",
    "params.detector",
    "params.objectives",
    "tags.study.state",
)
TAG_LENGTH = 5000
"""Most letters of an experiment's tag in MLflow."""


@dataclass(frozen=True)
class Page:
    """The page of a study in MLflow, or of all studies of an experiment."""

    study: str
    """Its name, or which studies."""
    path: str
    """Path of the page, to be appended to the server's address."""


def experiment_tags(experiment: Experiment) -> dict[str, str]:
    """Tags that an experiment still lacks: its description, and the kind by which MLflow chooses its menu."""
    wanted = {KIND: TRAINING, NOTE: EXPERIMENT_NOTE.format(name=experiment.name)}
    # A description that a user wrote is kept.
    return {name: value for name, value in wanted.items() if name not in experiment.tags}


def saved_view(study: StudyRecord, parent: str) -> tuple[str, str]:
    """Name and value of the experiment's tag that stores the view of a study.

    Args:
        parent: id of the study's run, below which its trials are shown.
    """
    columns = list(map(_column, study.columns))
    order_by = _column(study.order_by) if study.order_by else "attributes.start_time"
    while True:
        state = {
            "selectedColumns": columns,
            "runsExpanded": {parent: True},
            "searchFilter": f"tags.`study.uid` = '{study.uid}'",
            "orderByKey": order_by,
            "orderByAsc": study.ascending,
        }
        text = _stored(study.name, study.started_ms, state)
        if len(text) <= TAG_LENGTH or not columns:
            return f"{PREFIX}{_key(study.uid)}", text
        columns.pop()


def view_of_all_studies(experiment: Experiment) -> tuple[str, str]:
    """Name and value of the experiment's tag that stores the view of its studies, the newest first, without their trials."""
    state = {
        "selectedColumns": list(map(_column, ALL_COLUMNS)),
        "runsExpanded": {},
        "searchFilter": "tags.`study.role` = 'study'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }
    return f"{PREFIX}{ALL}", _stored(ALL_NAME, int(experiment.creation_time or 0), state)


def _stored(name: str, made_ms: int, state: dict[str, Any]) -> str:
    """A view as MLflow stores it."""
    named = {"name": name, "createdAt": made_ms, "updatedAt": made_ms, "state": json.dumps(state)}
    # MLflow before 3.17 does not know named views and reads the keys of the state themselves.
    return json.dumps(named | state)


def study_pages(tracking_uri: str, *, artifacts: Path | None = None) -> list[Page]:
    """The pages of all studies in a store, the newest first.

    Args:
        artifacts: where the artifacts of a local store are now; see `tracking.moved`.

    Raises:
        InputError: the store cannot be reached.
    """
    with store_calls(tracking_uri):
        experiments = open_client(tracking_uri, artifacts=artifacts).search_experiments()
    pages = []
    for experiment in experiments:
        for tag, text in experiment.tags.items():
            if not tag.startswith(PREFIX) or tag == f"{PREFIX}{ALL}":
                continue
            try:
                view = json.loads(text)
                made, name = int(view["createdAt"]), str(view["name"])
            except (ValueError, KeyError, TypeError):
                continue  # A view that a user saved with another release of MLflow.
            pages.append((made, Page(name, _path(experiment, tag.removeprefix(PREFIX)))))
    return [page for _, page in sorted(pages, key=lambda item: -item[0])]


def experiment_pages(tracking_uri: str, *, artifacts: Path | None = None) -> list[Page]:
    """The pages that show all studies of an experiment, one for each experiment of several studies, by name.

    Arguments and errors are those of `study_pages`.
    """
    with store_calls(tracking_uri):
        experiments = open_client(tracking_uri, artifacts=artifacts).search_experiments()
    pages = []
    for experiment in experiments:
        views = [tag for tag in experiment.tags if tag.startswith(PREFIX)]
        if f"{PREFIX}{ALL}" in views and len(views) > 2:
            pages.append(Page(f"{ALL_NAME} of {experiment.name}", _path(experiment, ALL)))
    return sorted(pages, key=lambda page: page.study)


def _path(experiment: Experiment, key: str) -> str:
    query = urlencode({"workflowType": WORKFLOW, "viewStateShareKey": key})
    return f"/#/experiments/{experiment.experiment_id}/runs?{query}"


def address_of(page: Page, server: str) -> str:
    """The address of a page for a web browser, without a password that the server's address may contain."""
    return without_password(server).rstrip("/") + page.path


def _key(uid: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", uid)


def _column(name: str) -> str:
    """A column such as ``metrics.val/image_auroc`` as MLflow writes it."""
    kind, _, rest = name.partition(".")
    return f"{kind}.`{rest}`"
