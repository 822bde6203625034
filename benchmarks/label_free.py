"""How good the detectors are that a search without labels chooses: image AUROC on real defects that it never saw.

    python benchmarks/label_free.py --data ../shared/data --scores outputs/label_free --out benchmarks/results/label_free.json

Every setting of a grid is fitted to the train images of protocol synthetic, and scores its validation images, painted with four
seeds, and the real test images of the product. Compared are, as image AUROC on the real defects and as regret, how far that lies
below the best setting of the grid:

- highest: the setting with the highest ranking score on the painted images of one seed;
- label-free: what `study run` chooses: the five best are ranked again by the mean over the paintings of all four seeds, and of
  those that tie with the best of them (`studies.search.choice`: half a standard error of the difference, by the paired bootstrap
  over good images) the one is taken that the prior of the other products has first. `study run` also fits each of them again;
- prior: the setting with the best mean rank on the other products, which is what is tried first without any evidence. As in the
  prior that is shipped, the drawn products are not among these others;
- labelled: the real images are halved as protocol holdout does; the setting that is best on one half is judged on the other, and
  the other way round. Every other figure is the mean over the same two halves;
- default: the paper's setting.

The method was fixed on seed 0, the figures are those of seeds 1 to 3; a seed decides the paintings, while train, held-out images
and fits are the same. Products: MVTec AD screw, VisA macaroni1 and the carpet tiles of ``--data`` (`read_mvtec` layout), the
rendered screws, and the drawn products of `benchmarks.objects`. EfficientNet-Lite0 at 256 px. What was computed stays in
``--scores`` (an .npz of per-image scores and a .json of settings for each product and detector), so that the command goes on
where it was stopped; without ``--data`` it only reports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from detectors.backbones.bundled import SMALLEST
from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.catalog import head_class
from detectors.data.mvtec import read_mvtec
from detectors.data.painting.painted_set import PaintedSet
from detectors.data.rendered import RenderSpec, render_dataset
from detectors.data.samples import Dataset, ImageSet
from detectors.data.splits import make_splits, stable_order
from detectors.detector import Detector
from detectors.features import Features
from detectors.scoring.metrics import auroc
from detectors.scoring.ranking import bootstrap_ranking_scores, ranking_score
from studies.search.choice import WITHIN

sys.path.insert(0, str(Path(__file__).resolve().parent))
import objects

SIZE = (256, 256)
STRIDES = (4, 8, 16, 32)
SEEDS = (0, 1, 2, 3)
TUNED_ON, RERANKED = 0, 5
REAL = {"screw": "MVTecAD", "macaroni1": "VisA", "carpet": "carpet_tiles"}
DRAWN = tuple(objects.PRODUCTS)
DETECTORS = ("patchcore", "padim", "spade")
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "patchcore": {"layers": [8, 16], "neighbourhood": 1, "whitening": 0.0},
    "padim": {"layers": [4, 8, 16], "n_features": 100, "regularization": 0.01},
    "spade": {"layers": [4, 8, 16], "n_neighbors": 5, "image_score": "retrieval"},
}
"""The papers' settings."""


def grid(detector: str) -> Iterator[dict[str, Any]]:
    """The settings of a detector that are compared; the paper's is among them."""
    if detector == "patchcore":
        for layers, whitening, neighbourhood in itertools.product(
            ([8], [16], [8, 16], [16, 32], [8, 16, 32]), (0.0, 0.05, 0.3), (0, 1)
        ):
            if not (whitening == 0.3 and neighbourhood):
                yield {"layers": layers, "neighbourhood": neighbourhood, "whitening": whitening}
    elif detector == "padim":
        for layers, n_features, regularization in itertools.product(
            ([4, 8], [8, 16], [4, 8, 16], [8, 16, 32], [16]), (50, 100, 150), (1e-3, 1e-2, 1e-1)
        ):
            yield {"layers": layers, "n_features": n_features, "regularization": regularization}
    else:
        # A map of stride 4 takes a minute an image on two cores; retrieval goes by the deepest stride alone.
        by_map, by_retrieval = ([8], [16], [8, 16], [16, 32], [8, 16, 32]), ([4, 8, 16], [8, 16, 32])
        for image_score, choices in (("map", by_map), ("retrieval", by_retrieval)):
            for layers, n_neighbors in itertools.product(choices, (1, 5, 20)):
                yield {"layers": layers, "n_neighbors": n_neighbors, "image_score": image_score}


