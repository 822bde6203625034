"""Advice: which fits are made, what is recommended and what is not, what a kill leaves, and that test is not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from detectors.scoring.evaluation import RECALL
from studies.executors.inline import InlineExecutor
from studies.search import advice_words
from studies.search.advice import LEAST_TRIALS, _can_be_looked_at, _full_setting, larger
from studies.search.answers import stored_advice
from studies.search.notices import Remark
from studies.search.origin import Origin
from studies.worker.jobs import Job, read_result
from tests.helpers.bench import Answer, Bench, Killed
from tests.studies.search.test_rerank import Fitting

SETTINGS = [{"n_features": 10 + number, "shrinkage": 0.1} for number in range(LEAST_TRIALS)]
STUDY: dict[str, Any] = {
    "search": {},
    "baselines": SETTINGS,
    "budget": {"trials": LEAST_TRIALS},
    "advice": True,
    "rerank": 0,
}


def trial(job: Job) -> dict[str, float]:
    """The first one is clearly the best."""
    return {"val/image_auroc": 0.9 if job.number == 0 else 0.6, "fps": 50.0}


def answers(table: Mapping[str, Answer | float]) -> Any:
    """{what the name of a probe begins with: its answer}; any other one is as good as half of the images."""

    def script(job: Job) -> Answer:
        assert job.probe is not None
        answer = next((value for name, value in table.items() if job.probe.name.startswith(name)), 0.8)
        return {"val/image_auroc": answer} if isinstance(answer, float) else answer

    return script


def advised(bench: Bench, table: Mapping[str, Answer | float], **changes: Any) -> tuple[Fitting, list[str]]:
    executor = Fitting(trial, final=lambda job: {"test/image_auroc": 0.9, f"test/{RECALL}": 0.9}, probe=answers(table))
    bench.run(executor, **{**STUDY, **changes})
    return executor, advice_words.lines(bench.view())


def test_the_questions_are_one_fit_each_on_parts_of_train_and_never_on_test(bench: Bench) -> None:
    executor, _ = advised(bench, {})
    probes = {job.probe.name: job for job in executor.probes if job.probe is not None}
    assert set(probes) == {"images-0.25", "images-0.5", "size-96x96", "detector-patchcore", "detector-spade"}
    assert {name: job.probe.train_share for name, job in probes.items() if job.probe} == {
        "images-0.25": 0.25,
        **dict.fromkeys(("images-0.5", "size-96x96", "detector-patchcore", "detector-spade"), 0.5),
    }
    assert probes["size-96x96"].probe is not None
    assert probes["size-96x96"].probe.image_size == (96, 96)
    assert all(job.params["n_features"] == 10 for name, job in probes.items() if not name.startswith("detector"))
    assert probes["detector-spade"].params["detector"] == "spade"
    assert len({job.folder for job in executor.probes}) == 5
    assert len(bench.view().ledger()) == 0  # the scripted refit writes none, and no fit of advice did


def test_a_learning_curve_that_rises_asks_for_images_and_a_flat_one_says_that_they_add_little(bench: Bench) -> None:
    _, lines = advised(bench, {"images-0.25": 0.70, "images-0.5": 0.82})
    assert any(
        "more good images: with a quarter, half and all" in line and "0.700, 0.820, 0.900" in line for line in lines
    )
    assert any("twice as many add about 0.08" in line for line in lines)


def test_a_flat_learning_curve(bench: Bench) -> None:
    _, lines = advised(bench, {"images": 0.899, "size": 0.899, "detector": 0.899})
    assert any("would add little" in line for line in lines)


def test_what_is_certainly_better_is_recommended_with_its_command(bench: Bench) -> None:
    _, lines = advised(bench, {"size": 0.97, "detector-patchcore": 0.99})
    (detector,) = [line for line in lines if line.startswith("another detector")]
    (size,) = [line for line in lines if line.startswith("larger images")]
    assert "PatchCore" in detector
    assert detector.endswith("; search patchcore too on these images")  # no study file is known for these
    assert "`study run tiny --fresh --set data.image_size=96`" in size
    assert lines.index(detector) < lines.index(size)


def test_another_detector_is_recommended_with_the_command_that_searches_it(bench: Bench) -> None:
    advised(bench, {"detector-patchcore": 0.99})
    view = bench.view()

    def line() -> str:
        (one,) = [line for line in advice_words.lines(view) if line.startswith("another detector")]
        return one

    origin = Origin(kind="images", source="padim", base={}, root="/data/my parts")
    view.header = replace(view.header, origin=origin.to_json())
    assert line().endswith("; try `study run patchcore '/data/my parts'`")
    view.header = replace(view.header, origin=None)
    data = view.config.data.model_copy(update={"dataset": "mvtec", "category": "screw"})
    view.config = view.config.model_copy(update={"data": data})
    assert line().endswith("; try `study run patchcore_screw`")


def test_a_gain_that_chance_may_explain_is_not_recommended(bench: Bench) -> None:
    _, lines = advised(bench, {"size": 0.812, "detector": 0.79})
    assert not [line for line in lines if line.startswith(("larger images", "another detector"))]


def test_a_fit_that_fails_costs_its_answer_alone(bench: Bench) -> None:
    executor, lines = advised(bench, {"size": "exception", "images-0.25": 0.7})
    assert "what would help most is tried by 5 fits: about " in bench.said()
    assert any("no advice on size 96x96" in notice.text for notice in bench.notices if isinstance(notice, Remark))
    assert any(line.startswith("more good images") for line in lines)
    advice = stored_advice(bench.view())
    assert advice is not None
    assert advice.complete
    assert len(executor.probes) >= 5


def test_answers_outlive_a_killed_driver_and_are_not_asked_again(bench: Bench) -> None:
    first = Fitting(trial, probe=answers({"size": Killed()}))
    bench.kill(first, **STUDY)
    second = Fitting(trial, probe=answers({}))
    bench.run(second, **STUDY)
    assert second.trials == []
    assert {job.probe.name for job in second.probes if job.probe} == {
        "size-96x96",
        "detector-patchcore",
        "detector-spade",
    }
    third = Fitting(trial, probe=answers({}))
    bench.run(third, **STUDY)
    assert third.jobs == []


@pytest.mark.parametrize("changes", [{"advice": False}, {"budget": {"trials": LEAST_TRIALS - 1}}])
def test_none_is_asked_where_it_is_not_wanted_or_the_search_was_short(bench: Bench, changes: dict[str, Any]) -> None:
    executor, _ = advised(bench, {}, **changes)
    assert executor.probes == []
    assert stored_advice(bench.view()) is None


def test_a_size_that_is_large_already_is_not_asked_for() -> None:
    assert larger((256, 256)) == (384, 384)
    assert larger((256, 512)) == (384, 768)
    assert larger((800, 800)) is None


def test_a_size_that_a_backbone_does_not_take_is_not_asked_for() -> None:
    assert _can_be_looked_at({"backbone": "resnet18@random"}, (384, 384))
    assert _can_be_looked_at({"backbone": "test_vit@random", "tiles": "100+10"}, (390, 390))
    assert not _can_be_looked_at({"backbone": "beit_base_patch16_224@random"}, (384, 384))


def test_another_detector_looks_at_layers_that_the_backbone_has() -> None:
    own = {"layers": [-4, -1], "smoothing_sigma": 2.0}
    tokens = _full_setting("padim", {"backbone": "test_vit@random", "layers": [4, 8, 16], "n_features": 500}, own)
    assert tokens["layers"] == [16]
    assert tokens["n_features"] == 64
    tokens = _full_setting("padim", {"backbone": "test_vit@random", "layers": [4, 8]}, own)
    assert tokens["layers"] == [-4, -1]
    assert _full_setting("spade", {"backbone": "test_vit@random", "layers": [4, 8]}, {"layers": [8]})["layers"] == [16]


def test_real_fits_answer(bench: Bench) -> None:
    outcome = bench.run(InlineExecutor(), **STUDY)
    advice = stored_advice(outcome.view)
    assert advice is not None
    assert set(advice.answers) == {"images 0.25", "images 0.5", "size 96x96", "detector patchcore", "detector spade"}
    assert all(0 <= answer.value <= 1 for answer in advice.answers.values())
    larger_images = read_result(outcome.view.advice_folder("size-96x96"))
    assert larger_images is not None
    assert not [name for name in larger_images.metrics if name.startswith("test/")]
    assert len(outcome.view.ledger()) == 1
    assert any(
        line.startswith("not ") or "masks" in line or "good images" in line for line in advice_words.lines(outcome.view)
    )
