"""The prior: how settings are compared with the stored ones, and that the stored ones are settings of our detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import portfolio as script
from detectors import catalog
from studies.file.keys import SHARED_PARAMETERS
from studies.search import portfolio
from studies.search.portfolio import Entry, Portfolio, distance, first, nearest, order

A: dict[str, Any] = {
    "backbone": "resnet18",
    "layers": [8, 16],
    "coreset_ratio": 0.01,
    "whitening": 0.0,
    "n_neighbors": 1,
}
B: dict[str, Any] = A | {"layers": [16], "whitening": 0.05}


def made(*entries: tuple[str, dict[str, Any]]) -> Portfolio:
    return Portfolio(
        version=1,
        products=["one", "two"],
        entries=[
            Entry(detector=detector, setting=setting, mean_rank=0.1 * place, products=2)
            for place, (detector, setting) in enumerate(entries)
        ],
    )


def test_what_is_stored_are_settings_of_our_detectors_the_best_first() -> None:
    entries = portfolio.stored().entries
    assert entries
    assert [entry.mean_rank for entry in entries] == sorted(entry.mean_rank for entry in entries)
    for entry in entries:
        parameters = catalog.parameters(entry.detector)
        for name, value in entry.setting.items():
            if name not in SHARED_PARAMETERS:
                assert parameters[name].check(value) == value
        assert order(entry.detector, entry.setting) is not None


def test_an_own_setting_has_its_own_place_and_another_that_of_the_nearest() -> None:
    known = made(("patchcore", B), ("padim", {"n_features": 100}), ("patchcore", A))
    assert order("patchcore", A, known) == 3
    assert order("patchcore", B, known) == 1
    near_a = A | {"coreset_ratio": 0.02, "n_neighbors": 2}
    assert order("patchcore", near_a, known) == 3
    assert order("spade", A, known) is None
    assert nearest("spade", A, known) is None


def test_a_setting_like_none_of_them_has_no_place() -> None:
    known = made(("cflow", {"backbone": "resnet18", "layers": [8], "learning_rate": 0.01}))
    other = {"backbone": "pixels", "layers": [32], "learning_rate": 1.0, "clamp": 0.1}
    near = nearest("cflow", other, known)
    assert near is not None
    far = nearest("own", {"a": 1.0, "b": "x"}, made(("own", {"a": 100.0, "b": "y"})))
    assert far is not None
    assert far.distance == 1.0
    assert order("own", {"a": 1.0, "b": "x"}, made(("own", {"a": 100.0, "b": "y"}))) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.0),
        ({"backbone": "wide_resnet50_2"}, 1.0),
        ({"layers": [8]}, 0.5),
        ({"layers": [8, 32]}, 2 / 3),
        ({"coreset_ratio": 0.02}, 0.5),
        ({"coreset_ratio": 0.005}, 0.5),
        ({"coreset_ratio": 0.5}, 1.0),
        ({"whitening": 0.05}, 1.0),
        ({"n_neighbors": 2}, 0.5),
    ],
)
def test_how_unlike_two_settings_are(change: dict[str, Any], expected: float) -> None:
    assert distance(A, A | change) == pytest.approx(expected / len(A))
    assert distance(A | change, A) == distance(A, A | change)
    assert distance(A, A | change | {"only_here": 3}) == distance(A, A | change)


def test_what_a_setting_leaves_out_is_the_default() -> None:
    defaults = {name: parameter.default for name, parameter in catalog.parameters("patchcore").items()}
    known = made(("patchcore", defaults | A), ("patchcore", defaults | A | {"reweighting": 3, "n_neighbors": 9}))
    assert order("patchcore", A, known) == 1


def test_the_first_of_a_detector() -> None:
    known = made(("patchcore", B), ("padim", {"n_features": 100}), ("patchcore", A))
    assert first("patchcore", 5, known) == [B, A]
    assert first("patchcore", 1, known) == [B]
    assert first("spade", 3, known) == []


# The script that makes it


def write_runs(folder: Path) -> None:
    """Settings of two detectors on two products, of which one has a setting more; and searches of a third and of PatchCore."""
    rows = {
        "x": {"patchcore": [(A, 0.9), (B, 0.8)], "padim": [({"n_features": 50}, 0.7)]},
        "y": {"patchcore": [(A, 0.6), (B, 0.8), (A | {"n_neighbors": 5}, 0.7)], "padim": [({"n_features": 50}, 0.5)]},
    }
    products = {
        product: {
            name: [{"setting": setting, "image_auroc": value} for setting, value in settings]
            for name, settings in detectors.items()
        }
        for product, detectors in rows.items()
    }
    # What was found on products that were drawn for the purpose does not count.
    products["z"] = {"patchcore": [{"setting": {"whitening": 0.3}, "image_auroc": 1.0}]}
    (folder / "label_free.json").write_text(json.dumps({"drawn": ["z"], "products": products}))
    for data in ("screw", "carpet"):
        for detector, value in (("spade", 0.9), ("patchcore", 0.99)):
            trial = {"state": "COMPLETE", "metrics": {"val/image_auroc": value}, "params": {"n_neighbors": 5}}
            study = {"experiment": data, "config": {"detector": detector, "protocol": "holdout"}, "trials": [trial]}
            (folder / f"{detector}_{data}.json").write_text(json.dumps(study))


def test_the_script_orders_by_the_mean_rank_over_products(tmp_path: Path) -> None:
    write_runs(tmp_path)
    pools, searched = script.read_pools(tmp_path), script.read_searched(tmp_path)
    # Searched PatchCore trials say nothing of its settings once all of them were tried on all products.
    assert list(pools) == ["x", "y", "carpet (searched)", "screw (searched)"]
    assert {name for pool in [pools["screw (searched)"]] for name, _ in pool} == {"spade"}
    ranked = script.mean_ranks(pools.values(), "patchcore")
    # A is first of two and last of three, B the other way round.
    assert {json.loads(one[1])["whitening"]: value for one, value in ranked.items() if value[1] == 2} == {
        0.0: (0.5, 2),
        0.05: (0.5, 2),
    }
    stored = Portfolio.model_validate_json(script.written(script.portfolio(pools, searched)))
    assert [entry.detector for entry in stored.entries] == ["patchcore", "patchcore", "padim", "spade"]
    assert stored.entries[0].products == 2
    lines = list(script.check(pools))
    # Without y, A comes first, 0.2 below the best there; without x, B.
    assert "y | patchcore | 0.200 | 0.100 | 0.800 | 2" in lines
    assert "x | patchcore | 0.100 | 0.050 | 0.900 | 2" in lines


def test_between_detectors_a_rank_stands_where_it_stood_on_the_products_that_have_several() -> None:
    pool = {script.key("spade", {"n_neighbors": n}): 0.5 + n / 100 for n in range(5)}
    pool |= {script.key("patchcore", {"n_neighbors": n}): 0.8 + n / 100 for n in range(5)}
    assert script.among_all(0.0, "patchcore", [pool]) == 0.0
    assert script.among_all(1.0, "patchcore", [pool]) == pytest.approx(4 / 9)
    assert script.among_all(0.0, "spade", [pool]) == pytest.approx(5 / 9)
    assert script.among_all(0.3, "padim", [pool]) == 0.3
    alone = {one: value for one, value in pool.items() if one[0] == "spade"}
    assert script.among_all(0.3, "spade", [alone]) == 0.3
