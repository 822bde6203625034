"""Which trial is taken where the images do not tell the best ones apart, and that all who ask get the same answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.files import write_json
from studies.report.search import Search
from studies.report.summary import summary_sentences
from studies.search import candidates, choice, portfolio
from studies.search.choice import CHOICE, WITHIN, Candidate, Choice, Preference, decide, sentences
from studies.search.noise import Spread, mean_spread, spread_of
from studies.search.portfolio import Entry, Portfolio
from studies.search.view import StudyView
from studies.show.study_json import study_json
from studies.upkeep.inventory import take_inventory
from studies.worker.jobs import ARTIFACTS, CHECKPOINTS, Job, TrialResult
from studies.worker.validation_scores import VALIDATION_SCORES_FILE, ValidationScores
from tests.helpers.bench import Bench, ScriptedExecutor
from tests.helpers.builders import make_config

IMAGES = ("digest",)
LABELS = [0] * 12 + [1] * 12


def replicates(seed: int, size: int = 4000) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).normal(size=size)
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float64)


def candidate(
    number: int,
    value: float,
    *,
    error: float = 0.1,
    prior: float = math.inf,
    aupro: float = 0.0,
    fps: float = 0.0,
    images: tuple[str, ...] | None = IMAGES,
    fits: Sequence[float] = (),
) -> Candidate:
    """One whose value has a standard error of its own, independent of all others."""
    spread = None if images is None else Spread(images, error * replicates(number))
    return Candidate(number, (value, *fits), Preference(prior, -aupro, -fps, number), spread)


def chosen(*all_candidates: Candidate, maximize: bool = True, ties: bool = True) -> Choice:
    found = decide(all_candidates, maximize=maximize, ties=ties)
    assert found is not None
    return found


def test_what_lies_within_the_noise_ties_and_nothing_else() -> None:
    inside, outside = 0.9 - 0.95 * WITHIN * 0.1 * math.sqrt(2), 0.9 - 1.05 * WITHIN * 0.1 * math.sqrt(2)
    found = chosen(candidate(0, inside), candidate(1, 0.9), candidate(2, outside))
    assert found.tied == [0, 1]
    assert (found.trial, found.leader, found.by) == (0, 1, "order")
    assert found.values == {0: inside, 1: 0.9}
    # Where both follow the same images, a small lead is one.
    a, b = candidate(0, 0.899), candidate(1, 0.9)
    same = Candidate(0, a.values, a.preference, b.spread)
    assert chosen(same, b).tied == [1]


def test_ties_go_to_the_prior_then_to_localisation_then_to_speed_then_to_the_earlier() -> None:
    plain = [candidate(0, 0.9), candidate(1, 0.9)]
    assert (chosen(*plain).trial, chosen(*plain).by) == (0, "order")
    speed = [candidate(0, 0.9, fps=5), candidate(1, 0.9, fps=6)]
    assert (chosen(*speed).trial, chosen(*speed).by) == (1, "speed")
    located = [candidate(0, 0.9, aupro=0.8, fps=5), candidate(1, 0.9, aupro=0.7, fps=6)]
    assert (chosen(*located).trial, chosen(*located).by) == (0, "localisation")
    known = [candidate(0, 0.91, aupro=0.8), candidate(1, 0.9, prior=7), candidate(2, 0.9, prior=3)]
    assert (chosen(*known).trial, chosen(*known).tied, chosen(*known).by) == (2, [2, 1, 0], "prior")


def test_lower_can_be_better() -> None:
    found = chosen(candidate(0, 0.02, error=0.01), candidate(1, 0.021, error=0.01), candidate(2, 0.5), maximize=False)
    assert (found.leader, found.tied) == (0, [0, 1])


@pytest.mark.parametrize("images", [None, ("other",)])
def test_what_cannot_be_compared_does_not_tie(images: tuple[str, ...] | None) -> None:
    """No scores were kept, as before trials were compared by them, or those of other images."""
    found = chosen(candidate(0, 0.9, fps=5), candidate(1, 0.9, fps=6, images=images))
    assert (found.trial, found.tied, found.by) == (1, [1], "value")
    assert sentences(found, make_config(Path("unused"))) == []


def test_without_replicates_only_equals_tie() -> None:
    spread = Spread(IMAGES, None)
    trials = [
        Candidate(0, (0.9,), Preference(math.inf, 0, -5, 0), spread),
        Candidate(1, (0.9,), Preference(2, 0, -4, 1), spread),
        Candidate(2, (0.8999,), Preference(1, 0, -9, 2), spread),
    ]
    found = chosen(*trials)
    assert (found.leader, found.trial, found.tied, found.by) == (0, 1, [1, 0], "prior")


def test_no_ties_where_they_do_not_apply_and_no_choice_among_none() -> None:
    assert chosen(candidate(0, 0.9, fps=1), candidate(1, 0.9, fps=2, prior=1), ties=False).tied == [1]
    assert decide([], maximize=True) is None
    root = Path("unused")
    for changes, expected in (
        ({}, True),
        ({"objectives": {"pixel_aupro": "maximize"}}, True),
        ({"objectives": {"false_alarm_rate": "minimize"}}, True),
        ({"objectives": {"fps": "maximize"}}, False),
        ({"objectives": {"image_auroc": "maximize", "fps": "maximize"}}, False),
        ({"protocol": "paper", "search": {}, "baselines": [{"n_features": 12}]}, False),
    ):
        assert choice.applies(make_config(root, **changes)) is expected


def test_the_fits_add_to_the_noise() -> None:
    tight: dict[str, Any] = {"error": 1e-6}
    steady = chosen(candidate(0, 0.90, **tight, fits=(0.90, 0.90)), candidate(1, 0.89, **tight, fits=(0.89, 0.89)))
    assert steady.tied == [0]
    apart = chosen(candidate(0, 0.93, **tight, fits=(0.85, 0.92)), candidate(1, 0.86, **tight, fits=(0.93, 0.90)))
    assert apart.leader == 0
    assert apart.tied == [0, 1]


# In a study


def scores_of(level: float, seed: int) -> list[float]:
    """Scores of the images of `LABELS`; images are as hard for all, but for a little."""
    shared = np.random.default_rng(0).normal(size=len(LABELS))
    own = 0.3 * np.random.default_rng(seed).normal(size=len(LABELS))
    return (shared + own + level * np.array(LABELS)).tolist()


@dataclass
class Keeping(ScriptedExecutor):
    """Keeps the scores of validation images, as real trials do: of trial n those of `levels[n]`."""

    levels: Sequence[float] = ()
    products: Sequence[str] = ()
    scored: dict[int, dict[str, Any]] = field(default_factory=dict)

    def _result(self, job: Job, metrics: Mapping[str, float]) -> TrialResult:
        if job.task == "trial":
            for place, product in enumerate(self.products or ("",)):
                kept = ValidationScores(
                    keys=[f"{index}.png" for index in range(len(LABELS))],
                    labels=[1 if label else 0 for label in LABELS],
                    scores=scores_of(self.levels[job.number] - 0.3 * place, job.number + 100 * place),
                )
                folder = job.path / ARTIFACTS / product
                write_json(folder / VALIDATION_SCORES_FILE, kept.model_dump(mode="json", exclude_none=True))
        return super()._result(job, metrics)


def values(*aurocs: float) -> Any:
    return lambda job: {"val/image_auroc": aurocs[job.number], "fps": 50.0 - job.number, "val/pixel_aupro": 0.5}


@pytest.fixture
def prior(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of the stored portfolio, which a test fills, the best first."""
    settings: list[dict[str, Any]] = []

    def stored() -> Portfolio:
        entries = [Entry(detector="padim", setting=one, mean_rank=0.1, products=2) for one in settings]
        return Portfolio(version=1, products=["a"], entries=entries)

    monkeypatch.setattr(portfolio, "stored", stored)
    return settings


