"""Regret of choosing a setting with few labelled images, by the best value and with ties that go to the prior:

    python benchmarks/label_free.py --data ../shared/data --scores outputs/label_free
    python benchmarks/selection.py outputs/label_free/*.npz --out benchmarks/results/selection.json

Input: for each product and detector a file ``<product>_<detector>.npz`` with image scores ``test`` (or ``scores``) [S, N] of S
settings and ``labels`` [N], and beside it ``<product>_<detector>.json`` with the list of the settings.

So many labelled images are drawn at random, as large a share of the good as of the defective ones; the setting is chosen on
these and judged on all others, by image AUROC. The regret is how far it is there below the setting that is best there. Rules:

- best value: the highest image AUROC; what has the same value is chosen from at random;
- ties: what `studies.search.choice` takes, where the prior is the mean rank on the other products (of the same settings);
- prior: its first, without a look at the labels; chance: any setting.

The rule of the ties was fixed before this was run (`benchmarks/tie_rule.py`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from detectors.scoring.metrics import auroc
from detectors.scoring.paired import ScoredImages, draw, metric_replicates
from studies.search.choice import Candidate, Preference, decide
from studies.search.noise import Spread

LABELLED, HALVINGS = (20, 40), 20
RULES = ("best value", "ties", "prior", "chance")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Image scores of one detector's settings on one product."""

    product: str
    detector: str
    settings: list[dict[str, Any]]
    scores: Floats
    """[S, N]"""
    labels: NDArray[np.int8]
    """[N]"""

    @classmethod
    def read(cls, file: Path) -> Scored:
        """The scores of a file."""
        product, _, detector = file.stem.rpartition("_")
        with np.load(file, allow_pickle=False) as stored:
            scores = stored["test" if "test" in stored.files else "scores"].astype(np.float64)
            labels = stored["labels"].astype(np.int8)
        settings = json.loads(file.with_suffix(".json").read_text())
        if scores.shape != (len(settings), len(labels)):
            raise SystemExit(
                f"{file}: scores are {list(scores.shape)} of {len(settings)} settings, {len(labels)} images"
            )
        return cls(product, detector, settings, scores, labels)

    def aurocs(self, chosen: NDArray[np.int64]) -> Floats:
        """Image AUROC of each setting [S] on some of the images."""
        return np.array([auroc(row[chosen], self.labels[chosen]) for row in self.scores])


def main() -> None:
    """Print mean and worst regret of each file and of all, and store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args()
    rows = compare([Scored.read(file) for file in given.files])
    print("\n".join(table(rows)))
    if given.out is not None:
        given.out.write_text(json.dumps({"halvings": HALVINGS, "rows": rows}, indent=1) + "\n")


def compare(everything: Sequence[Scored]) -> list[dict[str, Any]]:
    """A row for each file and number of labelled images, with all regrets of each rule."""
    rows = []
    for one in everything:
        others = [
            other
            for other in everything
            if other.detector == one.detector and other.product != one.product and other.settings == one.settings
        ]
        prior = prior_of(others)
        for labelled in LABELLED:
            if labelled > len(one.labels) // 2:
                continue
            found = defaultdict(list)
            for halving in range(HALVINGS):
                generator = np.random.default_rng((labelled, halving))
                for rule, regret in regrets(one, prior, labelled, generator).items():
                    found[rule].append(round(regret, 5))
            row = {"product": one.product, "detector": one.detector, "labelled": labelled, "regret": dict(found)}
            rows.append(row | {"settings": len(one.settings), "other_products": len(others)})
    return rows


def prior_of(others: Sequence[Scored]) -> Floats | None:
    """Mean rank of each setting [S] over products; None where there is no other product."""
    if not others:
        return None
    return np.mean([rankdata(-one.aurocs(np.arange(len(one.labels)))) for one in others], axis=0)


def regrets(one: Scored, prior: Floats | None, labelled: int, generator: np.random.Generator) -> dict[str, float]:
    """{rule: regret} for one draw of labelled images."""
    chosen = _stratified(one.labels, labelled, generator)
    values, true = one.aurocs(chosen), one.aurocs(np.setdiff1d(np.arange(len(one.labels)), chosen))
    labels = one.labels[chosen]
    counts = draw(labels, seed=int(generator.integers(2**31)))
    candidates = [
        Candidate(
            number=index,
            values=(float(values[index]),),
            preference=Preference(math.inf if prior is None else float(prior[index]), 0.0, 0.0, index),
            spread=Spread(("same",), metric_replicates("image_auroc", ScoredImages(scores[chosen], labels), counts)),
        )
        for index, scores in enumerate(one.scores)
    ]
    choice = decide(candidates, maximize=True)
    assert choice is not None
    best = float(true.max())
    found = {
        "best value": best - float(true[values == values.max()].mean()),
        "ties": best - float(true[choice.trial]),
        "chance": best - float(true.mean()),
        "tied": float(len(choice.tied)),
    }
    return found if prior is None else found | {"prior": best - float(true[prior.argmin()])}


def _stratified(labels: NDArray[np.int8], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `count` images, as large a share of each label, at least two."""
    good = min(count - 2, max(2, round(count * float((labels == 0).mean()))))
    parts = [
        generator.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in ((0, good), (1, count - good))
    ]
    return np.sort(np.concatenate(parts))


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean and worst regret by file, and over all files of a detector."""
    lines = [f"detector | product | labelled | {' | '.join(RULES)} | tied | of"]
    for detector in dict.fromkeys(row["detector"] for row in rows):
        for labelled in LABELLED:
            own = [row for row in rows if row["detector"] == detector and row["labelled"] == labelled]
            lines += [_line(row["product"], [row]) for row in own]
            if len(own) > 1:
                lines.append(_line("all", own))
    return lines


def _line(product: str, rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for rule in RULES:
        values = [value for row in rows for value in row["regret"].get(rule, [])]
        cells.append(f"{fmean(values):.3f} ({max(values):.3f})" if values else "-")
    tied = fmean(value for row in rows for value in row["regret"]["tied"])
    first = rows[0]
    return f"{first['detector']} | {product} | {first['labelled']} | {' | '.join(cells)} | {tied:.1f} | {first['settings']}"


if __name__ == "__main__":
    main()
