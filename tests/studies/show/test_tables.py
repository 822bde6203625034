"""What the terminal and JSON show of a study."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from detectors.files import write_json
from studies.search.outcome import Outcome
from studies.show import insight
from studies.show.study_json import outcome_json
from studies.show.study_tables import insight_parts, outcome_parts, study_parts, trial_table
from studies.show.tables import Fitted
from studies.worker.jobs import RESULT_FILE
from tests.helpers.bench import Bench, ScriptedExecutor
from tests.helpers.builders import BACKBONE

TABLE = Fitted(
    ["trial", "image\nauroc", "pixel\nauroc", "seconds", "layers"],
    [["*0", 0.91, 0.97, 12.3, [4, 8, 16]], ["1", 0.84, 0.96, 3.2, [8, 16]]],
    "trials",
    spare=["pixel\nauroc", "seconds", "layers"],
    elsewhere="see the report",
)


def drawn(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(TABLE)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "gone"), [(80, ""), (34, "pixel_auroc"), (26, "pixel_auroc, seconds")])
def test_what_does_not_fit_is_left_out_aloud(width: int, gone: str) -> None:
    text = drawn(width)
    told = " ".join(text.split())
    assert "0.910" in text
    assert (f"no room for {gone}: see the report" in told) == bool(gone)
    assert ("12.3" in text) == ("seconds" not in gone)
    assert all(len(line) <= width for line in text.splitlines())


def test_what_may_not_go_stays_in_the_narrowest_terminal() -> None:
    assert "no room for pixel_auroc, seconds, layers" in " ".join(drawn(16).split())
    assert "0.910" in drawn(16)


def test_settings_that_only_one_detector_has_are_no_columns(bench: Bench) -> None:
    bench.run(
        ScriptedExecutor(lambda job: {"val/image_auroc": 0.5 + job.number / 100}),
        detector=["padim", "patchcore"],
        search={"smoothing_sigma": {"float": [1.0, 8.0]}, "patchcore": {"coreset_ratio": {"float": [0.01, 0.1]}}},
        fixed={"backbone": BACKBONE, "layers": [8]},
        budget={"trials": 4, "each": 2},
    )
    drawn = trial_table(bench.view())
    assert drawn.columns[-3:] == ("detector", "neighbourhood", "smoothing\nsigma")  # both pool neighbours
    assert {row[-3] for row in drawn.rows} == {"padim", "patchcore"}
    common = f"all with backbone {BACKBONE}, layers 8, normalize none, top_share 0"
    assert f"{common}; parameters of single detectors are in the report" in drawn.title


def test_the_choices_of_layers_are_shown_where_a_backbones_name_has_a_dot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insight, "importances", lambda view: {"padim.layers@resnet18.a1_in1k": 0.9, "n_features": 0.1})
    effects = [insight.Effect(name, "8+16", 3, 0.8, 0.9) for name in ("layers", "n_features", "shrinkage")]
    monkeypatch.setattr(insight, "effects", lambda view: effects)
    _, table = insight_parts(bench.run(budget={"trials": 1}).view)
    assert [str(cell) for cell in table.columns[0].cells] == ["layers", "n_features"]


# At the threshold

AT_THRESHOLD = {
    "test/image_auroc": 0.8,
    "test/image_recall": 0.75,
    "test/image_recall/dent": 1.0,
    "test/image_recall/scratch": 0.5,
    "test/false_alarm_rate": 1 / 12,
}
FEW = {
    "value": 462.0,
    "rule": "false_alarm_rate",
    "source": "validation",
    "normals": 12,
    "rate": 0.01,
    "expected_rate": 1 / 13,
    "decided_by": "widget/test/good/003.png",
    "without": 193.0,
}


def at_threshold(bench: Bench, monkeypatch: pytest.MonkeyPatch, **trial: float) -> Outcome:
    """A study whose refit caught and stopped what `AT_THRESHOLD` says, on 12 good images, 4 dents and 4 scratches."""
    counts = {"train": {"good": 9}, "test": {"good": 12, "dent": 4, "scratch": 4}}
    script = ScriptedExecutor(lambda job: {"val/image_auroc": 0.9, **trial}, final=lambda job: AT_THRESHOLD)
    outcome = bench.run(script, budget={"trials": 2})
    monkeypatch.setattr(outcome.view, "header", replace(outcome.view.header, counts=counts))
    assert outcome.selected is not None
    final = outcome.selected.final
    assert final is not None
    write_json(
        outcome.selected.final_folder / RESULT_FILE, final.model_copy(update={"threshold": FEW}).model_dump(mode="json")
    )
    return replace(outcome, selected=outcome.view.selected())


def printed(parts: Iterable[Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_came_of_a_study_begins_with_what_it_finds_and_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = at_threshold(bench, monkeypatch)
    for text in (printed(outcome_parts(outcome)), printed(study_parts(outcome.view))):
        lines = [line.strip() for line in text.splitlines()]
        at = next(place for place, line in enumerate(lines) if line.startswith("selected: trial"))
        assert lines[at + 1 : at + 7] == [
            "on test, which the search never saw: finds 6 of 8 defects at 1 false alarm in 12 good images; image AUROC 0.800",
            "of each type of defect it finds: scratch 2 of 4, dent 4 of 4",
            "threshold 462: rests on 12 held-out good images; expect 7.7 % false alarms, 0.2 to 26 %",
            "1 % cannot be promised by 12 good images: they support 7.7 %; 99 are needed",
            "one image decides the threshold: widget/test/good/003.png; without it it would be 193 instead of 462",
            "on validation, which chose it: image AUROC 0.900",
        ]
        assert "at most 1 %" not in text


def test_json_has_the_operating_point(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = at_threshold(bench, monkeypatch)
    (point,) = json.loads(outcome_json(outcome))["operating_points"]
    figures = [point[name] for name in ("found", "defective", "false_alarms", "good", "per_defect")]
    assert figures == [6, 8, 1, 12, {"dent": [4, 4], "scratch": [2, 4]}]
    assert (point["supports_rate"], point["normals_needed"], point["threshold"]["value"]) == (False, 99, 462.0)
    assert point["rate_interval"] == pytest.approx([0.0021, 0.2646], abs=1e-4)
    assert point["text"] == "finds 6 of 8 defects at 1 false alarm in 12 good images"


def test_recall_and_false_alarms_are_columns_where_they_were_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"val/image_recall": 0.5, "val/false_alarm_rate": 0.25}
    drawn = trial_table(at_threshold(bench, monkeypatch, **measured).view)
    assert drawn.columns[2:5] == ("image\nauroc", "image\nrecall", "false\nalarm\nrate")
    assert [row[3:5] for row in drawn.rows] == [(0.5, 0.25)] * 2
    assert "its good images are among those that each threshold rests on" in drawn.title


def test_without_a_threshold_there_are_no_such_columns(bench: Bench) -> None:
    view = bench.run(budget={"trials": 1}).view
    assert "image\nrecall" not in trial_table(view).columns
    assert "finds" not in printed(study_parts(view))
