"""Studies over several products."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pytest

from detectors.errors import InputError
from detectors.runtime.artifact import is_artifact
from studies.executors.inline import InlineExecutor
from studies.file import datasets
from studies.file.config import validate
from studies.home import Home
from studies.search.plan import Plan
from studies.worker.jobs import ARTIFACTS, Event, Job, Report, Stage
from studies.worker.trial import run_job
from tests.helpers.bench import Bench, ScriptedExecutor
from tests.helpers.builders import build_job, build_plan, make_config, raw_config

PRODUCTS = ["widget", "washer"]


@pytest.fixture(scope="module")
def shelves(tiny_mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two products under different roots; of the second, fewer images."""
    other = tmp_path_factory.mktemp("other shelf")
    shutil.copytree(tiny_mvtec / "widget", other / "washer")
    for path in sorted((other / "washer" / "train" / "good").iterdir())[:6]:
        path.unlink()
    return {"widget": tiny_mvtec, "washer": other}


def changes(shelves: dict[str, Path], **others):
    roots = {name: str(root) for name, root in shelves.items()}
    return {"data": {"dataset": "tiny", "category": PRODUCTS, "root": roots, "image_size": 64}, **others}


@pytest.fixture
def plan(shelves, tmp_path) -> Plan:
    return build_plan(make_config(Path("unused"), **changes(shelves)), tmp_path / "home")


def job_of(plan: Plan, **others) -> Job:
    return build_job(plan, splits_digest=plan.images.digest, **others)


def test_a_plan_names_every_set_of_every_product(plan):
    sets = [f"{product}/{name}" for product in PRODUCTS for name in ("train", "validation", "test")]
    assert list(plan.images.counts) == list(plan.identity["data"]) == sets
    assert plan.experiment == "tiny/widget+washer"
    assert plan.images.counts["widget/train"]["good"] == plan.images.counts["washer/train"]["good"] + 6
    assert len({part.splits.digest for part in plan.images.parts} | {plan.images.digest}) == 3


def test_all_takes_every_product_under_the_root(tiny_mvtec, tmp_path):
    for name in ("b", "a"):
        shutil.copytree(tiny_mvtec / "widget", tmp_path / name)
    config = make_config(tmp_path, data={"dataset": "tiny", "category": "all", "root": str(tmp_path), "image_size": 64})
    images = datasets.load(config, Home(tmp_path / "home"))
    assert [part.category for part in images.parts] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no category in it"):
        datasets.products(config.data.model_copy(update={"root": tmp_path / "empty"}))


def test_a_trial_is_the_mean_over_the_products(plan):
    events: list[Event] = []
    result = run_job(job_of(plan), events.append)
    singles = {name: result.metrics[f"product/{name}/val/image_auroc"] for name in PRODUCTS}
    assert result.metrics["val/image_auroc"] == pytest.approx(fmean(singles.values()))
    assert result.metrics["fps"] == min(result.metrics[f"product/{name}/fps"] for name in PRODUCTS)
    assert result.metrics["model_size_mb"] == max(result.metrics[f"product/{name}/model_size_mb"] for name in PRODUCTS)
    assert "val/image_auroc_low" not in result.metrics
    assert [(event.step, event.value) for event in events if isinstance(event, Report)] == list(
        enumerate(singles.values())
    )
    stages = {event.name.partition(":")[0] for event in events if isinstance(event, Stage)}
    assert stages == set(PRODUCTS)
    assert sorted(path.name for path in (job_of(plan).path / ARTIFACTS).iterdir()) == sorted(PRODUCTS)


def test_a_trial_is_the_same_as_the_products_by_themselves(plan, shelves, tmp_path):
    together = run_job(job_of(plan))
    for part in plan.images.parts:
        alone = build_plan(
            make_config(
                Path("unused"),
                **changes(shelves) | {"data": plan.config.data.of(part.category).model_dump(mode="json")},
            ),
            tmp_path / part.category,
        )
        assert alone.splits.digest == part.splits.digest
        metrics = run_job(build_job(alone)).metrics
        assert together.metrics[f"product/{part.category}/val/image_auroc"] == metrics["val/image_auroc"]


