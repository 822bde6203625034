"""A study that was run: its trials as a table, the best of them, its report, its detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.api import html
from studies.api.detector import Predictor, load_detector
from studies.file.config import StudyConfig
from studies.home import home_at
from studies.release.locate import open_home, open_view, usable_detector
from studies.search import nested, threshold_words
from studies.search import storage as studies_storage
from studies.search.operating_point import points_on_test, pooled
from studies.search.outcome import Outcome
from studies.search.summary import headline, trial_row
from studies.search.view import StudyView, TrialView

if TYPE_CHECKING:
    import pandas as pd

    from studies.release.promotion import Promotion


@dataclass(frozen=True)
class Trial:
    """One trial of a study, as plain values."""

    number: int
    state: str
    """``RUNNING``, ``COMPLETE``, ``PRUNED`` or ``FAIL``."""
    value: float | None
    """The first objective, on validation; None where the trial did not complete."""
    params: dict[str, Any]
    """The full setting, fixed values included."""
    metrics: dict[str, float]
    """Figures of the search by name: ``val/image_auroc`` (0 to 1), ``fps`` (images per second), ``train_seconds`` ..."""
    test_metrics: dict[str, float]
    """Figures of the refit on test, which the search never saw, such as ``test/image_auroc``; empty without a refit."""
    folder: Path
    """Where the trial's plots, heat maps and log are."""
    failure: str = ""
    """``<kind>: <message>`` of a trial that failed."""

    @classmethod
    def of(cls, view: TrialView) -> Trial:
        """The trial that a view shows."""
        return cls(
            number=view.number,
            state=view.state,
            value=view.value,
            params=view.params,
            metrics=view.metrics,
            test_metrics=view.test_metrics,
            folder=view.folder,
            failure=view.failure,
        )

    def _repr_html_(self) -> str:
        rows = [("trial", self.number), ("state", self.state), ("value", self.value)]
        figures = {**self.metrics, **self.test_metrics}
        return html.facts([*rows, *self.params.items(), *figures.items(), ("folder", self.folder)])


