"""Make ``studies/search/portfolio.json``, the prior, from stored runs, and check it with each product left out:

``python benchmarks/portfolio.py [--out studies/search/portfolio.json]``

Sources: ``results/label_free.json`` (the same settings of some detectors on every product) where it is there, and for the other
detectors what `study run --json` left in ``results/<detector>_<data>.json``. Two steps, for not every product has every
detector:

- within a detector, settings are ordered by their mean rank over the products, among the settings of that detector, by image
  AUROC. One that was tried on a single product is left out;
- between detectors, that rank becomes a place among all detectors: a setting that is ahead of a share q of its detector's
  settings stands where such a setting stood in the products on which several detectors were tried, on average.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from detectors.catalog import built_in_names
from detectors.files import write_text

RESULTS = Path(__file__).parent / "results"
OUT = Path(__file__).parents[1] / "studies" / "search" / "portfolio.json"
VERSION = 1
LEAST_PRODUCTS = 2

Key = tuple[str, str]
"""Detector and setting, the latter as canonical JSON."""
Pool = dict[Key, float]
"""Image AUROC of each setting on one product."""


def main() -> None:
    """Write the portfolio and print the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    given = parser.parse_args()
    pools, searched = read_pools(given.results), read_searched(given.results)
    made = portfolio(pools, searched)
    write_text(given.out, written(made))
    print(f"{given.out}: {len(made['entries'])} settings from {', '.join(pools)}")
    for line in check(pools):
        print(line)


def read_pools(results: Path) -> dict[str, Pool]:
    """{product: its settings}. The same product in two sources is two products: they were scored on other images.

    All settings of a detector on all products are better evidence than what searches happened to try. The drawn products of
    `benchmarks.objects` are left out: they try a method, and what finds the defects that were drawn into them is no evidence of
    what real parts need.
    """
    pools: dict[str, Pool] = {}
    file = results / "label_free.json"
    if file.is_file():
        report = json.loads(file.read_text())
        for product, detectors in report["products"].items():
            if product not in report["drawn"]:
                pools[product] = {
                    key(name, one["setting"]): float(one["image_auroc"])
                    for name, rows in detectors.items()
                    for one in rows
                }
    compared = {name for pool in pools.values() for name, _ in pool}
    for product, pool in read_searched(results).items():
        kept = {one: value for one, value in pool.items() if one[0] not in compared}
        if kept:
            pools[product] = kept
    return pools


def read_searched(results: Path) -> dict[str, Pool]:
    """{product: the settings that searches with all detectors tried on it, by image AUROC on validation}"""
    pools: dict[str, Pool] = {}
    for path in sorted(results.glob("*_*.json")):
        study = json.loads(path.read_text())
        config = study.get("config", {})
        if config.get("detector") not in built_in_names() or config["protocol"] != "holdout":
            continue
        pool = pools.setdefault(f"{study['experiment']} (searched)", {})
        for trial in study["trials"]:
            if trial["state"] == "COMPLETE" and "val/image_auroc" in trial["metrics"]:
                pool[key(config["detector"], trial["params"])] = float(trial["metrics"]["val/image_auroc"])
    return pools


def key(detector: str, setting: Mapping[str, Any]) -> Key:
    """A setting as a key; numbers rounded to six digits."""
    rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in setting.items()}
    return detector, json.dumps(rounded, sort_keys=True)


def ranks(pool: Pool) -> dict[Key, float]:
    """Rank of each setting, from 0 for the best to 1; equals share theirs, and a single one is in the middle."""
    if len(pool) == 1:
        return dict.fromkeys(pool, 0.5)
    places = rankdata([-value for value in pool.values()]) - 1
    return dict(zip(pool, (places / (len(pool) - 1)).tolist(), strict=True))


def mean_ranks(pools: Iterable[Pool], detector: str) -> dict[Key, tuple[float, int]]:
    """{setting of a detector: mean rank among that detector's settings, and number of products}, the best first."""
    found: defaultdict[Key, list[float]] = defaultdict(list)
    for pool in pools:
        for one, rank in ranks({one: value for one, value in pool.items() if one[0] == detector}).items():
            found[one].append(rank)
    means = {one: (fmean(values), len(values)) for one, values in found.items()}
    return dict(sorted(means.items(), key=lambda item: (item[1][0], item[0])))


def among_all(rank: float, detector: str, pools: Iterable[Pool]) -> float:
    """The place among all detectors' settings, 0 to 1, of a rank within one; that rank itself where none were compared."""
    places = []
    for pool in pools:
        own = [place for one, place in ranks(pool).items() if one[0] == detector]
        if own and len({name for name, _ in pool}) > 1:
            places.append(float(np.quantile(own, rank)))
    return fmean(places) if places else rank


def portfolio(pools: Mapping[str, Pool], searched: Mapping[str, Pool]) -> dict[str, Any]:
    """What is stored.

    Args:
        pools: what each detector's settings are ordered by.
        searched: what all detectors are compared by.
    """
    compared = [*searched.values(), *pools.values()]
    entries = [
        {
            "detector": detector,
            "setting": json.loads(one[1]),
            "mean_rank": round(among_all(rank, detector, compared), 4),
            "products": count,
        }
        for detector in sorted({name for pool in pools.values() for name, _ in pool})
        for one, (rank, count) in mean_ranks(pools.values(), detector).items()
        if count >= LEAST_PRODUCTS
    ]
    entries.sort(key=lambda entry: float(entry["mean_rank"]))
    return {"version": VERSION, "products": list(pools), "entries": entries}


def written(made: Mapping[str, Any]) -> str:
    """As JSON with a line for each setting."""
    entries = ",\n".join(f"  {json.dumps(entry)}" for entry in made["entries"])
    head = json.dumps({name: value for name, value in made.items() if name != "entries"}, indent=1)[:-2]
    return f'{head},\n "entries": [\n{entries}\n ]\n}}\n'


def check(pools: Mapping[str, Pool]) -> Iterable[str]:
    """For each product and detector: how far the setting that the other products put first is below the best one."""
    yield "left out | detector | regret of the prior's first | of chance | best | settings"
    regrets: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for product, pool in pools.items():
        for detector in sorted({name for name, _ in pool}):
            others = mean_ranks((other for name, other in pools.items() if name != product), detector)
            shared = [one for one in others if one in pool]
            if len(shared) < 2:
                continue
            best = max(pool[one] for one in shared)
            regret, chance = best - pool[shared[0]], best - fmean(pool[one] for one in shared)
            regrets[detector].append((regret, chance))
            yield f"{product} | {detector} | {regret:.3f} | {chance:.3f} | {best:.3f} | {len(shared)}"
    for detector, pairs in regrets.items():
        mean, worst, chance = fmean(a for a, _ in pairs), max(a for a, _ in pairs), fmean(b for _, b in pairs)
        yield f"all | {detector} | mean {mean:.3f}, worst {worst:.3f} | mean {chance:.3f}"


if __name__ == "__main__":
    main()