THREE: dict[str, Any] = {
    "search": {},
    "baselines": [{"n_features": 12, "shrinkage": 0.1}, {"n_features": 30, "shrinkage": 0.2}, {"n_features": 40}],
    "budget": {"trials": 3},
}
CLOSE = (0.90, 0.91, 0.60)
"""The first two are not told apart by two dozen images, the third is far behind."""
LEVELS = (1.9, 2.0, 0.2)


def test_a_study_takes_the_prior_s_first_and_says_so_everywhere(bench: Bench, prior: list[dict[str, Any]]) -> None:
    prior += [{"n_features": 12, "shrinkage": 0.1}, {"n_features": 30, "shrinkage": 0.2}]
    executor = Keeping(values(*CLOSE), levels=LEVELS)
    outcome = bench.run(executor, **THREE)
    assert outcome.selected is not None
    assert outcome.selected.number == 0
    assert [job.number for job in executor.finals] == [0]
    view = bench.view()
    text = (
        "2 trials tie within noise; the one first in the prior was taken: trial 0 (0.9000), not trial 1, which has the best "
        "value (0.9100)"
    )
    stored = study_json(view)["choice"]
    assert (stored["trial"], stored["leader"], stored["tied"], stored["by"]) == (0, 1, [0, 1], "prior")
    assert stored["text"] == [text]
    assert [trial.number for trial in view.trials() if trial.selected] == [0]
    assert f"{text}." in " ".join(summary_sentences(Search(view, "s"), view.selected(), []))
    parent = bench.parent()
    assert f"{text}." in parent.data.tags["mlflow.note.content"]
    # What the search aims at keeps its plain values.
    best = view.best()
    assert best is not None
    assert best.number == 1
    assert parent.data.metrics["best/val/image_auroc"] == 0.91
    assert parent.data.metrics["val/image_auroc"] == 0.90
    assert [child.data.tags["study.selected"] for _, child in sorted(bench.children().items())] == [
        "true",
        "false",
        "false",
    ]


