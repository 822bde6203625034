"""``study compare`` and the published figures: rows, what is comparable to what, the written forms, and the files in MLflow."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.trial import TrialState, create_trial
from PIL import Image

from detectors import catalog
from detectors.errors import InputError
from detectors.files import write_json
from detectors.scoring.metrics import auroc
from studies.file.config import validate
from studies.file.keys import SHARED_PARAMETERS
from studies.home import Home
from studies.search.attributes import JOB, OUTCOME
from studies.search.storage import Header
from studies.search.view import StudyView
from studies.show import comparison, comparison_files, comparison_table
from studies.show.comparison import Comparison
from studies.show.published import MEAN, Catalogue, catalogue, read_catalogue
from studies.show.rows import Row, study_rows
from studies.worker.jobs import ARTIFACTS, RESULT_FILE, TrialResult
from studies.worker.scores import SCORES_FILE
from tests.helpers.builders import raw_config
from tests.helpers.command_line import Ended, set_home, study
from tracking.projection import Projection

SPEED = {
    "train_seconds": 1.5, "fps": 20.0, "throughput": 25.0, "model_size_mb": 87.25, "latency_threads": 2.0,
}  # fmt: skip
VALIDATION = {"val/image_auroc": 0.8125, **SPEED}
TEST = {
    "test/image_auroc": 0.90625, "test/image_auroc_low": 0.8, "test/image_auroc_high": 0.96875,
    "test/pixel_auroc": 0.984375, "test/pixel_aupro": 0.9375,
}  # fmt: skip
SCREW = {"train": {"good": 320}, "validation": {"good": 21, "bent": 61}, "test": {"good": 20, "bent": 58}}
WHOLE_SCREW = {"train": {"good": 320}, "test": {"good": 41, "bent": 119}}
PAPER_PARAMS = {"backbone": "resnet18", "layers": [4, 8, 16], "n_features": 100}


def make_view(
    home: Path,
    trials: Sequence[dict[str, float]],
    *,
    name: str = "padim_screw",
    params: dict[str, Any] | None = None,
    final: dict[str, float] | None = None,
    experiment: str = "mvtec/screw",
    counts: dict[str, dict[str, int]] | None = None,
    test_digest: str = "c" * 64,
    device: str = "cpu",
    **changes: Any,
) -> StudyView:
    """A study of PaDiM with finished trials of these metrics; `final` are those of the refit of trial 0."""
    dataset, _, category = experiment.partition("/")
    raw = raw_config(
        Path("/images"),
        name=name.partition("#")[0],
        data={"dataset": dataset, "category": category, "root": "/images"},
    )
    config = validate(raw | changes, source="test.yaml")
    prefix = "test" if config.protocol == "paper" else "val"
    stored = optuna.create_study(study_name=name, direction="maximize")
    setting = {**PAPER_PARAMS, **(params or {})}
    for number, metrics in enumerate(trials):
        outcome = {"metrics": metrics, "environment": {"device": device, "device_name": "test"}}
        stored.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=metrics[f"{prefix}/image_auroc"],
                user_attrs={JOB: {"attempt": 1, "params": setting | {"number": number}}, OUTCOME: outcome},
            )
        )
    header = Header(
        uid=f"uid{name}",
        name=name,
        created=0.0,
        identity={"data": {"train": "a" * 64, "test": test_digest}},
        config=config.to_json() | {"protocol": config.protocol},
        backbones={setting["backbone"]: {"name": setting["backbone"], "tag": "a1_in1k", "sha256": "0" * 64}},
        dropped=[],
        experiment=experiment,
        dataset="/images",
        counts=counts or (WHOLE_SCREW if config.protocol == "paper" else SCREW),
        splits_digest="",
    )
    view = StudyView(stored, Header(**json.loads(json.dumps(asdict(header)))), Home(home))
    if final is not None:
        write_final(view, final)
    return view


def write_final(view: StudyView, metrics: dict[str, float], *, replicate: int = 0) -> None:
    folder = view.replicate_folder(0, replicate) if replicate else view.final_folder(0)
    result = TrialResult(
        task="replicate" if replicate else "final",
        study_uid=view.header.uid,
        number=0,
        attempt=1,
        params={},
        metrics=metrics,
        seconds={"fit": 1.0},
        backbone={},
        started=0.0,
        finished=1.0,
        environment={},
    )
    write_json(folder / RESULT_FILE, result.model_dump(mode="json"))


def paper_view(home: Path, *trials: dict[str, float], **changes: Any) -> StudyView:
    """The same under protocol paper: whatever is tried is scored on the whole test set."""
    baselines = [{"n_features": 4}]
    return make_view(home, trials, protocol="paper", search={}, baselines=baselines, **changes)


# Published figures


def test_the_published_figures_are_sound() -> None:
    known = catalogue()
    assert len(known.datasets["mvtec"]) == 15
    assert {entry.source for entry in known.figures} == set(known.sources)
    for entry in known.figures:
        assert set(entry.figures) <= {MEAN, *known.datasets[entry.dataset]}
        if entry.detector in catalog.built_in_names():
            # A name that no trial has could never agree.
            assert set(entry.params) <= {*catalog.parameters(entry.detector), *SHARED_PARAMETERS, "image_size"}
    for detector in ("padim", "patchcore", "cflow"):
        assert {"screw", "carpet", MEAN} <= {
            name for entry in known.of(detector, "mvtec", "screw") for name in entry.figures
        }


def test_figures_of_another_category_are_given_as_means_alone() -> None:
    known = catalogue()
    assert known.of("padim", "mvtec", "bottle") == [
        entry for entry in known.figures if entry.detector == "padim" and MEAN in entry.figures
    ]
    assert known.of("padim", "rendered", "screw") == []
    assert known.of("padim", "mvtec", "teapot") == []
    assert known.of("nothing", "mvtec", "screw") == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"source": "rumour"}, "unknown source 'rumour'"),
        (
            {"figures": {"screw": {"image_auroc": 74.5}}},
            "figures.0.figures.screw.image_auroc: Input should be less than",
        ),
        ({"figures": {"screw": {}}}, "figures.0.figures.screw: no figure in it"),
        ({"colour": "red"}, "figures.0.colour"),
    ],
)
def test_an_unsound_file_of_figures_is_told_with_its_place(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    sound = {"detector": "padim", "source": "a", "setting": "", "figures": {"screw": {"image_auroc": 0.745}}}
    raw = {"datasets": {}, "sources": {"a": {"name": "A", "reference": "arXiv 1"}}, "figures": [sound]}
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert len(read_catalogue(path).figures) == 1
    path.write_text(yaml.safe_dump(raw | {"figures": [sound | entry]}))
    with pytest.raises(InputError) as error:
        read_catalogue(path)
    assert words in str(error.value)


# Rows


def test_a_row_has_the_figures_of_the_selected_trial_and_of_its_refit(tmp_path: Path) -> None:
    worse = VALIDATION | {"val/image_auroc": 0.5, "fps": 99.0}
    view = make_view(tmp_path, [VALIDATION, worse], final=TEST | {"train_seconds": 2.5})
    (row,) = study_rows(view)
    assert (row.study, row.trial, row.selected, row.detector) == ("padim_screw", 0, True, "padim")
    assert (row.backbone, row.layers, row.weights, row.image_size) == ("resnet18", [4, 8, 16], "a1_in1k", [256, 256])
    assert (row.image_auroc, row.image_auroc_low, row.image_auroc_high) == (0.90625, 0.8, 0.96875)
    assert (row.val_image_auroc, row.pixel_auroc, row.pixel_aupro) == (0.8125, 0.984375, 0.9375)
    assert (row.fps, row.throughput, row.model_size_mb) == (20.0, 25.0, 87.25)
    assert row.train_seconds == 2.5
    assert row.device == "cpu test, 2 threads"
    assert row.test_images == 78
    assert row.seeds is None
    heads = [name for name, _ in comparison_table.row_columns(comparison.compare([view]))]
    assert "on validation" in heads
    assert "over seeds" not in heads


AT_THRESHOLD = {
    "test/image_recall": 42 / 58, "test/image_recall_low": 0.598, "test/image_recall_high": 0.822,
    "test/false_alarm_rate": 0.05, "test/false_alarm_rate_low": 0.009, "test/false_alarm_rate_high": 0.236,
    "test/image_recall/bent": 42 / 58, "test/pixel_aupro_05": 0.5, "test/seg_f1": 0.25,
}  # fmt: skip


def test_recall_and_false_alarms_are_columns_and_keys(tmp_path: Path) -> None:
    half = make_view(tmp_path, [VALIDATION], final=TEST | AT_THRESHOLD)
    without = make_view(tmp_path, [VALIDATION], name="older", final=TEST)
    compared = comparison.compare([half, without])
    columns = dict(comparison_table.row_columns(compared))
    assert [columns["recall"](row) for row in compared.rows] == ["72 % (60 to 82)", None]
    assert [columns["false alarms"](row) for row in compared.rows] == ["5 % (1 to 24)", None]
    assert [columns[head](compared.rows[0]) for head in ("AUPRO to 5 %", "pixel F1")] == [0.5, 0.25]
    assert any(line.startswith("recall: share of the defective") for line in comparison_table.explanations(compared))
    row = json.loads(comparison_files.to_json(compared))["rows"][0]
    for name, value in AT_THRESHOLD.items():
        if name != "test/image_recall/bent":
            assert row[name.removeprefix("test/")] == value
    assert row["recall_per_defect"] == {"bent": 42 / 58}
    first, second, *_ = csv.DictReader(io.StringIO(comparison_files.to_csv(compared)))
    assert (float(first["image_recall"]), first["recall_per_defect"]) == (42 / 58, "bent 0.7241")
    assert (second["image_recall"], second["recall_per_defect"]) == ("", "")


def test_what_an_earlier_version_measured_at_its_threshold_is_compared_too(tmp_path: Path) -> None:
    older = make_view(tmp_path, [VALIDATION], final=TEST | {"test/miss_rate": 16 / 58, "test/false_alarm_rate": 0.0})
    compared = comparison.compare([older])
    columns = dict(comparison_table.row_columns(compared))
    assert columns["recall"](compared.rows[0]) == "72 % (60 to 82)"
    assert columns["false alarms"](compared.rows[0]) == "0 % (0 to 16)"
    assert "AUPRO to 5 %" not in columns


def test_the_mean_of_several_products_has_no_interval(tmp_path: Path) -> None:
    counts = {"nut/test": {"good": 4, "bent": 4}, "bolt/test": {"good": 4, "bent": 4}}
    means = {"test/image_recall": 0.75, "test/false_alarm_rate": 0.125}
    each = {f"product/{name}/test/image_recall": value for name, value in (("nut", 0.5), ("bolt", 1.0))}
    each |= {f"product/{name}/test/image_recall/bent": value for name, value in (("nut", 0.5), ("bolt", 1.0))}
    each |= {f"product/{name}/test/false_alarm_rate": value for name, value in (("nut", 0.0), ("bolt", 0.25))}
    compared = comparison.compare([make_view(tmp_path, [VALIDATION], final=TEST | means | each, counts=counts)])
    columns, (row,) = dict(comparison_table.row_columns(compared)), compared.rows
    assert (columns["recall"](row), columns["false alarms"](row)) == ("75 %", "12 %")
    assert row.recall_per_defect == {"nut/bent": 0.5, "bolt/bent": 1.0}
    assert row.threshold_normals is None


def test_several_seeds_get_a_column(tmp_path: Path) -> None:
    view = make_view(tmp_path, [VALIDATION], final=TEST, seeds=3)
    for replicate, value in ((1, 0.875), (2, 0.84375)):
        write_final(view, TEST | {"test/image_auroc": value}, replicate=replicate)
    compared = comparison.compare([view, make_view(tmp_path, [VALIDATION], name="other", final=TEST)])
    assert (compared.rows[0].seeds, compared.rows[0].image_auroc_seeds_mean) == (3, pytest.approx(0.875))
    values = dict(comparison_table.row_columns(compared))["over seeds"]
    assert [values(row) for row in compared.rows] == ["0.875 ± 0.031 (3)", None]
    assert any(
        line.startswith("over seeds: mean and standard deviation") for line in comparison_table.explanations(compared)
    )


def test_every_finished_trial_of_a_paper_study_is_a_row(tmp_path: Path) -> None:
    compared = comparison.compare([paper_view(tmp_path, TEST | SPEED, {**TEST, **SPEED, "test/image_auroc": 0.75})])
    assert [(row.trial, row.image_auroc, row.test_images) for row in compared.rows] == [
        (0, 0.90625, 160),
        (1, 0.75, 160),
    ]
    assert [row.label for row in compared.rows] == ["padim_screw trial 0", "padim_screw trial 1"]
    assert compared.remarks == []
    assert "on validation" not in [name for name, _ in comparison_table.row_columns(compared)]


def test_sizes_are_shown_where_they_differ(tmp_path: Path) -> None:
    large = {"dataset": "mvtec", "category": "screw", "root": "/images", "image_size": [320, 256]}
    views = [make_view(tmp_path, [VALIDATION], final=TEST), make_view(tmp_path, [VALIDATION], name="large", data=large)]
    compared = comparison.compare(views)
    values = dict(comparison_table.row_columns(compared))["pixels"]
    assert [values(row) for row in compared.rows] == ["256x256", "320x256"]
    assert "pixels" not in dict(comparison_table.row_columns(comparison.compare(views[:1])))


def test_a_study_without_a_finished_trial_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'padim_screw' has no finished trial to compare"):
        comparison.compare([make_view(tmp_path, [])])
    view = make_view(tmp_path, [VALIDATION], constraints={"fps": ">= 1000"})
    with pytest.raises(InputError, match=r"no finished trial that meets its constraints \(fps >= 1000\)"):
        comparison.compare([view])


def test_what_stands_against_a_comparison_is_said(tmp_path: Path) -> None:
    ours = make_view(tmp_path, [VALIDATION], final=TEST)
    assert comparison.compare([ours]).remarks == []
    others = make_view(tmp_path, [VALIDATION], name="others", final=TEST, test_digest="d" * 64)
    (remark,) = comparison.compare([ours, others]).remarks
    assert "different test images (padim_screw: 78 of mvtec/screw; others: 78 of mvtec/screw)" in remark
    unscored = make_view(tmp_path, [VALIDATION], name="unscored#2")
    compared = comparison.compare([ours, unscored])
    (remark,) = compared.remarks
    assert "unscored#2: the selected trial 0 was not scored on test yet" in remark
    assert "`study run unscored#2`" in remark
    assert (compared.rows[1].scored, compared.rows[1].image_auroc) == (False, None)
    elsewhere = make_view(tmp_path, [VALIDATION], name="elsewhere", final=TEST, device="cuda:0")
    (remark,) = comparison.compare([ours, elsewhere]).remarks
    assert "different places (padim_screw: cpu test, 2 threads; elsewhere: cuda:0 test, 2 threads)" in remark
    drawn = make_view(tmp_path, [VALIDATION], name="drawn", final=TEST, experiment="rendered/screw")
    assert "a demonstration, not a result" in comparison.compare([drawn]).remarks[0]


# Which of them the test images tell apart


def write_image_scores(view: StudyView, values: np.ndarray, *, product: str = "") -> None:
    """Scores of the refit of trial 0 on as many images, the second half of them defective."""
    images = [
        {"name": f"{product}{i}", "label": int(i >= len(values) / 2), "defect_type": "", "score": float(value)}
        | {"verdict": None}
        for i, value in enumerate(values)
    ]
    write_json(
        view.final_folder(0) / ARTIFACTS / product / SCORES_FILE, {"threshold": None, "images": images, "gallery": []}
    )


def on_the_same_images(tmp_path: Path, scores: Sequence[np.ndarray]) -> Comparison:
    views = []
    for index, values in enumerate(scores):
        figure = auroc(values, np.arange(len(values)) >= len(values) / 2)
        view = make_view(tmp_path, [VALIDATION], name=f"s{index}", final=TEST | {"test/image_auroc": figure})
        write_image_scores(view, values)
        views.append(view)
    return comparison.compare(views)


def test_the_best_of_many_that_are_all_alike_is_not_told_apart(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    quality = np.where(np.arange(40) >= 20, 1.0, 0.0)
    compared = on_the_same_images(tmp_path, [quality + generator.normal(size=40) for _ in range(8)])
    (group,) = compared.same_images
    assert len(group.pairs) == 28
    ahead = [pair for pair in group.pairs if pair.better == group.labels[0]]
    # Each by itself, the lead of the one that these images picked would be taken for one.
    assert any(pair.p < 0.05 and pair.low > 0 for pair in ahead)
    assert not any(pair.told_apart for pair in group.pairs)
    for text in (comparison_files.to_markdown(compared), *map(str, comparison_files.terminal_parts(compared))):
        assert "more than chance would explain" not in text
    markdown = comparison_files.to_markdown(compared)
    assert "## On the same images" in markdown
    assert f"{group.labels[0]} has the highest figure on these very images and was picked by it" in markdown
    assert "So all 28 pairs were compared" in markdown
    assert markdown.count("these images do not tell them apart") == 7
    assert "Of the other 21 pairs these images tell none apart." in markdown


def test_what_differs_by_far_is_told_apart_among_many_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    quality = np.where(np.arange(80) >= 40, 4.0, 0.0)
    scores = [quality + generator.normal(size=80), -quality + generator.normal(size=80), generator.normal(size=80)]
    compared = on_the_same_images(tmp_path, scores)
    (group,) = compared.same_images
    assert group.labels == ["s0", "s2", "s1"]
    assert {(pair.better, pair.worse) for pair in group.pairs if pair.told_apart} == {
        ("s0", "s2"),
        ("s0", "s1"),
        ("s2", "s1"),
    }
    assert all(pair.p <= pair.p_adjusted for pair in group.pairs)
    assert "s2 above s1" in comparison_files.to_markdown(compared)


def test_two_studies_are_one_pair(tmp_path: Path) -> None:
    quality = np.arange(80.0)
    compared = on_the_same_images(tmp_path, [quality, -quality])
    ((pair,),) = [group.pairs for group in compared.same_images]
    assert (pair.better, pair.worse, pair.difference, pair.pairs, pair.images) == ("s0", "s1", 1.0, 1, 80)
    assert pair.p == pair.p_adjusted < 0.01
    assert "s0 is better by more than chance would explain." in comparison_files.to_markdown(compared)
    same = on_the_same_images(tmp_path / "same", [quality, quality])
    assert same.same_images[0].pairs[0].p == 1
    assert "these 80 images do not show which of the two is better" in comparison_files.to_markdown(same)


def test_where_a_study_kept_no_scores_nothing_is_tested(tmp_path: Path) -> None:
    views = [make_view(tmp_path, [VALIDATION], name=name, final=TEST) for name in ("a", "b")]
    write_image_scores(views[0], np.arange(20.0))
    compared = comparison.compare(views)
    assert [group.pairs for group in compared.same_images] == [[]]
    assert "was not tested, because not every study kept the score of each image" in comparison_files.to_markdown(
        compared
    )
    write_image_scores(views[1], np.arange(22.0))  # of other images
    assert [group.pairs for group in comparison.compare(views).same_images] == [[]]


def several_products(tmp_path: Path, name: str, *, bolt: int = 12, digest: str = "d") -> StudyView:
    counts = {
        "nut/train": {"good": 30}, "nut/validation": {"good": 8, "dent": 8}, "nut/test": {"good": 6, "dent": 6},
        "bolt/train": {"good": 20}, "bolt/validation": {"good": 5}, "bolt/test": {"good": bolt - 6, "dent": 6},
    }  # fmt: skip
    view = make_view(tmp_path, [VALIDATION], name=name, final=TEST, experiment="own/nut+bolt", counts=counts)
    view.header.identity["data"] = {"nut/train": "a" * 64, "nut/test": "c" * 64, "bolt/test": digest * 64}
    return view


def test_several_products_show_their_test_sets(tmp_path: Path) -> None:
    first, second = several_products(tmp_path, "first"), several_products(tmp_path, "second")
    compared = comparison.compare([first, second])
    assert [(row.test_images, row.test_sets) for row in compared.rows] == [(24, {"nut": 12, "bolt": 12})] * 2
    assert len({row.test_digest for row in compared.rows}) == 1
    assert len(compared.rows[0].test_digest) == 64
    assert compared.remarks == []
    said = "\n".join(comparison_table.explanations(compared))
    assert "first: test is the half of the labelled images, 24 (nut 12, bolt 12), that the search never saw." in said
    rows = list(csv.DictReader(io.StringIO(comparison_files.to_csv(compared))))
    assert (rows[0]["test_pictures"], rows[0]["test_sets"]) == ("24", "nut 12; bolt 12")
    other = several_products(tmp_path, "other", bolt=10, digest="e")
    (remark,) = comparison.compare([first, other]).remarks
    assert "different test images (first: 24 (nut 12, bolt 12) of own/nut+bolt; other: 22 (nut 12, bolt 10)" in remark


def test_several_products_are_told_apart_by_their_mean(tmp_path: Path) -> None:
    first, second = several_products(tmp_path, "first"), several_products(tmp_path, "second")
    for product in ("nut", "bolt"):
        write_image_scores(first, np.arange(12.0), product=product)
        write_image_scores(second, np.arange(12.0) * (1 if product == "nut" else -1), product=product)
    ((pair,),) = [group.pairs for group in comparison.compare([first, second]).same_images]
    assert (pair.better, pair.difference, pair.images) == ("first", 0.5, 24)
    assert pair.told_apart


# Comparable or not


def differences(view: StudyView, source: str, backbone: str) -> list[str]:
    """Of trial 0 to one published setting, in words."""
    (entry,) = [
        entry
        for entry in comparison.compare([view]).published
        if (entry.source, entry.params.get("backbone")) == (source, backbone)
    ]
    return [str(one) for one in next(iter(entry.differs.values()))]


REIMPLEMENTED = "PaDiM by xiahaifeng1995"


def test_the_papers_setting_on_the_papers_images_is_comparable(tmp_path: Path) -> None:
    view = paper_view(tmp_path, TEST | SPEED, params={"backbone": "resnet18.tv_in1k"})
    compared = comparison.compare([view])
    # Comparable ones come first.
    assert [entry.source for entry in compared.published if entry.comparable] == [
        entry.source for entry in compared.published[:2]
    ]
    first = compared.published[0]
    assert (first.source, first.image_auroc, first.pixel_auroc, first.pixel_aupro) == (
        REIMPLEMENTED,
        0.745,
        0.972,
        None,
    )
    assert first.mean is not None
    assert first.mean.image_auroc == 0.905
    assert first.comparable == ["padim_screw trial 0"]
    assert comparison_table.differs_in_short(first) == "nothing"
    beside = dict(comparison_table.row_columns(compared))["published image AUROC"](compared.rows[0])
    assert beside == "0.745 PaDiM by xiahaifeng1995, 0.759 Anomalib"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"backbone": "tf_efficientnet_lite0"}, "backbone: resnet18, here tf_efficientnet_lite0"),
        ({"backbone": "resnet18@random"}, "backbone: resnet18, here resnet18@random"),
        ({"layers": [8, 16]}, "layers: 4+8+16, here 8+16"),
        ({"n_features": 50}, "n_features: 100, here 50"),
    ],
)
def test_another_setting_is_not_comparable(tmp_path: Path, params: dict[str, Any], told: str) -> None:
    assert differences(paper_view(tmp_path, TEST | SPEED, params=params), REIMPLEMENTED, "resnet18") == [told]


def test_half_of_the_test_set_is_not_comparable(tmp_path: Path) -> None:
    view = make_view(tmp_path, [VALIDATION], final=TEST)
    told = "split: the whole test set of 160, here 78 of these"
    assert differences(view, REIMPLEMENTED, "resnet18") == [told]
    compared = comparison.compare([view])
    assert "published image AUROC" not in [name for name, _ in comparison_table.row_columns(compared)]
    (obstacle,) = [
        line for line in comparison_table.explanations(compared) if "no published figure can be compared" in line
    ]
    assert "split (the whole test set of 160; here 78 of these)" in obstacle


def test_other_images_under_the_same_name_are_not_comparable(tmp_path: Path) -> None:
    counts = {"train": {"good": 40}, "test": {"good": 10, "bent": 10}}
    view = paper_view(tmp_path, TEST | SPEED, counts=counts)
    assert differences(view, REIMPLEMENTED, "resnet18") == [
        "images: the official 320 to train and 160 to test, here 40 and 20"
    ]


def test_a_figure_that_the_test_set_chose_is_never_comparable(tmp_path: Path) -> None:
    figures = catalogue().model_dump()
    entry = next(entry for entry in figures["figures"] if entry["params"] == PAPER_PARAMS)
    entry["selection"] = "best epoch on the test set"
    compared = comparison.compare([paper_view(tmp_path, TEST | SPEED)], Catalogue.model_validate(figures))
    assert [len(row.comparable) for row in compared.published].count(1) == 1
    assert "selection" in [one.what for row in compared.published for one in row.differs["padim_screw trial 0"]]


def test_sources_that_disagree_about_one_setting_are_named(tmp_path: Path) -> None:
    figures = catalogue().model_dump()
    entry = next(entry for entry in figures["figures"] if entry["source"] == "cutpaste")
    other = next(entry for entry in figures["figures"] if entry["source"] == "cutpaste_runinho")
    for one in (entry, other):
        one["detector"] = "padim"
    view = paper_view(tmp_path, TEST | SPEED, experiment="mvtec/carpet")
    said = comparison_table.explanations(comparison.compare([view], Catalogue.model_validate(figures)))
    (line,) = [line for line in said if "disagree" in line]
    assert "padim on carpet" in line
    assert "0.601 (CutPaste by Runinho) to 0.931 (CutPaste paper)" in line
    assert not any("disagree" in line for line in comparison_table.explanations(comparison.compare([view])))


def test_of_a_category_without_figures_the_mean_is_told(tmp_path: Path) -> None:
    counts = {"train": {"good": 209}, "test": {"good": 20, "bent": 63}}
    compared = comparison.compare([paper_view(tmp_path, TEST | SPEED, experiment="mvtec/bottle", counts=counts)])
    assert compared.published
    for entry in compared.published:
        assert entry.image_auroc is None
        assert entry.mean is not None
        assert "category" in [one.what for one in entry.differs["padim_screw trial 0"]]


def test_nothing_is_put_beside_images_of_ones_own(tmp_path: Path) -> None:
    compared = comparison.compare([make_view(tmp_path, [VALIDATION], final=TEST, experiment="folder/bolts")])
    assert compared.published == []
    assert "No published figures are known of padim on folder/bolts." in comparison_table.explanations(compared)


def test_rows_that_do_not_differ_alike_are_named(tmp_path: Path) -> None:
    half = make_view(tmp_path, [VALIDATION], final=TEST)
    whole = paper_view(tmp_path, TEST | SPEED, name="defaults")
    compared = comparison.compare([half, whole])
    entry = next(entry for entry in compared.published if entry.source == REIMPLEMENTED)
    assert comparison_table.differs_in_short(entry) == "padim_screw: split; defaults trial 0: nothing"
    assert entry.comparable == ["defaults trial 0"]


# Written forms


@pytest.fixture
def compared(tmp_path: Path) -> Comparison:
    half = make_view(tmp_path, [VALIDATION], final=TEST)
    return comparison.compare([half, paper_view(tmp_path, TEST | SPEED, name="defaults", test_digest="d" * 64)])


def test_json_is_the_model(compared: Comparison) -> None:
    text = comparison_files.to_json(compared)
    assert Comparison.model_validate_json(text) == compared
    plain = json.loads(text)
    assert set(plain) == {"made", "rows", "published", "remarks", "same_images"}
    assert set(plain["rows"][0]) == {field.serialization_alias or name for name, field in Row.model_fields.items()}
    assert "test_pictures" in plain["rows"][0]  # as scripts know it
    assert plain["rows"][0]["image_auroc"] == 0.90625


def test_csv_holds_raw_numbers_of_studies_and_of_others(compared: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_files.to_csv(compared))))
    assert [row["study"] for row in rows if row["kind"] == "study"] == ["padim_screw", "defaults"]
    assert [float(rows[0][name]) for name in ("image_auroc", "pixel_aupro", "fps")] == [0.90625, 0.9375, 20.0]
    assert rows[0]["layers"] == "4+8+16"
    published = [row for row in rows if row["kind"] == "published"]
    assert len(published) == len(compared.published)
    assert {row["experiment"] for row in published} == {"mvtec/screw"}
    assert float(published[0]["image_auroc"]) == 0.745
    assert published[0]["reference"].startswith("github.com/")


def test_markdown_has_both_tables_and_the_remarks(compared: Comparison) -> None:
    text = comparison_files.to_markdown(compared)
    header, rule, *rows = text.split("\n\n")[1].splitlines()
    assert len(rows) == len(compared.rows)
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert "| padim_screw | 0 | padim | resnet18 4+8+16 | 0.906 | 0.800 to 0.969 |" in text
    assert f"> **{compared.remarks[0]}**" in text
    assert "arXiv 2011.08785" in text


def test_the_image_is_drawn_where_there_is_something_to_draw(tmp_path: Path, compared: Comparison) -> None:
    path = tmp_path / "images" / "comparison.png"
    assert comparison_files.write_plot(compared, path)
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(2**24) or ()) > 10
    empty = comparison.compare([make_view(tmp_path, [VALIDATION], name="unscored")])
    assert not comparison_files.write_plot(empty, tmp_path / "empty.png")
    with pytest.raises(InputError, match="nothing to draw yet"):
        comparison_files.save_plot(empty, tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()


# The command


@pytest.fixture
def command(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `finished`, as the place where commands are given."""
    set_home(monkeypatch, finished)
    return finished


