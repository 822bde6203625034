"""Which studies the test images tell apart: a paired bootstrap of every pair on the same images, adjusted for their number.

Every pair is tested, not the best row against the others alone: which row is best is itself read from these images, and such a
row is ahead of many others by chance. The adjustment (Holm) keeps the chance that any pair is wrongly told apart below
`LEVEL`, so it holds of the best row too. Of eight detectors that are all alike, with 40 images, the best was "better than chance
would explain" than another in 50 % of 200 made comparisons where each pair was tested by itself, and in 3 % so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from detectors.scoring.metrics import UndefinedMetricError, auroc, bootstrap_aurocs
from detectors.scoring.significance import holm, two_sided_p
from studies.search.view import StudyView
from studies.show.rows import Row
from studies.worker.jobs import ARTIFACTS
from studies.worker.scores import Scores, read_scores

LEVEL = 0.05
"""Largest adjusted p of a pair that is told apart."""
REPLICATES, MOST_REPLICATES, REPLICATES_PER_PAIR = 2000, 20000, 200
"""Of the bootstrap: more for more pairs, because p is no smaller than 2 / replicates and is multiplied by the number of pairs."""
MOST_NAMED = 6
"""Most pairs among the rows behind the best one that are named."""


class Pair(BaseModel):
    """Two rows of a comparison on the same test images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    better: str
    """Label of the row with the higher image AUROC on these images, of equals the one that comes first."""
    worse: str
    difference: float
    """Of their image AUROCs, 0 or more; in a study of several products of the means over these."""
    low: float
    """Lower end of the 95 % bootstrap interval of this pair by itself."""
    high: float
    p: float
    """Two-sided, of this pair by itself."""
    p_adjusted: float
    """Adjusted for all pairs on these images (Holm)."""
    pairs: int
    """Number of these pairs."""
    images: int

    @property
    def told_apart(self) -> bool:
        """Whether the images tell the two apart."""
        return self.p_adjusted < LEVEL


class Group(BaseModel):
    """Rows that were scored on the same test images, and what these images say of their pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: list[str]
    """The best image AUROC first."""
    pairs: list[Pair]
    """Empty where a row has no score of each image, or the images do not define an AUROC."""


def same_images(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of several studies that were scored on the same test images by the same protocol, best first."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.image_auroc is not None:
            groups.setdefault((row.experiment, row.protocol, row.test_digest), []).append(row)
    several = [group for group in groups.values() if len({row.study for row in group}) > 1]
    return [sorted(group, key=lambda row: -(row.image_auroc or 0.0)) for group in several]


def tested_groups(rows: Sequence[Row], views: Sequence[StudyView]) -> list[Group]:
    """Every group of rows on the same images, its pairs tested."""
    by_name = {view.study.study_name: view for view in views}
    return [
        Group(
            labels=[row.label for row in group],
            pairs=_pairs(group, [_scores(by_name[row.study], row) for row in group]),
        )
        for group in same_images(rows)
    ]


def sentences(group: Group) -> Iterator[str]:
    """What the images say of a group of rows."""
    if not group.pairs:
        yield "Whether the difference is due to chance was not tested, because not every study kept the score of each image."
        return
    best, count = group.labels[0], len(group.pairs)
    if count == 1:
        (pair,) = group.pairs
        yield f"{_told(pair)}: " + (
            f"{pair.better} is better by more than chance would explain."
            if pair.told_apart
            else f"these {pair.images} images do not show which of the two is better."
        )
        return
    yield (
        f"{best} has the highest figure on these very images and was picked by it: the highest of {len(group.labels)} is a "
        f"little too good, and some lead is to be expected by luck. So all {count} pairs were compared, and p is adjusted for "
        f"their number (Holm, {LEVEL:.0%} over all of them together)."
    )
    ahead = [pair for pair in group.pairs if pair.better == best]
    yield from (f"{_told(pair)}, adjusted p {pair.p_adjusted:.3f}: {_verdict(pair)}." for pair in ahead)
    others = [pair for pair in group.pairs if pair.better != best]
    apart = sorted((pair for pair in others if pair.told_apart), key=lambda pair: pair.p_adjusted)
    if apart:
        named = ", ".join(f"{pair.better} above {pair.worse}" for pair in apart[:MOST_NAMED])
        more = f" and {len(apart) - MOST_NAMED} more" if len(apart) > MOST_NAMED else ""
        yield f"Of the other {len(others)} pairs these images tell {len(apart)} apart: {named}{more}."
    else:
        yield f"Of the other {len(others)} pairs these images tell none apart."


def _verdict(pair: Pair) -> str:
    return "these images tell them apart" if pair.told_apart else "these images do not tell them apart"


def _told(pair: Pair) -> str:
    return (
        f"{pair.better} against {pair.worse} on the same images: {pair.difference:+.3f} "
        f"(95 % interval {pair.low:+.3f} to {pair.high:+.3f})"
    )


def _pairs(rows: Sequence[Row], scores: Sequence[Mapping[str, Scores]]) -> list[Pair]:
    """All pairs of rows, tested; none where that is not possible."""
    products = list(scores[0])
    names = [
        [image.name for product in products for image in one[product].images]
        for one in scores
        if set(one) == set(products)
    ]
    if not products or len(names) < len(scores) or any(other != names[0] for other in names):
        return []
    count = len(rows) * (len(rows) - 1) // 2
    replicates = min(MOST_REPLICATES, max(REPLICATES, REPLICATES_PER_PAIR * count))
    try:
        figures, drawn = _mean_aurocs(scores, products, replicates)
    except UndefinedMetricError:
        return []
    pairs: list[tuple[Row, Row, float, NDArray[np.float64]]] = []
    for first, second in combinations(range(len(rows)), 2):
        if figures[first] < figures[second]:
            first, second = second, first
        pairs.append((rows[first], rows[second], float(figures[first] - figures[second]), drawn[first] - drawn[second]))
    p_values = [two_sided_p(differences) for *_, differences in pairs]
    return [
        Pair(
            better=better.label,
            worse=worse.label,
            difference=difference,
            low=float(np.quantile(differences, 0.025)),
            high=float(np.quantile(differences, 0.975)),
            p=p,
            p_adjusted=adjusted,
            pairs=count,
            images=len(names[0]),
        )
        for (better, worse, difference, differences), p, adjusted in zip(pairs, p_values, holm(p_values), strict=True)
    ]


def _mean_aurocs(
    scores: Sequence[Mapping[str, Scores]], products: Sequence[str], replicates: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Image AUROC of each row [K] and of its bootstrap replicates [K, B], as means over the products.

    All rows see the same draws of a product's images; those of different products are independent.
    """
    figures, drawn = np.zeros(len(scores)), np.zeros((len(scores), replicates))
    for seed, product in enumerate(products):
        labels, values = scores[0][product].labels, [one[product].values for one in scores]
        figures += np.array([auroc(row, labels) for row in values]) / len(products)
        drawn += bootstrap_aurocs(values, labels, seed=seed, replicates=replicates) / len(products)
    return figures, drawn


def _scores(view: StudyView, row: Row) -> dict[str, Scores]:
    """{product: scores of a row on its test images}, under an empty name of a single product; empty where not all were kept."""
    folder = view.trial_folder(row.trial) if row.protocol == "paper" else view.final_folder(row.trial)
    found = {product: read_scores(folder / ARTIFACTS / product) for product in row.test_sets or ("",)}
    return {product: scores for product, scores in found.items() if scores is not None} if all(found.values()) else {}
