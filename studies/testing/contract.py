"""The contract of executors as a pytest class; see `studies.testing` for how to use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from detectors import catalog
from detectors.backbones.pyramid import weights_identity
from detectors.data.widgets import write_widgets
from studies.executors.base import Executor
from studies.executors.process import Runner
from studies.file import datasets
from studies.file.config import validate
from studies.home import Home
from studies.testing import jobs as scripted_jobs
from studies.worker.jobs import Job, TrialResult
from studies.worker.trial import run_job

pytest.register_assert_rewrite("studies.testing.checks")

from studies.testing import checks  # noqa: E402 (an assertion that fails then shows its values)
from studies.testing.checks import Record  # noqa: E402

BACKBONE, LAYERS = "resnet18@random", [8, 16]


def job_maker(folder: Path) -> Callable[..., Job]:
    """Makes jobs of a small PaDiM study on drawn images, which lie in this folder with the home of the jobs."""
    home = Home(folder / "home").prepare()
    raw = {
        "name": "tiny",
        "detector": "padim",
        "data": {
            "dataset": "tiny",
            "category": "widget",
            "root": str(write_widgets(folder / "data")),
            "image_size": 64,
        },
        "search": {"n_features": {"int": [4, 40]}},
        "fixed": {"backbone": BACKBONE, "layers": LAYERS, "smoothing_sigma": 2.0},
    }
    config = validate(raw, source="tiny")
    defaults = {name: parameter.default for name, parameter in catalog.parameters("padim").items()}
    params = {**defaults, "backbone": BACKBONE, "layers": LAYERS, "n_features": 12, "smoothing_sigma": 2.0}
    images = datasets.load(config, home)
    first = Job(
        task="trial",
        study_uid="0123456789ab",
        number=0,
        attempt=1,
        config=config.to_json() | {"protocol": images.protocol},
        params=params,
        strides=tuple(LAYERS),
        weights_sha256=weights_identity(BACKBONE).sha256,
        splits_digest=images.digest,
        seed=0,
        structural_seed=0,
        home=str(home.root),
        folder=str(folder / "job"),
        device="cpu",
        threads=1,
    )
    return partial(_changed, first)


def _changed(first: Job, number: int, *, folder: Path, params: dict[str, Any] | None = None, **changes: Any) -> Job:
    return replace(
        first, number=number, seed=number, folder=str(folder), params={**first.params, **(params or {})}, **changes
    )


class ExecutorContract:
    """Tests of one executor; a subclass, whose name begins with ``Test``, says how to make it."""

    in_processes: ClassVar[bool] = True
    """Whether jobs run in processes of their own, which may crash, hang, and be ended."""

    @classmethod
    def make_executor(cls, *, run: Runner | None = None, trial_timeout: float = float("inf")) -> Executor:
        """A new executor with room for two jobs, or three.

        Args:
            run: what a worker does with a job; None for `studies.worker.trial.run_job`.
            trial_timeout: seconds after which a job is ended and lost.
        """
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def make_job(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
        """Makes jobs on drawn images."""
        return job_maker(tmp_path_factory.mktemp("study"))

    @pytest.fixture(scope="class")
    @classmethod
    def reference(cls, make_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
        """What the job ``trial`` gives without an executor."""
        return run_job(make_job(5, folder=tmp_path_factory.mktemp("reference")))

    @pytest.fixture(scope="class")
    @classmethod
    def record(
        cls, make_job: Callable[..., Job], reference: TrialResult, tmp_path_factory: pytest.TempPathFactory
    ) -> Record:
        """What became of real jobs."""
        return checks.run(cls.make_executor(), checks.batch(make_job, tmp_path_factory.mktemp("real")), reference)

    @pytest.fixture(scope="class")
    @classmethod
    def scripted(cls, make_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Record:
        """What became of jobs that do on purpose what real ones do rarely."""
        batch = checks.scripted(make_job, tmp_path_factory.mktemp("scripted"), in_processes=cls.in_processes)
        return checks.run(cls.make_executor(run=scripted_jobs.act), batch)

    @pytest.mark.parametrize("check", [*checks.CHECKS, *checks.FAILURE_CHECKS], ids=lambda check: check.__name__)
    def test_real_jobs(self, record: Record, check: Callable[[Record], None]) -> None:
        check(record)

    @pytest.mark.parametrize("check", checks.SCRIPTED_CHECKS, ids=lambda check: check.__name__)
    def test_scripted_jobs(self, scripted: Record, check: Callable[[Record], None]) -> None:
        check(scripted)

    def test_closing_leaves_nothing(self, make_job: Callable[..., Job], tmp_path: Path) -> None:
        checks.closing_leaves_nothing(self.make_executor(), make_job(1, folder=tmp_path / "job"))

    def test_closing_ends_hanging_workers_and_their_children(
        self, make_job: Callable[..., Job], tmp_path: Path
    ) -> None:
        if not self.in_processes:
            pytest.skip("no processes that could hang")
        checks.closing_ends_everything(self.make_executor(run=scripted_jobs.act), make_job, tmp_path)

    def test_hanging_jobs_are_lost_in_time(self, make_job: Callable[..., Job], tmp_path: Path) -> None:
        if not self.in_processes:
            pytest.skip("no processes that could hang")
        executor = self.make_executor(run=scripted_jobs.act, trial_timeout=5.0)
        checks.hanging_jobs_are_lost_in_time(executor, make_job, tmp_path)
