"""How wide a tie between settings should be, by simulation: ``python benchmarks/tie_rule.py --out FILE``

Settings have true image AUROCs and are ranked by a few simulated images; a prior knows their order more or less. Each rule takes,
among the settings that tie with the leader, the one first in the prior; its regret is how far the true AUROC of that one is below
the best. No real image is used: the factor `studies.search.choice.WITHIN` was set by this before any was looked at.

A case is (share of the difficulty of an image that all settings share, spread of the true AUROCs, correlation of the prior with
them, good + defective images). The prior that was measured on six products loses about half of what chance loses (DESIGN: .048 of
.090), as a correlation of about 0.5 does here.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from detectors.scoring.paired import ScoredImages, draw, metric_replicates, metric_value

SHARED, SPREADS, PRIORS = (0.5, 0.8), (0.06, 0.12), (0.0, 0.5, 0.7)
IMAGES = ((10, 10), (20, 20), (40, 60))
SETTINGS, BEST = 25, 0.95
FACTORS = (0.25, 0.5, 1.0, 1.645)
"""Standard errors of the difference to the leader; the last is a one-sided test at 95 %."""
SIMULTANEOUS = "all at 95 %"
"""The test of the best of all settings at once (Hsu 1981), by the distribution of the largest lead in standard errors."""
Floats = NDArray[np.float64]


def main() -> None:
    """Print a line for each case, and store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args()
    rows = []
    for shared, spread, prior, images in itertools.product(SHARED, SPREADS, PRIORS, IMAGES):
        generator = np.random.default_rng(0)
        found = defaultdict(list)
        for _ in range(given.repetitions):
            for rule, regret in one(generator, shared, spread, prior, images).items():
                found[rule].append(regret)
        means = {rule: round(fmean(values), 4) for rule, values in found.items()}
        rows.append({"shared": shared, "spread": spread, "prior": prior, "images": list(images), "regret": means})
        print(shared, spread, prior, images, means, flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps({"repetitions": given.repetitions, "rows": rows}, indent=1) + "\n")


def one(
    generator: np.random.Generator, shared: float, spread: float, prior: float, images: tuple[int, int]
) -> dict[str, float]:
    """{rule: regret} in one simulated study."""
    true = np.clip(BEST - np.abs(generator.normal(0, spread, SETTINGS)), 0.5, 0.999)
    labels = np.repeat(np.array([0, 1], dtype=np.int8), images)
    noise = np.sqrt(1 - shared) * generator.normal(size=(SETTINGS, len(labels)))
    scores = np.sqrt(shared) * generator.normal(size=len(labels)) + noise
    scores += np.sqrt(2) * norm.ppf(true)[:, None] * labels
    level = (true - true.mean()) / true.std()
    known = prior * level + np.sqrt(1 - prior**2) * generator.normal(size=SETTINGS)
    counts = draw(labels, seed=int(generator.integers(2**31)))
    sets = [ScoredImages(row, labels) for row in scores]
    values = np.array([metric_value("image_auroc", each) for each in sets])
    replicates = np.stack([metric_replicates("image_auroc", each, counts) for each in sets])

    def regret(tied: NDArray[np.bool_]) -> float:
        return float(true.max() - true[np.flatnonzero(tied)[np.argmax(known[tied])]])

    leader = int(values.argmax())
    lead, error = values[leader] - values, (replicates[leader] - replicates).std(axis=1)
    regrets = {"best value": float(true.max() - true[values == values.max()].mean())}
    regrets |= {f"{factor} standard errors": regret(lead <= factor * error + 1e-12) for factor in FACTORS}
    regrets[SIMULTANEOUS] = regret(_not_refuted(values, replicates))
    regrets["prior's first"] = regret(np.ones(SETTINGS, dtype=bool))
    regrets["chance"] = float(true.max() - true.mean())
    return regrets


def _not_refuted(values: Floats, replicates: Floats) -> NDArray[np.bool_]:
    """Settings [K] whose largest deficit to any other, in standard errors, is within the 95 % quantile of what chance gives."""
    kept = np.zeros(len(values), dtype=bool)
    for index in range(len(values)):
        differences, deficit = replicates - replicates[index], values - values[index]
        error = differences.std(axis=1)
        other = error > 1e-9
        if not other.any():
            kept[index] = True
            continue
        chance = ((differences - deficit[:, None])[other] / error[other, None]).max(axis=0)
        kept[index] = (deficit[other] / error[other]).max() <= np.quantile(chance, 0.95)
    return kept


if __name__ == "__main__":
    main()