@dataclass(frozen=True)
class Scored:
    """Per-image scores of one detector's settings on one product."""

    product: str
    detector: str
    settings: list[dict[str, Any]]
    painted: dict[int, PaintedSet]
    """{seed: what its validation images are}"""
    validation: dict[int, NDArray[np.float64]]
    """{seed: [S, V]}"""
    test: NDArray[np.float64]
    """[S, T] of the real images."""
    labels: NDArray[np.int64]
    """[T]"""
    half: NDArray[np.int64]
    """[T] 0 or 1: the side on which protocol holdout has an image."""

    def aurocs(self, half: int) -> NDArray[np.float64]:
        """[S] on one half of the real images."""
        own = self.half == half
        return np.array([auroc(scores[own], self.labels[own]) for scores in self.test])

    @property
    def true(self) -> NDArray[np.float64]:
        """[S] mean over the halves."""
        return (self.aurocs(0) + self.aurocs(1)) / 2

    def ranking(self, seed: int) -> NDArray[np.float64]:
        """[S] ranking score on the paintings of a seed."""
        return np.array([ranking_score(scores, self.painted[seed]) for scores in self.validation[seed]])

    def chosen(self, seed: int, prior: NDArray[np.float64]) -> tuple[int, int]:
        """The setting that `study run` chooses, and how many settings tied with the best one at the end.

        Args:
            prior: [S] mean rank of each setting on the other products.
        """
        first, replicates = self.ranking(seed), self.replicates[seed]
        leader = int(first.argmax())
        tied = set(_tied(first, replicates, leader).tolist())
        order = sorted(
            range(len(first)), key=lambda index: (index not in tied, prior[index] if index in tied else -first[index])
        )
        again = np.array(order[:RERANKED])
        mean = np.mean([self.ranking(one)[again] for one in SEEDS], axis=0)
        spread = np.mean([self.replicates[one][again] for one in SEEDS], axis=0)
        still = again[_tied(mean, spread, int(mean.argmax()))]
        return int(still[prior[still].argmin()]), len(still)

    @cached_property
    def replicates(self) -> dict[int, NDArray[np.float64]]:
        """{seed: [S, B] ranking scores in the same draws of good images}"""
        return {
            seed: bootstrap_ranking_scores(list(self.validation[seed]), self.painted[seed], seed=0) for seed in SEEDS
        }


def _tied(values: NDArray[np.float64], replicates: NDArray[np.float64], leader: int) -> NDArray[np.int64]:
    """Indices of the values [S] that tie with the leader, by their replicates [S, B]."""
    error = (replicates[leader] - replicates).std(axis=1)
    return np.flatnonzero(values[leader] - values <= WITHIN * error)


