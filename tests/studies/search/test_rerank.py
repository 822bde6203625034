"""The best settings are fitted again before one is selected: which, how often, at what cost, and after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from detectors.files import write_json
from studies.executors.inline import InlineExecutor
from studies.search import candidates, portfolio, rerank
from studies.search.choice import Choice, sentences
from studies.search.portfolio import Entry, Portfolio
from studies.search.rerank import FITS, TRAIN_SHARE
from studies.upkeep.inventory import take_inventory
from studies.worker.jobs import ARTIFACTS, CHECKPOINTS, Job, Probe, TrialResult, read_result
from studies.worker.validation_scores import VALIDATION_SCORES_FILE, ValidationScores
from tests.helpers.bench import Answer, Bench, Killed, ScriptedExecutor

LABELS = [0] * 12 + [1] * 12
SETTINGS = [{"n_features": 10 + number, "shrinkage": 0.1} for number in range(4)]
STUDY: dict[str, Any] = {"search": {}, "baselines": SETTINGS, "budget": {"trials": 4}, "rerank": 5}


@dataclass
class Fitting(ScriptedExecutor):
    """Trials and probes keep scores that are worth what the script says, with noise that all share."""

    def _result(self, job: Job, metrics: Mapping[str, float]) -> TrialResult:
        if job.task in ("trial", "probe") and "val/image_auroc" in metrics:
            shared = np.random.default_rng(0).normal(size=len(LABELS))
            own = 0.2 * np.random.default_rng(job.number + 1).normal(size=len(LABELS))
            scores = shared + own + 4 * (metrics["val/image_auroc"] - 0.5) * np.array(LABELS)
            kept = ValidationScores(
                keys=[f"{index}.png" for index in range(len(LABELS))],
                labels=[1 if label else 0 for label in LABELS],
                scores=scores.tolist(),
            )
            write_json(job.path / ARTIFACTS / VALIDATION_SCORES_FILE, kept.model_dump(mode="json", exclude_none=True))
        return super()._result(job, metrics)


def values(*aurocs: float, **others: float) -> Any:
    return lambda job: {"val/image_auroc": aurocs[job.number], "fps": 50.0, **others}


def probed(table: Mapping[int, Sequence[Answer | float]]) -> Any:
    """{trial: answer of each resample}"""

    def script(job: Job) -> Answer:
        assert job.probe is not None
        answer = table[job.number][job.probe.resample - 1]
        return {"val/image_auroc": answer} if isinstance(answer, float) else answer

    return script


@pytest.fixture(autouse=True)
def no_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "stored", lambda: Portfolio(version=1, products=[], entries=[]))


LUCKY = values(0.95, 0.90, 0.60, 0.50)
"""The first was lucky: its other fits are worse than the second's."""
AGAIN = {0: (0.80, 0.81, 0.79), 1: (0.90, 0.91, 0.90), 2: (0.6, 0.6, 0.6), 3: (0.5, 0.5, 0.5)}


def choice_of(bench: Bench) -> Choice:
    found = bench.view().choice()
    assert found is not None
    return found


def test_a_lucky_fit_gives_way_to_the_best_mean(bench: Bench) -> None:
    executor = Fitting(LUCKY, probe=probed(AGAIN))
    outcome = bench.run(executor, **STUDY)
    assert outcome.selected is not None
    assert outcome.selected.number == 1
    assert [job.number for job in executor.finals] == [1]
    assert len(executor.probes) == 4 * FITS
    choice = choice_of(bench)
    assert choice.values == pytest.approx({1: 0.9025, 0: 0.8375, 2: 0.6, 3: 0.5})
    assert (choice.fresh_fits, choice.rerank, choice.tied_before) == (FITS, 5, 1)
    text = (
        "the best four were fitted again on other subsets of train, 3 times each: mean image_auroc of all fits trial 1 0.9025, "
        "trial 0 0.8375, trial 2 0.6000, trial 3 0.5000"
    )
    assert sentences(choice, bench.view().config) == [text]
    assert f"{text[0].upper()}{text[1:]}." in bench.parent().data.tags["mlflow.note.content"]
    # The trials keep the figures of the search.
    assert [trial.value for trial in bench.view().trials()] == [0.95, 0.90, 0.60, 0.50]
    told = "the best 4 settings are fitted again on other parts of train, 3 times each"
    assert f"{told}, to tell the better from the luckier: about 1 s" in bench.said()
    # What stands is not done again.
    again = Fitting(LUCKY, probe=probed(AGAIN))
    bench.run(again, **STUDY)
    assert again.jobs == []
    assert bench.said().count(told) == 1