def test_the_choice_stays_where_the_scores_are_gone_or_the_prior_is_another(
    bench: Bench, prior: list[dict[str, Any]]
) -> None:
    prior += [{"n_features": 12, "shrinkage": 0.1}, {"n_features": 30, "shrinkage": 0.2}]
    bench.run(Keeping(values(*CLOSE), levels=LEVELS), **THREE)
    for path in bench.view().folder.rglob(VALIDATION_SCORES_FILE):
        path.unlink()
    prior.reverse()
    candidates._place.cache_clear()
    selected = bench.view().selected()
    assert selected is not None
    assert selected.number == 0
    again = Keeping(values(*CLOSE), levels=LEVELS)
    bench.run(again, **THREE)
    assert again.jobs == []
    # Another trial makes the choice anew, by what there is.
    more = {**THREE, "baselines": [*THREE["baselines"], {"n_features": 20}], "budget": {"trials": 4}}
    outcome = bench.run(Keeping(values(*CLOSE, 0.7), levels=(*LEVELS, 0.3)), **more)
    assert outcome.selected is not None
    assert outcome.selected.number == 1


def test_trials_of_an_older_store_are_chosen_as_before_and_nothing_is_said(
    bench: Bench, prior: list[dict[str, Any]]
) -> None:
    prior += [{"n_features": 12, "shrinkage": 0.1}]
    bench.run(ScriptedExecutor(values(0.91, 0.91, 0.60)), **THREE)
    view = bench.view()
    view.study.set_user_attr(CHOICE, None)
    selected = view.selected()
    assert selected is not None
    assert selected.number == 0  # the faster one
    found = view.choice()
    assert found is not None
    assert (found.tied, sentences(found, view.config)) == ([0], [])