def main() -> None:
    """Compute what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--products", nargs="+", default=[*REAL, "rendered", *DRAWN])
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=DETECTORS)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.scores.mkdir(parents=True, exist_ok=True)
    if given.data is not None:
        for name in given.products:
            missing = [one for one in given.detectors if not _file(given.scores, name, one).is_file()]
            if missing:
                compute(name, given.data, given.scores, missing)
    scored = [
        read(given.scores, name, detector)
        for detector in given.detectors
        for name in given.products
        if _file(given.scores, name, detector).is_file()
    ]
    report = summarised(scored)
    print_table(report)
    if given.out:
        given.out.write_text(written(report))


def written(report: Mapping[str, Any]) -> str:
    """As JSON with a line for each row and each setting."""
    head = json.dumps({name: value for name, value in report.items() if name not in ("rows", "products")}, indent=1)[
        :-2
    ]
    rows = ",\n".join(f"  {json.dumps(row)}" for row in report["rows"])
    products = ",\n".join(
        f"  {json.dumps(product)}: {{\n"
        + ",\n".join(
            f"   {json.dumps(detector)}: [\n" + ",\n".join(f"    {json.dumps(one)}" for one in settings) + "\n   ]"
            for detector, settings in detectors.items()
        )
        + "\n  }"
        for product, detectors in report["products"].items()
    )
    return f'{head},\n "rows": [\n{rows}\n ],\n "products": {{\n{products}\n }}\n}}\n'


# --- computing


def _file(folder: Path, product: str, detector: str) -> Path:
    return folder / f"{product}_{detector}.npz"


def _dataset(name: str, data: Path, folder: Path) -> Dataset:
    if name in REAL:
        return read_mvtec(data / REAL[name], name)
    if name == "rendered":
        return read_mvtec(render_dataset(folder / "rendered", RenderSpec(train=140, test_good=40)), "screw")
    root = folder / "drawn"
    if not (root / name).is_dir():
        objects.draw(name, root)
    return read_mvtec(root, name)


def compute(name: str, data: Path, folder: Path, detectors: list[str]) -> None:
    """Fit and score every setting of the detectors on one product, and keep the scores."""
    begin = time.perf_counter()
    dataset = _dataset(name, data, folder)
    splits = {seed: make_splits(dataset, protocol="synthetic", image_size=SIZE, seed=seed) for seed in SEEDS}
    first = splits[SEEDS[0]]
    if first.folds:
        raise SystemExit(f"{name}: fewer good images than are held out for good; this benchmark needs 100 or more")
    held_out = make_splits(dataset, protocol="holdout", image_size=SIZE)
    assert held_out.validation is not None
    on_validation = {sample.key for sample in held_out.validation.samples}
    test = ImageSet("test", tuple(stable_order(dataset.test)), SIZE)
    probe = Detector(build_backbone(SMALLEST, STRIDES), head_class("patchcore")(), image_size=SIZE)

    def features(image_set: ImageSet) -> Features:
        blocks = [
            probe.extract(image_set.images(range(start, min(start + 32, len(image_set)))))
            for start in range(0, len(image_set), 32)
        ]
        return Features(
            maps={stride: torch.cat([block.maps[stride] for block in blocks], dim=2) for stride in STRIDES},
            grids=blocks[0].grids,
            image_size=SIZE,
        )

    train, on_test = features(first.train), features(test)
    painted = {seed: features(one.validation) for seed, one in splits.items() if one.validation is not None}
    print(f"{name}: features in {time.perf_counter() - begin:.0f} s", flush=True)
    for detector in detectors:
        settings = list(grid(detector))
        rows: dict[str, list[NDArray[np.float64]]] = {"test": [], **{f"validation{seed}": [] for seed in SEEDS}}
        for setting in settings:
            fitted = _fitted(detector, setting, train)
            rows["test"].append(_scores(fitted, on_test, setting))
            for seed in SEEDS:
                rows[f"validation{seed}"].append(_scores(fitted, painted[seed], setting))
        sets = {seed: one.validation.painted for seed, one in splits.items() if one.validation is not None}
        np.savez_compressed(
            _file(folder, name, detector),
            labels=test.labels,
            half=np.array([int(sample.key not in on_validation) for sample in test.samples]),
            **{key: np.stack(value) for key, value in rows.items()},
            **{f"cells{seed}": np.array(one.cells) for seed, one in sets.items() if one is not None},
            **{f"sources{seed}": one.sources for seed, one in sets.items() if one is not None},
        )
        _file(folder, name, detector).with_suffix(".json").write_text(json.dumps(settings))
        print(f"{name}, {detector}: {len(settings)} settings, {time.perf_counter() - begin:.0f} s", flush=True)


def _fitted(detector: str, setting: Mapping[str, Any], train: Features) -> Detector:
    """A detector of a setting, the values that channels bound cut as a search cuts them."""
    values = {name: value for name, value in setting.items() if name != "layers"}
    layers = _scored_by(setting)
    backbone = build_backbone(SMALLEST, tuple(layers))
    head_type = head_class(detector)
    channels = {stride: train.maps[stride].shape[1] for stride in layers}
    if detector == "patchcore":
        values |= {"coreset_ratio": 0.01, "projection": 128}
    values = {
        name: min(value, head_type.upper_bounds(channels).get(name, value))
        if name in head_type.upper_bounds(channels)
        else value
        for name, value in values.items()
    }
    fitted = Detector(backbone, head_type(**values), image_size=SIZE, smoothing_sigma=4.0)
    fitted.fit_features(train.select(layers), FitContext())
    return fitted


def _scored_by(setting: Mapping[str, Any]) -> list[int]:
    """The layers that a setting's image scores rest on."""
    layers: list[int] = setting["layers"]
    return layers[-1:] if setting.get("image_score") == "retrieval" else layers


def _scores(detector: Detector, features: Features, setting: Mapping[str, Any]) -> NDArray[np.float64]:
    layers = _scored_by(setting)
    chosen = features.select(layers)
    count = chosen.maps[layers[0]].shape[2]
    blocks = [
        detector.score_features(chosen.take(tuple(range(start, min(start + 64, count))))).scores
        for start in range(0, count, 64)
    ]
    return torch.cat(blocks).double().cpu().numpy()


