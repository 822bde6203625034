"""The tables of all detectors in README.md, from what `study run --json` printed: ``python benchmarks/table.py screw carpet``.

``--keep FILE...`` stores such files in results/ under the study's name, without paths of the machine they were made on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectors.catalog import built_in_names, head_class

RESULTS = Path(__file__).parent / "results"
HEADER = (
    "| detector (trials) | layers | validation | image AUROC on test (95 % interval) | pixel AUROC | AUPRO | train, s | FPS |",
    "|---|---|---|---|---|---|---|---|",
)


def main() -> None:
    """Print the tables of the data sets named, or store results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["screw", "carpet"], help="last part of the results' names")
    parser.add_argument("--keep", nargs="+", type=Path, default=[], metavar="FILE")
    given = parser.parse_args()
    for file in given.keep:
        print(keep(file))
    for data in [] if given.keep else given.data:
        print("\n".join([*HEADER, *rows(data), ""]))


def rows(data: str) -> Iterator[str]:
    """A line for each detector with a stored result of this data set, the best on test first."""
    found = []
    for name in built_in_names():
        # PaDiM's second run went on from the first.
        file = next(
            (f for f in (RESULTS / f"{name}_{data}_40.json", RESULTS / f"{name}_{data}.json") if f.is_file()), None
        )
        if file is not None:
            found.append(json.loads(file.read_text()))
    yield from map(row, sorted(found, key=lambda study: -selected(study)["test_metrics"]["test/image_auroc"]))


def selected(study: dict[str, Any]) -> dict[str, Any]:
    """The selected trial."""
    return next(trial for trial in study["trials"] if trial["selected"])


def row(study: dict[str, Any]) -> str:
    """One line of the table."""
    trial = selected(study)
    test, search, params = trial["test_metrics"], trial["metrics"], trial["params"]
    layers = "+".join(map(str, params["layers"]))
    cells = (
        f"{head_class(study['config']['detector']).title} ({sum(t['state'] in ('COMPLETE', 'PRUNED') for t in study['trials'])})",
        f"pixels {layers}" if params["backbone"] == "pixels" else layers,
        f"{search['val/image_auroc']:.3f}",
        f"**{test['test/image_auroc']:.3f}** ({test['test/image_auroc_low']:.3f} to {test['test/image_auroc_high']:.3f})",
        f"{test['test/pixel_auroc']:.3f}",
        f"{test['test/pixel_aupro']:.3f}",
        f"{search['train_seconds']:.1f}",
        f"{search['fps']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def keep(file: Path) -> Path:
    """Store a result; its folders are told from the study's home on, its images by the last part alone."""
    study = json.loads(file.read_text())
    for trial in study["trials"]:
        for key in ("folder", "detector"):
            trial[key] = _from_home(trial[key])
        trial["detectors"] = {name: _from_home(path) for name, path in (trial["detectors"] or {}).items()}
    if study.get("usable"):
        study["usable"]["detectors"] = {name: _from_home(path) for name, path in study["usable"]["detectors"].items()}
    if root := study["config"]["data"].get("root"):
        study["config"]["data"]["root"] = Path(root).name
    path = RESULTS / f"{study['name'].partition('#')[0]}.json"
    path.write_text(json.dumps(study, indent=1))
    return path


def _from_home(path: str | None) -> str | None:
    return path and path[path.rindex("/trials/") + 1 :] if path and "/trials/" in path else path


if __name__ == "__main__":
    main()
