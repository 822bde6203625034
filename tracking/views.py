"""A study's saved view of MLflow's table of runs: its trials below the study's run, with the columns that matter.

MLflow's pages keep saved views as tags of the experiment; ``Views`` above the table lists them, and a link can name one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import urlencode

from mlflow.entities import Experiment

from tracking.addresses import without_password
from tracking.records import StudyRecord
from tracking.store import errors_told_plainly, open_client

PREFIX = "mlflow.sharedViewState."
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
WORKFLOW = "machine_learning"
"""In a link, MLflow's menu for training: by itself it shows the one for language models, whatever the kind."""
NOTE = "mlflow.note.content"
EXPERIMENT_NOTE = (
    "Studies of {name}. Each run here is a study, the runs below it are its trials. `Views` above the table has one view for "
    "each study: its trials, the best first, with the columns that matter. `tags.trial.state`, `tags.study.selected` and "
    "`tags.trial.feasible` find trials."
)
TAG_LENGTH = 5000
"""What MLflow takes as an experiment's tag."""


@dataclass(frozen=True)
class Page:
    """Where a study is in MLflow's pages."""

    study: str
    path: str
    """Behind the server's address."""


def experiment_tags(experiment: Experiment) -> dict[str, str]:
    """What an experiment of ours lacks: a description, and the kind by which MLflow chooses its menu."""
    wanted = {KIND: TRAINING, NOTE: EXPERIMENT_NOTE.format(name=experiment.name)}
    # A person may have written another description.
    return {name: value for name, value in wanted.items() if name not in experiment.tags}


def saved_view(study: StudyRecord, parent: str) -> tuple[str, str]:
    """The tag, by name and value, that holds a study's view.

    Args:
        parent: id of the study's run, which is shown with its trials below it.
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
        # Pages before 3.17 know no names: they look for the state's own keys.
        text = json.dumps(named | state)
        if len(text) <= TAG_LENGTH or not columns:
            return f"{PREFIX}{_key(study.uid)}", text
        columns.pop()


def study_pages(tracking_uri: str) -> list[Page]:
    """All studies that have a view, the newest first. Raises `InputError` where the store cannot be reached."""
    with errors_told_plainly(tracking_uri):
        experiments = open_client(tracking_uri).search_experiments()
    found = []
    for experiment in experiments:
        for tag, text in experiment.tags.items():
            if not tag.startswith(PREFIX):
                continue
            try:
                view = json.loads(text)
                made, name = int(view["createdAt"]), str(view["name"])
            except (ValueError, KeyError, TypeError):
                continue  # a person's own, saved by another release
            query = urlencode({"workflowType": WORKFLOW, "viewStateShareKey": tag.removeprefix(PREFIX)})
            found.append((made, Page(name, f"/#/experiments/{experiment.experiment_id}/runs?{query}")))
    return [page for _, page in sorted(found, key=lambda item: -item[0])]


def address_of(page: Page, server: str) -> str:
    """For a person's browser; without a password that the server's address may hold."""
    return without_password(server).rstrip("/") + page.path


def _key(uid: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", uid)


def _column(name: str) -> str:
    """``metrics.val/image_auroc`` as the pages write it."""
    kind, _, rest = name.partition(".")
    return f"{kind}.`{rest}`"
