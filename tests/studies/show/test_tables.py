"""Tables in narrow terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from studies.show import insight
from studies.show.study_tables import insight_parts, trial_table
from studies.show.tables import Fitted
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
    assert f"all with backbone {BACKBONE}, layers 8; parameters of single detectors are in the report" in drawn.title


def test_the_choices_of_layers_are_shown_where_a_backbones_name_has_a_dot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insight, "importances", lambda view: {"padim.layers@resnet18.a1_in1k": 0.9, "n_features": 0.1})
    effects = [insight.Effect(name, "8+16", 3, 0.8, 0.9) for name in ("layers", "n_features", "shrinkage")]
    monkeypatch.setattr(insight, "effects", lambda view: effects)
    _, table = insight_parts(bench.run(budget={"trials": 1}).view)
    assert [str(cell) for cell in table.columns[0].cells] == ["layers", "n_features"]
