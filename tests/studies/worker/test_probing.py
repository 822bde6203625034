"""Which images a probe fits."""

from __future__ import annotations

import pytest

from studies.worker.jobs import ARTIFACTS, Probe
from studies.worker.probing import LEAST, rows_of
from studies.worker.trial import run_job
from studies.worker.validation_scores import read_validation_scores
from tests.helpers.builders import build_job, build_plan, make_config

GROUPS = [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


def test_a_part_of_train_has_whole_groups_and_smaller_parts_lie_in_larger_ones() -> None:
    rows = {share: rows_of(Probe(1, share), GROUPS, seed=0) for share in (0.25, 0.5, 0.75, 1.0)}
    assert rows[1.0] is None
    sets = []
    for share in (0.25, 0.5, 0.75):
        own = rows[share]
        assert own is not None
        assert list(own) == sorted(own)
        assert len({GROUPS[row] for row in own}) == max(LEAST, round(8 * share))
        assert len({7, 8, 9} & {*own}) in (0, 3)
        sets.append({*own})
    assert sets[0] < sets[1] < sets[2]


def test_another_resample_or_seed_is_another_part_and_the_same_the_same() -> None:
    parts = {rows_of(Probe(resample, 0.5), range(40), seed=seed) for resample in (1, 2) for seed in (0, 1)}
    assert len(parts) == 4
    assert rows_of(Probe(1, 0.5), range(40), seed=0) in parts


def test_other_paintings_are_of_the_same_kinds_in_the_same_images(tiny_mvtec, tmp_path) -> None:
    plan = build_plan(make_config(tiny_mvtec, protocol="synthetic", recipes=2), tmp_path)
    kept = []
    for place, (probe, structural_seed) in enumerate(
        ((Probe(1), 7), (Probe(1, repaint=True), 7), (Probe(2, repaint=True), 8))
    ):
        job = build_job(plan, task="probe", probe=probe, structural_seed=structural_seed, folder=tmp_path / str(place))
        run_job(job)
        kept.append(read_validation_scores(job.path / ARTIFACTS))
    first, *others = kept
    assert first is not None
    for other in others:
        assert other is not None
        assert other.images == first.images
        painted = [index for index, label in enumerate(first.labels) if label]
        assert sum(other.scores[index] != first.scores[index] for index in painted) > 0.9 * len(painted)
    assert others[0] is not None
    assert others[1] is not None
    assert others[0].scores != others[1].scores


def test_very_few_images_stay_all() -> None:
    assert rows_of(Probe(1, 0.1), range(LEAST), seed=0) is None
    assert len(rows_of(Probe(1, 0.1), range(LEAST + 1), seed=0) or ()) == LEAST
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            rows_of(Probe(1, share), range(9), seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objectives": {"image_recall": "maximize"}},
        {"protocol": "synthetic"},
        {"protocol": "synthetic", "recipes": 2},
    ],
)
def test_a_probe_of_all_of_train_with_the_seeds_of_a_trial_has_its_figures(tiny_mvtec, tmp_path, changes) -> None:
    plan = build_plan(make_config(tiny_mvtec, **changes), tmp_path)
    trial = run_job(build_job(plan))
    whole = run_job(build_job(plan, task="probe", probe=Probe(1)))
    part = run_job(build_job(plan, task="probe", probe=Probe(1, 0.6), folder=tmp_path / "part"))
    figures = {name: value for name, value in trial.metrics.items() if name.startswith("val/")}
    assert {name: value for name, value in whole.metrics.items() if name.startswith("val/")} == figures
    assert {name for name in part.metrics if name.startswith("val/")} == set(figures)
    assert {name: part.metrics[name] for name in figures} != figures