def test_a_probe_has_other_seeds_which_all_settings_share_and_never_sees_test(bench: Bench) -> None:
    executor = Fitting(LUCKY, probe=probed(AGAIN))
    bench.run(executor, **STUDY)
    trials = {job.number: job for job in executor.trials}
    structures = set()
    for resample in range(1, FITS + 1):
        jobs = [job for job in executor.probes if job.probe == Probe(resample, TRAIN_SHARE, repaint=True)]
        assert sorted(job.number for job in jobs) == [0, 1, 2, 3]
        (structure,) = {job.structural_seed for job in jobs}
        structures.add(structure)
        assert all(job.seed != trials[job.number].seed for job in jobs)
        assert all(job.config == trials[job.number].config for job in jobs)
    assert len(structures | {trials[0].structural_seed}) == FITS + 1
    assert len({job.seed for job in executor.probes}) == len(executor.probes)
    assert len({job.folder for job in executor.probes}) == len(executor.probes)
    assert [line.purpose for line in bench.view().ledger()] == []


def test_the_best_five_are_the_tied_ones_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(detector="padim", setting=SETTINGS[2], mean_rank=0.1, products=2)]
    monkeypatch.setattr(portfolio, "stored", lambda: Portfolio(version=1, products=["a"], entries=entries))
    monkeypatch.setattr(candidates, "_place", lambda detector, setting: 1.0 if '"n_features": 12' in setting else 9.0)
    same = dict.fromkeys(range(4), (0.9, 0.9, 0.9))
    executor = Fitting(values(0.9, 0.9, 0.9, 0.7), probe=probed(same))
    outcome = bench.run(executor, **STUDY | {"rerank": 2})
    assert sorted({job.number for job in executor.probes}) == [0, 2]
    assert outcome.selected is not None
    assert outcome.selected.number == 2
    text = " ".join(sentences(choice_of(bench), bench.view().config))
    assert "the best two (3 tied within noise) were fitted again" in text
    assert "2 trials tie within noise; the one first in the prior was taken: trial 2" in text


@pytest.mark.parametrize(
    ("executor", "changes"),
    [
        (Fitting(LUCKY), {"rerank": 0}),
        (ScriptedExecutor(LUCKY), {}),  # no scores were kept, as in trials of an earlier version
        (Fitting(LUCKY), {"budget": {"trials": 1}}),
        (Fitting(LUCKY), {"constraints": {"image_auroc": ">= 0.93"}}),
        (Fitting(LUCKY), {"objectives": {"image_auroc": "maximize", "fps": "maximize"}}),
    ],
)
def test_nothing_is_fitted_again_where_there_is_nothing_to_decide(
    bench: Bench, executor: ScriptedExecutor, changes: dict[str, Any]
) -> None:
    outcome = bench.run(executor, **STUDY | changes)
    assert executor.probes == []
    assert outcome.selected is not None
    assert outcome.selected.number == 0
    assert choice_of(bench).fresh_fits == 0


def test_rerank_may_change_on_resume(bench: Bench) -> None:
    bench.run(Fitting(LUCKY), **STUDY | {"rerank": 0})
    assert choice_of(bench).trial == 0
    executor = Fitting(LUCKY, probe=probed(AGAIN))
    outcome = bench.run(executor, **STUDY | {"rerank": 2})
    assert executor.trials == []
    assert sorted({job.number for job in executor.probes}) == [0, 1]
    assert outcome.selected is not None
    assert outcome.selected.number == 1
    # More of them: those that are there are not fitted again.
    executor = Fitting(LUCKY, probe=probed(AGAIN))
    bench.run(executor, **STUDY | {"rerank": 3})
    assert sorted({job.number for job in executor.probes}) == [2]


def test_a_killed_driver_goes_on_with_what_is_missing(bench: Bench) -> None:
    answers: dict[int, Any] = {**AGAIN, 1: (0.90, Killed(), 0.90)}
    first = Fitting(LUCKY, probe=probed(answers))
    bench.kill(first, **STUDY)
    done = [(job.number, job.probe.resample) for job in first.probes if job.probe is not None][:-1]
    second = Fitting(LUCKY, probe=probed(AGAIN))
    outcome = bench.run(second, **STUDY)
    left = [(job.number, job.probe.resample) for job in second.probes if job.probe is not None]
    assert sorted(done + left) == sorted((number, resample) for number in range(4) for resample in range(1, FITS + 1))
    assert outcome.selected is not None
    assert outcome.selected.number == 1