class Study:
    """A study in a home. Everything is read anew at each look: a study that is being run shows its progress.

    >>> import studies
    >>> study = studies.open_study("tiny")
    >>> study
    <Study tiny: padim on tiny/widget, 3 trials>
    >>> list(study.trials.columns[:4])
    ['state', 'selected', 'feasible', 'seconds']
    >>> study.best.params["backbone"]
    'resnet18@random'
    >>> 0 <= study.best.test_metrics["test/image_auroc"] <= 1
    True
    """

    def __init__(self, view: StudyView, *, outcome: Outcome | None = None) -> None:
        """Made by `run`, `open_study` and `list_studies`.

        Args:
            outcome: how the run ended that this comes from.
        """
        self._view, self._outcome = view, outcome

    @property
    def view(self) -> StudyView:
        """What the commands print from; not a stable interface."""
        return self._view

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended that this study comes from; None for one that was opened."""
        return self._outcome

    @property
    def name(self) -> str:
        """``NAME``, or ``NAME#2`` for the second one of this name."""
        return str(self._view.study.study_name)

    @property
    def config(self) -> StudyConfig:
        """The study file with all defaults and the protocol that it was run with."""
        return self._view.config

    @property
    def folder(self) -> Path:
        """Where the trials' files are."""
        return self._view.folder

    @property
    def trials(self) -> pd.DataFrame:
        """All trials, a row each, indexed by ``number``.

        Columns: ``state`` (``RUNNING``, ``COMPLETE``, ``PRUNED``, ``FAIL``), ``selected``, ``feasible`` (whether all constraints
        are met), ``seconds`` (wall time), one for each parameter (lists of strides as ``8+16``), one for each figure
        (``val/...`` on validation, ``test/...`` of the refit on test, 0 to 1; ``fps``, ``latency_ms_p50`` ...), ``failure``.
        """
        # A quarter of a second that `study show` need not wait for.
        import pandas as pd

        views = self._view.trials()
        rows = [trial_row(view) | {"seconds": view.seconds} for view in views]
        first, last = ["number", "state", "selected", "feasible", "seconds"], ["failure"]
        known = dict.fromkeys(name for row in rows for name in row)
        columns = [*first, *(name for name in known if name not in (*first, *last)), *last]
        return pd.DataFrame(rows, columns=columns).set_index("number")

    @property
    def best(self) -> Trial | None:
        """The trial that the study would deploy; None while none meets the constraints.

        Of the feasible ones it is the one with the best first objective, or one that ties with it within noise: then the one
        first in the prior, and of these the one that locates defects better, the faster, the earlier.
        """
        selected = self._view.selected()
        return None if selected is None else Trial.of(selected)

    @property
    def nested_estimate(self) -> dict[str, float]:
        """What the choice of `best` is worth where the labelled images are too few to keep any for test: ``nested/image_auroc``,
        ``nested/image_recall`` and ``nested/false_alarm_rate`` (0 to 1), each with ``_low`` and ``_high``, the ends of its 95 %
        interval. Empty where there are test images, and while the search goes on."""
        found = self._view.nested()
        return dict(found.metrics) if found is not None else {}

    def trial(self, number: int) -> Trial:
        """One trial by its number. Raises `KeyError` where there is none."""
        for view in self._view.trials():
            if view.number == number:
                return Trial.of(view)
        raise KeyError(number)

    def report(self, path: str | Path | None = None, *, log: bool = False) -> Path:
        """Write the study's report, one HTML file that needs no network.

        Args:
            path: default ``reports/<name>.html`` in the home.
            log: leave it in MLflow too, with the study.

        Returns:
            The file, absolute.

        Raises:
            InputError: the file cannot be written.
        """
        # Templates and MLflow, which nobody waits for who only looks at trials.
        from studies.api.reports import write_report

        return write_report([self._view], path, log=log)

    def promote(
        self,
        *,
        product: str = "",
        trial: int | None = None,
        to: str | None = None,
        dry_run: bool = False,
        force: str | None = None,
        device: str = "auto",
        progress: Callable[[str], None] = lambda text: None,
    ) -> Promotion:
        """Take the selected detector through the gate; where it passes, it becomes the champion of its registered model.

        Args:
            product: of a study over several products.
            trial: another one than the selected; it is fitted once more and scored on test.
            to: another registered model that gets a copy.
            dry_run: measure only; nothing is registered.
            force: why it is to become the champion even if the gate refuses it; goes on record.
            device: where the models are measured: ``"auto"``, ``"cpu"`` or ``"cuda:N"``.
            progress: called with a line for each step.

        Raises:
            InputError: no saved detector, images that changed since, or of another product than those of the model.
        """
        # MLflow takes a second to import.
        from studies.api.registry import promote_trial

        return promote_trial(
            self._view,
            product=product,
            trial=trial,
            to=to,
            dry_run=dry_run,
            force=force,
            device=device,
            progress=progress,
        )

    def detector(self, product: str = "", *, device: str = "auto") -> Predictor:
        """The selected trial's detector, ready to predict; while the search goes on, that of the best trial so far.

        Args:
            product: of a study over several products.
            device: ``"auto"``, ``"cpu"`` or ``"cuda:N"``.

        Raises:
            InputError: there is none yet, or none of this product.
        """
        return load_detector(usable_detector(self._view, self.name, product), device=device)

    def __repr__(self) -> str:
        count = len(self._view.trials())
        label = f"{self.config.detector_label} on {self._view.header.experiment}"
        return f"<Study {self.name}: {label}, {count} {'trial' if count == 1 else 'trials'}>"

    def _repr_html_(self) -> str:
        selected = self._view.selected()
        best = None if selected is None else Trial.of(selected)
        rows: list[tuple[str, Any]] = [
            ("study", self.name),
            ("detector", self.config.detector_label),
            ("images", self._view.header.experiment),
            ("protocol", self.config.protocol),
            ("trials", len(self._view.trials())),
        ]
        if best is not None and selected is not None:
            prefix = "test" if best.test_metrics or self.config.protocol == "paper" else "val"
            points = points_on_test(self._view, selected)
            rows += [
                ("best trial", best.number),
                (next(iter(self.config.objectives)), best.value),
                (f"on {prefix}", headline({**best.metrics, **best.test_metrics}, prefix, pooled(points)) or None),
                *([(nested.CALLED, nested.headline(found))] if (found := self._view.nested()) is not None else []),
                ("setting", ", ".join(f"{name} {html.shown(value)}" for name, value in best.params.items())),
            ]
            for point in points:
                if point.threshold is not None:
                    name = f"threshold of {point.product}" if point.product else "threshold"
                    rows += [(name, threshold_words.basis(point.threshold))]
                    rows += [("beware", remark) for remark in threshold_words.remarks(point.threshold)]
        return html.facts(rows)


def open_study(name: str, *, home: str | Path | None = None) -> Study:
    """A study that was run, by its name; ``NAME#2`` is the one that ``fresh`` started beside ``NAME``.

    Args:
        home: where studies are kept; default ``STUDY_HOME`` or ``./outputs``.

    Raises:
        InputError: there is none of this name; the message lists those there are.

    >>> import studies
    >>> studies.open_study("tiny").name
    'tiny'
    >>> studies.open_study("tinny")
    Traceback (most recent call last):
    detectors.errors.InputError: no study 'tinny' was run here; did you mean tiny? there are: tiny
    """
    return Study(open_view(name, home_at(home)))


def list_studies(*, home: str | Path | None = None) -> list[Study]:
    """All studies of a home, by name.

    Raises:
        InputError: no study was run there.

    >>> import studies
    >>> [study.name for study in studies.list_studies()]
    ['tiny']
    """
    place, storage = open_home(home_at(home))
    return [Study(StudyView(study, header, place)) for study, header in studies_storage.all_studies(storage)]


def distinct_studies(names: list[str], *, home: str | Path | None = None) -> list[Study]:
    """Studies by name, each once: ``NAME`` and ``NAME#2`` may be one. Raises `InputError` for one that is not there."""
    place, storage = open_home(home_at(home))
    views = [StudyView(*studies_storage.load_study(storage, name), place) for name in dict.fromkeys(names)]
    return [Study(view) for view in {view.header.uid: view for view in views}.values()]