def read(folder: Path, product: str, detector: str) -> Scored:
    """The stored scores of one product and detector."""
    file = _file(folder, product, detector)
    with np.load(file, allow_pickle=False) as stored:
        return Scored(
            product=product,
            detector=detector,
            settings=json.loads(file.with_suffix(".json").read_text()),
            painted={
                seed: PaintedSet(
                    tuple(map(str, stored[f"cells{seed}"])),
                    stored[f"sources{seed}"],
                    np.ones(len(stored[f"sources{seed}"]), dtype=np.int64),
                )
                for seed in SEEDS
            },
            validation={seed: stored[f"validation{seed}"] for seed in SEEDS},
            test=stored["test"],
            labels=stored["labels"],
            half=stored["half"],
        )


# --- reporting


def summarised(scored: list[Scored]) -> dict[str, Any]:
    """What `print_table` prints, and the AUROC and ranking scores of every setting, from which the portfolio is made."""
    products: dict[str, Any] = {}
    rows = []
    for detector in dict.fromkeys(one.detector for one in scored):
        own = [one for one in scored if one.detector == detector]
        for one in own:
            rows += _rows(one, [other for other in own if other is not one and other.product not in DRAWN])
            products.setdefault(one.product, {})[detector] = [
                {
                    "setting": {"backbone": SMALLEST, **setting},
                    "image_auroc": round(float(true), 4),
                    "ranking_score": [round(float(one.ranking(seed)[index]), 4) for seed in SEEDS],
                }
                for index, (setting, true) in enumerate(zip(one.settings, one.true, strict=True))
            ]
    return {
        "command": "python benchmarks/label_free.py --data ../shared/data --scores outputs/label_free",
        "backbone": SMALLEST,
        "image_size": SIZE[0],
        "seeds": {"tuned on": TUNED_ON, "figures": [seed for seed in SEEDS if seed != TUNED_ON]},
        "hardware": f"{platform.machine()}, CPU",
        "drawn": [name for name in products if name in DRAWN],
        "rows": rows,
        "products": products,
    }


def _rows(one: Scored, others: list[Scored]) -> list[dict[str, Any]]:
    """One row for each seed."""
    true, best = one.true, float(one.true.max())
    prior = _mean_ranks(others) if others else None
    default = one.settings.index(dict(DEFAULTS[one.detector]))
    labelled = float(np.mean([one.aurocs(1 - half)[int(one.aurocs(half).argmax())] for half in (0, 1)]))
    rows = []
    for seed in SEEDS:
        ranking = one.ranking(seed)
        figures = {"highest": float(true[int(ranking.argmax())]), "labelled": labelled, "default": float(true[default])}
        tied = 0
        if prior is not None:
            figures["prior"] = float(true[int(prior.argmin())])
            setting, tied = one.chosen(seed, prior)
            figures["label-free"] = float(true[setting])
        rows.append(
            {
                "product": one.product,
                "detector": one.detector,
                "seed": seed,
                "best": round(best, 4),
                "tied": tied,
                "settings": len(true),
                "spearman": round(float(spearmanr(ranking, true).statistic), 3),
                "auroc": {name: round(value, 4) for name, value in figures.items()},
                "regret": {name: round(best - value, 4) for name, value in figures.items()},
            }
        )
    return rows


def _mean_ranks(scored: list[Scored]) -> NDArray[np.float64]:
    """[S] mean rank of each setting over products, 1 the best."""
    return np.mean([rankdata(-one.true) for one in scored], axis=0)


def print_table(report: Mapping[str, Any]) -> None:
    """Regrets, by product and over all."""
    names = ("label-free", "highest", "prior", "labelled", "default")
    for seeds in ([TUNED_ON], [seed for seed in SEEDS if seed != TUNED_ON]):
        rows = [row for row in report["rows"] if row["seed"] in seeds]
        print(
            f"\nseed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: regret in image AUROC, mean and worst"
        )
        for detector in dict.fromkeys(row["detector"] for row in rows):
            own = [row for row in rows if row["detector"] == detector]
            for product in dict.fromkeys(row["product"] for row in own):
                of_product = [row for row in own if row["product"] == product]
                cells = [_cell(of_product, name) for name in names]
                print(f"  {detector:9} {product:10} best {of_product[0]['best']:.3f}  " + "  ".join(cells))
            print(f"  {detector:9} {'all':10} {'':10}  " + "  ".join(_cell(own, name) for name in names))


def _cell(rows: list[Mapping[str, Any]], name: str) -> str:
    regrets = [row["regret"][name] for row in rows if name in row["regret"]]
    return f"{name} {np.mean(regrets):.3f} {max(regrets):.3f}" if regrets else f"{name} -"


if __name__ == "__main__":
    main()