def test_a_trial_that_is_told_to_stop_ends_between_two_products(plan):
    events: list[Event] = []
    result = run_job(job_of(plan), events.append, lambda: any(isinstance(event, Report) for event in events))
    assert result.pruned
    assert "product/widget/val/image_auroc" in result.metrics
    assert not [name for name in result.metrics if "washer" in name or name.startswith("val/")]


def test_changed_images_are_refused(plan):
    with pytest.raises(InputError, match=r"tiny/widget\+washer changed"):
        run_job(build_job(plan, splits_digest="0" * 64))


def test_a_study_over_two_products_ends_with_a_detector_for_each(bench: Bench, plan, shelves):
    bench.base = plan
    outcome = bench.run(InlineExecutor(), budget={"trials": 2}, **changes(shelves))
    selected = outcome.selected
    assert selected is not None
    assert selected.detector is None
    assert list(selected.detectors) == sorted(PRODUCTS)
    assert all(is_artifact(folder) for folder in selected.detectors.values())
    assert {"test/image_auroc", "product/widget/test/image_auroc"} <= set(selected.test_metrics)
    assert [line.purpose for line in outcome.view.ledger()] == ["selected", "selected"]
    child = bench.children()[selected.number]
    assert "product/washer/val/image_auroc" in child.data.metrics
    assert bench.parent().data.params["category"] == "widget+washer"
    names = {(item.dataset.name, tag.value) for item in bench.parent().inputs.dataset_inputs for tag in item.tags}
    assert ("tiny/washer", "train") in names
    before = len(bench.view().ledger())
    bench.run(InlineExecutor(), budget={"trials": 2}, **changes(shelves))
    assert len(bench.view().ledger()) == before


def test_values_of_the_products_are_steps_of_the_pruner(bench: Bench, plan, shelves):
    bench.base = plan
    bench.run(InlineExecutor(), budget={"trials": 1}, **changes(shelves))
    (trial,) = bench.frozen()
    assert list(trial.intermediate_values) == [0, 1]
    assert trial.values[0] == pytest.approx(fmean(trial.intermediate_values.values()))


def test_wilcoxon_gives_up_a_setting_that_is_worse_on_every_product(bench: Bench, tmp_path):
    names = [f"w{number}" for number in range(8)]
    data = {"dataset": "tiny", "category": names, "root": str(tmp_path), "image_size": 64}

    @dataclass
    class OnProducts(ScriptedExecutor):
        stopped: list[int] = field(default_factory=list)
        done: dict[int, bool] = field(default_factory=dict)

        def events(self, timeout):
            if self.waiting and self.waiting[0].task == "trial" and not self.done.get(self.waiting[0].number):
                job = self.waiting[0]
                self.done[job.number] = True
                base = 0.9 if job.number == 0 else 0.5
                return [Report(job.number, 1, step, base + 0.001 * step) for step in range(8)]
            return super().events(timeout)

        def stop(self, number: int) -> None:
            self.stopped.append(number)

    executor = OnProducts()
    bench.run(executor, pruner={"name": "wilcoxon", "min_epochs": 2}, budget={"trials": 3}, data=data)
    assert bench.states() == ["COMPLETE", "PRUNED", "PRUNED"]
    assert 2 < len(bench.frozen()[1].intermediate_values) < 8


@pytest.mark.parametrize(
    ("data", "others", "words"),
    [
        ({"category": ["a", "a"]}, {}, "each product once"),
        ({"category": []}, {}, "at least one"),
        ({"category": ["a", "b"], "dataset": "folder"}, {}, "a plain folder is one product"),
        ({"category": ["a", "b"], "root": {"a": "x"}}, {}, "name the same products"),
        ({"category": "a", "root": {"a": "x"}}, {}, "name the same products"),
        ({"category": ["a", "b"]}, {"pruner": {"name": "wilcoxon"}}, "at least 5 products"),
        ({"category": "a"}, {"pruner": {"name": "wilcoxon"}}, "at least 5 products"),
        ({"category": ["a", "b"]}, {"pruner": {"name": "hyperband"}}, "a step is a product"),
    ],
)
def test_what_makes_no_sense_is_refused(data, others, words):
    with pytest.raises(InputError, match=words) as caught:
        validate(raw_config(Path("images"), data={"dataset": "tiny", "root": "images", **data}, **others), source="x")
    assert "\n" not in str(caught.value)