def artifacts(folder: Path, name: str) -> set[str]:
    """Files of a comparison with the run of a study."""
    client = MlflowClient(f"sqlite:///{folder / 'home' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tiny/widget'")
    found = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`study.role` = 'study' and tags.`study.name` = '{name}'"
    )
    (run,) = found
    return {item.path for item in client.list_artifacts(run.info.run_id) if item.path.startswith("comparison")}


def told(ended: Ended, *words: str) -> None:
    assert ended.code == 2
    assert ended.out == ""
    for word in words:
        assert word in ended.error


def test_the_table_is_printed_and_left_with_each_study_in_mlflow(command: Path) -> None:
    assert study("compare", "tiny", "defaults", "--no-log").code == 0
    assert artifacts(command, "tiny") == artifacts(command, "defaults") == set()
    ended = study("compare", "tiny", "defaults")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    for word in ("tiny", "defaults", "image AUROC", "95 % interval", "different test images", "padim on tiny/widget"):
        assert word in ended.out
    files = {"comparison.md", "comparison.csv", "comparison.json", "comparison.png"}
    assert artifacts(command, "tiny") == artifacts(command, "defaults") == files
    # Compared with another, the files are those of the last time.
    assert study("compare", "tiny").code == 0
    client = MlflowClient(f"sqlite:///{command / 'home' / 'mlflow.db'}")
    (run,) = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id], filter_string="tags.`study.role` = 'study'")
        if run.data.tags["study.name"] == "tiny"
    ]
    local = client.download_artifacts(run.info.run_id, "comparison.json", str(command))
    assert [row.study for row in Comparison.model_validate_json(Path(local).read_text()).rows] == ["tiny"]
    assert run.info.status == "FINISHED"


