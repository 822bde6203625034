"""From images to the line and back, by the commands a person gives: two studies on rendered screws, one registered model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies.commands.promote import REFUSED
from tests.helpers.shell import Shell, make_shell, raw_study

SIZE = 192
GATE = {"floor": {}, "per_defect_drop": 1.0}  # four images of a type say nothing of it
ENOUGH = ("--offline", "--device", "cpu", "--inline")


@pytest.fixture
def shell(empty_stores: Path, tmp_path: Path) -> Shell:
    shell = make_shell(tmp_path / "work", empty_stores)
    # A folder like any other: what a study knows to be rendered may not go to another registered model.
    drawn = shell(
        *("data", "render", "--out", shell.folder / "images", "--size", SIZE),
        *("--train", 40, "--test-good", 24, "--per-defect", 8),
    )
    assert drawn.code == 0, drawn
    return shell


def finish(shell: Shell, name: str, detector: str, fixed: dict[str, object], search: dict[str, object]) -> None:
    """Run a study of one trial to its end."""
    raw = raw_study(
        shell.folder / "images", name=name, detector=detector, search=search, gate=GATE, budget={"trials": 1}
    )
    raw["data"] |= {"category": "screw", "image_size": SIZE}
    raw["fixed"] |= fixed
    ended = shell("run", shell.write(raw), *ENOUGH)
    assert ended.code == 0, ended


def champion(shell: Shell) -> tuple[str, float]:
    """Version and score of one image, as whoever follows the alias gets them."""
    told = json.loads(shell("models", "line-3", "--json").out)["line-3"]
    (version,) = (version["version"] for version in told["versions"] if "champion" in version["aliases"])
    image = min((shell.folder / "images" / "screw" / "test" / "good").glob("*.png"))
    (shown,) = json.loads(shell("predict", "models:/line-3@champion", image, "--json").out)
    return version, shown["score"]


@pytest.mark.slow
def test_two_studies_compete_for_the_line(shell: Shell) -> None:
    finish(
        shell, "weak", "padim", {"shrinkage": 0.0, "smoothing_sigma": 16.0}, {"n_features": {"choices": [1, 2]}}
    )  # of random weights, at that
    bundled = {"backbone": "tf_efficientnet_lite0", "smoothing_sigma": 2.0}
    finish(shell, "strong", "patchcore", bundled, {"coreset_ratio": {"choices": [0.1, 0.25]}})

    assert shell("promote", "weak", "--to", "line-3").code == 0
    weak = champion(shell)
    assert weak[0] == "1"
    ended = shell("promote", "strong", "--to", "line-3", "--json")
    assert ended.code == 0, ended
    strong = champion(shell)
    assert strong[0] == "2"
    assert strong[1] != pytest.approx(weak[1])

    refused = shell("promote", "weak", "--to", "line-3")
    assert refused.code == REFUSED, refused
    assert "refused: AUROC -0." in refused.out + refused.err
    assert champion(shell) == strong

    assert shell("rollback", "line-3", "--reason", "the lamp was changed").code == 0
    assert champion(shell) == weak
    again = shell("promote", "strong", "--to", "line-3")
    assert again.code == 0, again
    assert champion(shell) == strong

    told = json.loads(shell("models", "line-3", "--json").out)["line-3"]
    assert told["faults"] == []
    assert [(line["action"], line["version"]) for line in told["record"]] == [
        ("registered", "1"),
        ("promoted", "1"),
        ("registered", "2"),
        ("promoted", "2"),
        ("refused", "1"),
        ("rolled back", "1"),
        ("promoted", "2"),
    ]
    assert told["record"][5]["details"]["reason"] == "the lamp was changed"