def test_clean_leaves_a_fit_that_was_cut_off_to_the_next_run(bench: Bench) -> None:
    answers: dict[int, Any] = {**AGAIN, 1: (0.90, Killed(), 0.90)}
    bench.kill(Fitting(LUCKY, probe=probed(answers)), **STUDY)
    checkpoints = bench.view().probe_folder(1, 2) / CHECKPOINTS
    checkpoints.mkdir(parents=True)
    assert checkpoints not in [item.path for item in take_inventory(bench.home, keep=1).items]
    bench.run(Fitting(LUCKY, probe=probed(AGAIN)), **STUDY)
    assert checkpoints in [item.path for item in take_inventory(bench.home, keep=1).items]


def test_a_result_that_a_killed_driver_did_not_store_is_taken_up(bench: Bench) -> None:
    bench.run(Fitting(LUCKY, probe=probed(AGAIN)), **STUDY | {"rerank": 2})
    view = bench.view()
    view.study.set_user_attr("probed", {})
    view.study.set_user_attr("choice", None)
    executor = Fitting(LUCKY)
    bench.run(executor, **STUDY | {"rerank": 2})
    assert executor.probes == []
    assert choice_of(bench).values == pytest.approx({1: 0.9025, 0: 0.8375})


def test_a_setting_that_cannot_be_fitted_again_is_passed_over_aloud(bench: Bench) -> None:
    answers: dict[int, Any] = {**AGAIN, 1: (0.9, "exception", 0.9)}
    outcome = bench.run(Fitting(LUCKY, probe=probed(answers)), **STUDY)
    assert "trial 1 could not be fitted again and is passed over: exception: as the script says" in bench.said()
    assert outcome.selected is not None
    assert outcome.selected.number == 0
    assert sorted(choice_of(bench).values) == [0, 2, 3]


def test_what_crashes_is_tried_again_with_smaller_batches(bench: Bench) -> None:
    crashed: list[int] = []

    def script(job: Job) -> Answer:
        if job.number == 1 and job.attempt == 1 and not crashed:
            crashed.append(1)
            return "out_of_memory"
        return {"val/image_auroc": AGAIN[job.number][0]}

    executor = Fitting(LUCKY, probe=script)
    bench.run(executor, **STUDY | {"rerank": 2})
    retried = [job for job in executor.probes if job.attempt == 2]
    assert [(job.number, job.memory_halvings) for job in retried] == [(1, 1)]
    assert choice_of(bench).trial == 1


@pytest.mark.parametrize(
    ("train_seconds", "fits", "settings"),
    [(5.0, 3, 4), (6.0, 2, 4), (18.0, 1, 3), (31.0, 0, 0)],
)
def test_the_time_is_bounded_by_what_the_trials_took(
    bench: Bench, train_seconds: float, fits: int, settings: int
) -> None:
    """Trials of half a second each: a minute may be spent."""
    executor = Fitting(
        values(0.9, 0.8, 0.7, 0.6, train_seconds=train_seconds), probe=lambda job: {"val/image_auroc": 0.7}
    )
    bench.run(executor, **STUDY)
    assert len(executor.probes) == fits * settings
    assert len({job.number for job in executor.probes}) == settings
    told = "the best settings were not fitted again, because two of them would take about 62 s, more than the 60 s"
    assert (told in bench.said()) == (fits == 0)


def test_several_at_a_time(bench: Bench) -> None:
    executor = Fitting(LUCKY, probe=probed(AGAIN), slots=3)
    outcome = bench.run(executor, **STUDY)
    assert len(executor.probes) == 4 * FITS
    assert outcome.selected is not None
    assert outcome.selected.number == 1


def test_in_a_real_study_probes_leave_scores_on_validation_and_no_line_in_the_ledger(bench: Bench) -> None:
    settings = [{"n_features": 12, "shrinkage": 0.1}, {"n_features": 30, "shrinkage": 0.3}]
    changes: dict[str, Any] = {"search": {}, "baselines": settings, "budget": {"trials": 2}, "rerank": 2}
    outcome = bench.run(InlineExecutor(), **changes)
    assert outcome.selected is not None
    view = bench.view()
    assert [line.purpose for line in view.ledger()] == ["selected"]
    seen = set()
    for number in (0, 1):
        for resample, value in view.probed(number).items():
            folder = view.probe_folder(number, resample)
            result = read_result(folder)
            assert result is not None
            assert (result.task, result.metrics["val/image_auroc"]) == ("probe", value)
            assert "fps" not in result.metrics
            assert not any(name.startswith("test/") for name in result.metrics)
            scores = ValidationScores.model_validate_json((folder / ARTIFACTS / VALIDATION_SCORES_FILE).read_bytes())
            seen.add(tuple(scores.scores))
        assert sorted(view.probed(number)) == list(range(1, rerank.FITS + 1))
    assert len(seen) == 2 * rerank.FITS
    choice = choice_of(bench)
    assert choice.fresh_fits == rerank.FITS
    assert set(choice.values) == {0, 1}
