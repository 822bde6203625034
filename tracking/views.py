"""The saved view of a study in MLflow's table of runs: its trials below the study's run, with the most important columns.

MLflow stores saved views as tags of the experiment. ``Views`` above the table lists them, and a link can open one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
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
    "each study: its trials, the best first, with the most important columns. `tags.trial.state`, `tags.study.selected` and "
    "`tags.trial.feasible` find trials."
)
TAG_LENGTH = 5000
"""Most letters of an experiment's tag in MLflow."""


@dataclass(frozen=True)
class Page:
    """The page of a study in MLflow."""

    study: str
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
    while True:
        state = {
            "selectedColumns": columns,
            "runsExpanded": {parent: True},
            "searchFilter": f"tags.`study.uid` = '{study.uid}'",
            "orderByKey": _column(study.order_by) if study.order_by else "attributes.start_time",
            "orderByAsc": study.ascending,
        }
        named = {
            "name": study.name,
            "createdAt": study.started_ms,
            "updatedAt": study.started_ms,
            "state": json.dumps(state),
        }
        # MLflow before 3.17 does not know named views and reads the keys of the state themselves.
        text = json.dumps(named | state)
        if len(text) <= TAG_LENGTH or not columns:
            return f"{PREFIX}{_key(study.uid)}", text
        columns.pop()


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
            if not tag.startswith(PREFIX):
                continue
            try:
                view = json.loads(text)
                made, name = int(view["createdAt"]), str(view["name"])
            except (ValueError, KeyError, TypeError):
                continue  # A view that a user saved with another release of MLflow.
            query = urlencode({"workflowType": WORKFLOW, "viewStateShareKey": tag.removeprefix(PREFIX)})
            pages.append((made, Page(name, f"/#/experiments/{experiment.experiment_id}/runs?{query}")))
    return [page for _, page in sorted(pages, key=lambda item: -item[0])]


def address_of(page: Page, server: str) -> str:
    """The address of a page for a web browser, without a password that the server's address may contain."""
    return without_password(server).rstrip("/") + page.path


def _key(uid: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", uid)


def _column(name: str) -> str:
    """A column such as ``metrics.val/image_auroc`` as MLflow writes it."""
    kind, _, rest = name.partition(".")
    return f"{kind}.`{rest}`"
