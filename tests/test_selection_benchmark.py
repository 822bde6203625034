"""The benchmark of choosing with few labelled images: what it reads, its regrets, and what the prior is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import selection, tie_rule

LABELS = np.repeat(np.array([0, 1]), (60, 60))
LEVELS = (0.3, 1.0, 2.5)
"""The third setting is the best on every product."""


def write(folder: Path, product: str, *, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.normal(size=len(LABELS)) + level * LABELS for level in LEVELS])
    file = folder / f"{product}_patchcore.npz"
    np.savez_compressed(file, test=scores, labels=LABELS)
    file.with_suffix(".json").write_text(json.dumps([{"layers": [stride]} for stride in (8, 16, 32)]))
    return file


def test_with_the_best_setting_first_in_the_prior_ties_cost_nothing(tmp_path: Path) -> None:
    everything = [selection.Scored.read(write(tmp_path, f"part_{name}", seed=seed)) for seed, name in enumerate("abc")]
    assert [(one.product, one.detector) for one in everything] == [(f"part_{name}", "patchcore") for name in "abc"]
    prior = selection.prior_of(everything[1:])
    assert prior is not None
    assert prior.tolist() == [3, 2, 1]
    rows = selection.compare(everything)
    assert [(row["product"], row["labelled"], row["other_products"]) for row in rows] == [
        (f"part_{name}", labelled, 2) for name in "abc" for labelled in (20, 40)
    ]
    for row in rows:
        regret = row["regret"]
        assert regret["prior"] == [0.0] * selection.HALVINGS
        assert all(after <= before for before, after in zip(regret["best value"], regret["ties"], strict=True))
        assert max(regret["chance"]) > 0.1
    assert selection.compare(everything) == rows
    lines = selection.table(rows)
    assert len(lines) == 1 + 2 * 4
    assert lines[4].startswith("patchcore | all | 20 | ")


def test_alone_a_product_has_no_prior_and_few_images_are_passed_over(tmp_path: Path) -> None:
    one = selection.Scored.read(write(tmp_path, "part", seed=0))
    (row, _) = selection.compare([one])
    assert "prior" not in row["regret"]
    assert " | - | " in selection.table([row])[1]
    few = selection.Scored(one.product, one.detector, one.settings, one.scores[:, 35:85], one.labels[35:85])
    assert [row["labelled"] for row in selection.compare([few])] == [20]


def test_a_file_that_contradicts_its_settings_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "part", seed=0)
    file.with_suffix(".json").write_text("[{}]")
    with pytest.raises(SystemExit, match=r"scores are \[3, 120\] of 1 settings, 120 images"):
        selection.Scored.read(file)


def test_the_simulation_of_the_rule_has_a_regret_for_each(tmp_path: Path) -> None:
    found = tie_rule.one(np.random.default_rng(0), 0.5, 0.06, 0.5, (10, 10))
    assert set(found) > {"best value", "0.5 standard errors", tie_rule.SIMULTANEOUS, "prior's first", "chance"}
    assert all(0 <= regret <= 0.5 for regret in found.values())
    again = tie_rule.one(np.random.default_rng(0), 0.5, 0.06, 0.5, (10, 10))
    assert again == found


def test_what_is_stored_of_the_simulation_is_what_the_rule_rests_on() -> None:
    stored = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "tie_rule.json").read_text())
    worse = [row["regret"]["0.5 standard errors"] - row["regret"]["best value"] for row in stored["rows"]]
    assert max(worse) <= 0.0031
    assert float(np.mean(worse)) < 0
    tested = [row["regret"]["1.645 standard errors"] - row["regret"]["best value"] for row in stored["rows"]]
    assert float(np.mean(tested)) > 0.005