def test_formats_and_files(command: Path, tmp_path: Path) -> None:
    shown = json.loads(study("compare", "tiny", "defaults", "tiny", "--json", "--no-log").out)
    assert [row["study"] for row in shown["rows"]] == ["tiny", "defaults"]
    details = json.loads(study("show", "tiny", "--json").out)["trials"][0]
    assert shown["rows"][0]["image_auroc"] == details["test_metrics"]["test/image_auroc"]
    assert shown["rows"][0]["fps"] == details["metrics"]["fps"]
    assert study("compare", "tiny", "--format", "markdown", "--no-log").out.startswith("# Comparison on tiny/widget")
    printed = study("compare", "tiny", "defaults", "--format", "csv", "--no-log")
    assert [row["study"] for row in csv.DictReader(io.StringIO(printed.out))] == ["tiny", "defaults"]
    assert printed.err.startswith("warning: these studies were measured on different test images")
    for suffix, beginning in (
        (".md", b"# Comparison"),
        (".csv", b"kind,study,"),
        (".json", b"{"),
        (".png", b"\x89PNG"),
    ):
        path = tmp_path / f"here{suffix}"
        ended = study("compare", "tiny", "--out", path, "--no-log")
        assert (ended.code, ended.out) == (0, "")
        assert path.read_bytes().startswith(beginning)
    assert study("compare", "tiny", "--out", tmp_path / "notes.txt", "--format", "markdown", "--no-log").code == 0
    assert (tmp_path / "notes.txt").read_text().startswith("# Comparison")


