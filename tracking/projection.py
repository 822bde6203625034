"""A study in MLflow: one parent run, and one child run for each trial. It is a copy, which can be lost and made again.

Every step may be repeated: runs are searched by their tags before they are made, metrics have the time of the trial's end so that
MLflow stores a repeated point once, and the tag `trial.synced`, which is written last, is the digest of what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from detectors.errors import InputError
from tracking.addresses import without_password
from tracking.figures import StudyFigures
from tracking.patience import Patience
from tracking.records import RUN_STATUS, DatasetRecord, StudyRecord, TrialRecord
from tracking.store import is_away, open_client, origin_tags, store_calls
from tracking.views import experiment_tags, saved_view, view_of_all_studies

PAGE = 1000
"""Runs that are read in one request."""
MAX_PARAM_LENGTH = 6000
MAX_NAME_LENGTH = 250
"""Most letters of a parameter's value and of a metric's name in MLflow."""
LOG_TAIL_BYTES = 20_000
"""Bytes of the end of a log that are stored if a trial failed."""
T = TypeVar("T")


@dataclass
class _Child:
    """The run of a trial."""

    run_id: str
    synced: str = ""
    """Digest of what was written last; empty while it is being written."""

    @classmethod
    def of(cls, run: Run) -> _Child:
        return cls(run.info.run_id, run.data.tags.get("trial.synced", ""))


class Projection:
    """Writes one study into one MLflow store. Only the driver of the study uses it, so that there is a single writer."""

    def __init__(
        self,
        tracking_uri: str,
        *,
        artifact_root: Path | None = None,
        lock_folder: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Args:
            artifact_root: folder in which a local store keeps artifacts; None lets the server decide.
            lock_folder: folder of a lock that keeps processes from creating a local store at the same time.
            patience: how long to wait for the store, and how to report it; default as `Patience()`.

        Raises:
            InputError: the store cannot be reached or opened.
        """
        self.tracking_uri, self._artifact_root = tracking_uri, artifact_root
        self._patience = patience or Patience()
        self._client = open_client(tracking_uri, lock_folder=lock_folder, artifacts=artifact_root)
        self._study: StudyRecord | None = None
        self._experiment_id = ""
        self._parent = ""
        self._figures: StudyFigures | None = None
        self._children: dict[int, _Child] = {}

    @property
    def parent_run_id(self) -> str:
        """Run id of the study that was opened; empty before that."""
        return self._parent

    def run_id(self, number: int) -> str | None:
        """Run id of a trial; None if it was not written yet."""
        child = self._children.get(number)
        return child.run_id if child else None

    def open(self, study: StudyRecord) -> str:
        """Find or make the parent run, and read which child runs there are.

        Returns:
            The run id of the parent run.

        Raises:
            InputError: the store cannot be reached, or the experiment was deleted in MLflow.
        """
        self._study = study
        self._patiently(lambda tries: self._open(study))
        self.write_study(study)
        return self._parent

    def _open(self, study: StudyRecord) -> None:
        experiment = self._find_experiment(study.experiment)
        self._experiment_id = str(experiment.experiment_id)
        wanted = dict([view_of_all_studies(experiment)])
        for name, value in (experiment_tags(experiment) | wanted).items():
            self._client.set_experiment_tag(self._experiment_id, name, value)
        runs = list(self._runs(study.uid))
        parents = [run for run in runs if run.data.tags.get("study.role") == "study"]
        self._children = {
            int(run.data.tags["trial.number"]): _Child.of(run)
            for run in runs
            if run.data.tags.get("study.role") == "trial"
        }
        if parents:
            self._parent = parents[0].info.run_id
            return
        self._parent = self._client.create_run(
            self._experiment_id,
            start_time=study.started_ms,
            run_name=study.name,
            tags={**self._common_tags(), "study.role": "study"},
        ).info.run_id

    def write_study(self, study: StudyRecord) -> None:
        """Write the parent run. If a user deleted it in MLflow, it is restored."""
        self._study = study
        self._patiently(lambda tries: self._write_study(study))

    def write_figures(self, study: StudyRecord) -> None:
        """Write the metrics of the parent run alone, as after each trial. If a user deleted the run in MLflow, it is restored."""
        self._study = study
        self._patiently(lambda tries: self._write_figures(study))

    def _write_figures(self, study: StudyRecord) -> None:
        run = self._active_parent()
        if self._figures is None:
            self._figures = StudyFigures(self._client, self._parent)
        self._figures.write(run, study.figures, study.curves)

    def _active_parent(self) -> Run:
        """The parent run, which is restored where it was deleted."""
        run = self._client.get_run(self._parent)
        if run.info.lifecycle_stage == "deleted":
            self._client.restore_run(self._parent)
        return run

    def _write_study(self, study: StudyRecord) -> None:
        self._active_parent()
        tags = {
            **self._common_tags(),
            "study.role": "study",
            "study.state": study.state,
            "mlflow.note.content": study.note,
        }
        self._write(self._parent, params=study.params, tags=tags)
        self._write_figures(study)
        self._client.set_experiment_tag(self._experiment_id, *saved_view(study, self._parent))
        if study.datasets:
            self._client.log_inputs(self._parent, [_dataset_input(dataset) for dataset in study.datasets])
        if study.artifacts and study.artifacts.is_dir():
            self._client.log_artifacts(self._parent, str(study.artifacts))
        if study.state == "RUNNING":
            self._client.update_run(self._parent, status="RUNNING")
        else:
            self._client.set_terminated(self._parent, status=study.state, end_time=study.finished_ms)

    def add_files(self, *, experiment: str, uid: str, folder: Path) -> str:
        """Store the files of a folder in a study's parent run; files of the same name are replaced. The study need not be open.

        Returns:
            The run id.

        Raises:
            InputError: the study has no run there, or the store cannot be reached.
        """
        with store_calls(self.tracking_uri):
            known = self._client.get_experiment_by_name(experiment)
            runs = (
                self._client.search_runs(
                    [known.experiment_id],
                    filter_string=f"tags.`study.uid` = '{uid}' and tags.`study.role` = 'study'",
                    max_results=1,
                )
                if known is not None
                else []
            )
            if not runs:
                raise InputError(
                    f"the MLflow experiment {experiment!r} has no run of this study; `study run` makes it again"
                )
            self._client.log_artifacts(runs[0].info.run_id, str(folder))
            return str(runs[0].info.run_id)

    def write_trial(self, trial: TrialRecord) -> str:
        """Write the child run of a trial, unless it was written with the same content already.

        A run that a user deleted in MLflow stays deleted.

        Returns:
            The run id.
        """
        return self._patiently(lambda tries: self._write_trial(trial, again=tries > 0))

    def _write_trial(self, trial: TrialRecord, *, again: bool) -> str:
        digest = self._digest(trial)
        if again and trial.number not in self._children and (found := self._find_child(trial.number)) is not None:
            # The connection broke after the run was made and before its id was returned.
            self._children[trial.number] = _Child.of(found)
        tags, unwritten = self._trial_tags(trial), {}
        child = self._children.get(trial.number)
        if child is None:
            run = self._client.create_run(
                self._experiment_id, start_time=trial.started_ms, run_name=trial.run_name, tags=tags
            )
            child = self._children[trial.number] = _Child(run.info.run_id)
        elif child.synced == digest:
            return child.run_id
        else:
            # It is read again, because a user may have deleted it since.
            run = self._client.get_run(child.run_id)
            if run.info.lifecycle_stage == "deleted":
                return child.run_id
            unwritten = tags
        child.synced = ""
        self._fill(child.run_id, trial, unwritten)
        if trial.state != "RUNNING":
            status = "KILLED" if trial.failure == "interrupted" else RUN_STATUS[trial.state]
            self._client.set_terminated(child.run_id, status=status, end_time=trial.finished_ms)
        elif run.info.status != "RUNNING":
            self._client.update_run(child.run_id, status="RUNNING")
        self._client.set_tag(child.run_id, "trial.synced", digest)
        child.synced = digest
        return child.run_id

    def _find_child(self, number: int) -> Run | None:
        key = f"{self._require_study().uid}/{number}"
        runs = self._client.search_runs(
            [self._experiment_id],
            filter_string=f"tags.`trial.key` = '{key}'",
            run_view_type=ViewType.ALL,
            max_results=1,
        )
        return runs[0] if runs else None

    def _patiently(self, action: Callable[[int], T]) -> T:
        """Run an action that may be repeated until the store answers. Raises `InputError` if it does not in time."""
        with store_calls(self.tracking_uri):
            what = f"MLflow store {without_password(self.tracking_uri)}"
            return self._patience.until_back(action, is_away=is_away, what=what)

    def _fill(self, run_id: str, trial: TrialRecord, tags: Mapping[str, str]) -> None:
        """Write parameters, metrics, images and files of one trial."""
        if trial.state == "RUNNING":
            # Metrics are written at the end, because they have its time: with another time MLflow would store them twice.
            self._write(run_id, params=trial.params, tags=tags)
            return
        self._write(run_id, params=trial.params, metrics=_metrics_of(trial), tags=tags)
        study = self._require_study()
        if trial.state == "COMPLETE" and study.datasets:
            seen = [dataset for dataset in study.datasets if f"{dataset.context}/" in _sets_seen(trial)]
            self._client.log_inputs(run_id, [_dataset_input(dataset) for dataset in seen])
        for place, folder in trial.artifacts.items():
            if folder.is_dir():
                self._client.log_artifacts(run_id, str(folder), artifact_path=place or None)
        if trial.state == "FAIL" and trial.log and trial.log.is_file():
            self._client.log_text(run_id, log_tail(trial.log), "log_tail.txt")

    def _trial_tags(self, trial: TrialRecord) -> dict[str, str]:
        study = self._require_study()
        feasible = {} if trial.feasible is None else {"trial.feasible": str(trial.feasible).lower()}
        return {
            **self._common_tags(),
            **trial.tags,
            **feasible,
            "study.role": "trial",
            "mlflow.parentRunId": self._parent,
            "trial.key": f"{study.uid}/{trial.number}",
            "trial.number": str(trial.number),
            "trial.attempt": str(trial.attempt),
            "trial.state": trial.state,
            "trial.failure": trial.failure,
        }

    def _common_tags(self) -> dict[str, str]:
        study = self._require_study()
        return {**origin_tags(), **study.tags, "study.uid": study.uid, "study.name": study.name}

    def _write(
        self, run_id: str, *, params: Mapping[str, str], tags: Mapping[str, str], metrics: Iterable[Metric] = ()
    ) -> None:
        self._client.log_batch(
            run_id,
            metrics=list(metrics),
            params=[Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def _digest(self, trial: TrialRecord) -> str:
        """Digest of all that `write_trial` writes; files count by name and size."""
        files = [path for folder in trial.artifacts.values() for path in sorted(folder.rglob("*")) if path.is_file()]
        listing = [[path.name, path.stat().st_size] for path in files]
        content = {name: value for name, value in asdict(trial).items() if name not in ("artifacts", "log")} | {
            "files": listing,
            "parent": self._parent,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def _runs(self, uid: str) -> Iterator[Run]:
        """All runs of a study, deleted ones included."""
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                filter_string=f"tags.`study.uid` = '{uid}'",
                run_view_type=ViewType.ALL,
                max_results=PAGE,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _find_experiment(self, name: str) -> Experiment:
        """The experiment of a name, which is made if there is none. Raises `InputError` if it was deleted."""
        known = self._client.get_experiment_by_name(name)
        if known is None:
            location = (self._artifact_root / name).as_uri() if self._artifact_root else None
            try:
                return self._client.get_experiment(self._client.create_experiment(name, artifact_location=location))
            except MlflowException:
                # Another study of the same images may have made it meanwhile.
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        if known.lifecycle_stage == "deleted":
            raise InputError(
                f"the MLflow experiment {name!r} was deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {known.experiment_id}`"
            )
        return known

    def _require_study(self) -> StudyRecord:
        if self._study is None:
            raise RuntimeError("open a study first")
        return self._study


def _metric_name(name: str) -> str:
    """A metric's name without characters that MLflow refuses; the type of a defect in it may be any folder's name."""
    return re.sub(r"[^\w.\- :/]", "_", name)[:MAX_NAME_LENGTH]


def _metrics_of(trial: TrialRecord) -> list[Metric]:
    """The points of a trial that has ended."""
    end = trial.finished_ms or trial.started_ms
    metrics = [
        # Of points with one time and step MLflow shows the highest, so what is set anew needs a later time.
        Metric(_metric_name(name), value, (trial.revised_ms or end) if _is_revised(name) else end, 0)
        for name, value in trial.metrics.items()
    ]
    metrics += [Metric(_metric_name(name), value, trial.later_ms or end, 0) for name, value in trial.later.items()]
    return metrics + [Metric("intermediate", value, time, step) for step, value, time in trial.steps]


def _is_revised(name: str) -> bool:
    """Whether a figure changes with the threshold of a trial's detector."""
    return name.startswith(("test/", "threshold"))


def log_tail(path: Path) -> str:
    """The last `LOG_TAIL_BYTES` of a log."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")


def _sets_seen(trial: TrialRecord) -> set[str]:
    """Contexts, such as ``test/``, of the image sets that a trial used: those of its metrics, and train."""
    prefixes = {"train/"}
    prefixes |= {"validation/" for name in trial.metrics if name.startswith("val/")}
    return prefixes | {"test/" for name in trial.metrics if name.startswith("test/")}


def _dataset_input(dataset: DatasetRecord) -> DatasetInput:
    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest[:32],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps(dataset.counts),
    )
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", dataset.context)])