def test_the_goal_is_reached_by_the_best_value_whichever_is_taken(bench: Bench, prior: list[dict[str, Any]]) -> None:
    prior += [{"n_features": 12, "shrinkage": 0.1}]
    goal = {**THREE, "budget": {"trials": 3, "goal": 0.905}}
    outcome = bench.run(Keeping(values(*CLOSE), levels=LEVELS), **goal)
    assert outcome.reason == "the goal of 0.905 is reached"
    assert outcome.selected is not None
    assert outcome.selected.number == 0


def test_clean_keeps_the_scores_and_the_checkpoints_of_the_selected(bench: Bench, prior: list[dict[str, Any]]) -> None:
    prior += [{"n_features": 12, "shrinkage": 0.1}]
    bench.run(Keeping(values(*CLOSE), levels=LEVELS), **THREE)
    view = bench.view()
    for trial in view.trials():
        (trial.folder / CHECKPOINTS).mkdir(parents=True)
    listed = [item.path for item in take_inventory(bench.home, keep=1).items]
    assert [trial.folder / CHECKPOINTS in listed for trial in view.trials()] == [False, True, True]
    assert not [path for path in listed if path.name == ARTIFACTS]


def test_several_products_tie_by_the_mean_of_their_metrics(tmp_path: Path) -> None:
    def write(folder: Path, seed: int) -> Path:
        kept = ValidationScores(keys=list("abcdef"), labels=[0, 0, 0, 1, 1, 1], scores=scores_of(1.0, seed)[9:15])
        write_json(folder / VALIDATION_SCORES_FILE, kept.model_dump(mode="json", exclude_none=True))
        return folder

    single = [
        spread_of(write(tmp_path / "single" / name, seed), "image_auroc", seed=0) for seed, name in enumerate("ab")
    ]
    for seed, name in enumerate("ab"):
        write(tmp_path / "both" / name, seed)
    both = spread_of(tmp_path / "both", "image_auroc", seed=0)
    assert both is not None
    assert len(both.images) == 2
    assert both.replicates is not None
    # Products are drawn independently of each other.
    assert all(one is not None and one.replicates is not None for one in single)
    assert both.replicates.mean() == pytest.approx(
        np.mean([one.replicates.mean() for one in single if one is not None and one.replicates is not None]), abs=0.03
    )
    (tmp_path / "both" / "b" / VALIDATION_SCORES_FILE).write_text("damaged")
    assert spread_of(tmp_path / "both", "image_auroc", seed=0) is None


def test_the_spread_of_the_mean_of_fits_has_the_same_draws(tmp_path: Path) -> None:
    kept = ValidationScores(
        keys=[str(index) for index in range(24)], labels=[1 if label else 0 for label in LABELS], scores=scores_of(1, 1)
    )
    write_json(tmp_path / VALIDATION_SCORES_FILE, kept.model_dump(mode="json", exclude_none=True))
    one = spread_of(tmp_path, "image_ap", seed=0)
    other = spread_of(tmp_path, "image_ap", seed=1)
    assert one is not None
    assert other is not None
    assert one.replicates is not None
    mean = mean_spread([one, one])
    assert mean.replicates is not None
    assert (mean.replicates == one.replicates).all()
    assert other.replicates is not None
    assert not np.array_equal(other.replicates, one.replicates)
    pixels = spread_of(tmp_path, "pixel_aupro", seed=0)
    assert pixels is not None
    assert pixels.replicates is None
    assert mean_spread([one, pixels]).replicates is None


def test_what_is_stored_is_read_by_later_versions(bench: Bench) -> None:
    bench.run(ScriptedExecutor(values(0.8, 0.9, 0.7)), **THREE)
    view = bench.view()
    stored = dict(view.study.user_attrs[CHOICE])
    assert json.loads(json.dumps(stored)) == stored
    view.study.set_user_attr(CHOICE, stored | {"added_later": 1})
    found = StudyView(view.study, view.header, view.home).choice()
    assert found is not None
    assert (found.trial, found.by) == (1, "value")