def test_mistakes_are_told(command: Path, tmp_path: Path) -> None:
    told(study("compare", "tiny", "tinny"), "no study 'tinny'", "did you mean tiny?")
    told(study("compare", "tiny", "--json", "--format", "csv"), "--json", "--format csv", "contradict")
    told(study("compare", "tiny", "--out", tmp_path / "table.txt"), "table.txt", ".md")
    told(study("compare", "tiny", "--out", tmp_path / "a.md", "--format", "table"), "for the terminal")
    (tmp_path / "file").write_text("")
    told(study("compare", "tiny", "--no-log", "--out", tmp_path / "file" / "a.md"), "cannot be written")
    told(study("compare", "tiny", "--no-log", "--out", tmp_path / "file" / "a.png"), "cannot be written")


def test_without_mlflow_the_table_is_there(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = study("compare", "tiny")
    assert ended.code == 0
    assert "image AUROC" in ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith("warning: the comparison was not stored in MLflow: ")
    assert "127.0.0.1:9 cannot be reached" in line


def test_a_store_that_is_gone_is_not_made_anew(command: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'gone.db'}")
    ended = study("compare", "tiny")
    assert ended.code == 0
    assert len(ended.err.splitlines()) == 1
    assert "there is no MLflow store" in ended.err
    assert not (tmp_path / "gone.db").exists()


def test_a_study_without_a_run_costs_a_warning(
    command: Path, empty_stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = command / "other.db"
    shutil.copy(empty_stores / "mlflow.db", other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    ended = study("compare", "tiny")
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    assert "the MLflow experiment 'tiny/widget' has no run of this study" in line
    with pytest.raises(InputError, match="no run of this study"):
        Projection(f"sqlite:///{other}").add_files(experiment="tiny/widget", uid="0" * 12, folder=command)
