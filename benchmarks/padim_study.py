"""What a PaDiM study costs, trial by trial: cold and warm, with and without feature extraction, speed measurement apart.

    python benchmarks/padim_study.py --trials 20 --out benchmarks/results/padim_study.json

Runs `study run padim_screw --offline` twice in one new STUDY_HOME: first with an empty feature store, then a second study
(--fresh) that finds the features there. A trial's cost is the time from its ask to the next trial's ask, so the driver,
Optuna and MLflow are in it; the FPS protocol runs alone on the machine by design and is taken off. Needs MVTEC_AD_ROOT.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPEED = "speed"
EXTRACTION = ("features (train)", "features (validation)")


def run_study(home: Path, trials: int, extra: list[str]) -> tuple[float, dict[str, Any]]:
    """Wall seconds of the command, and the study as JSON."""
    command = [
        sys.executable,
        "-m",
        "studies.cli",
        "run",
        "padim_screw",
        "--set",
        "search.backbone.choices=[tf_efficientnet_lite0]",
        "--offline",
        "--json",
        "--trials",
        str(trials),
    ]
    unlimited = ["--set", "budget.stagnation=null"]
    begin = time.perf_counter()
    done = subprocess.run(
        [*command, *unlimited, *extra], env={**os.environ, "STUDY_HOME": str(home)}, stdout=subprocess.PIPE, check=True
    )
    return time.perf_counter() - begin, json.loads(done.stdout)


def costs(study: dict[str, Any]) -> list[dict[str, float]]:
    """Seconds of every trial but the last, whose successor's ask is not there to end it."""
    trials = [trial for trial in study["trials"] if trial["state"] == "COMPLETE"]
    rows = []
    for trial, following in itertools.pairwise(trials):
        stages = trial["stages"]
        whole = following["asked"] - trial["asked"]
        rows.append(
            {
                "whole": whole,
                "speed": stages[SPEED],
                "extraction": sum(stages.get(name, 0.0) for name in EXTRACTION),
                "fit": stages["fit"],
                "without speed": whole - stages[SPEED],
            }
        )
    return rows


def describe(name: str, wall: float, study: dict[str, Any]) -> dict[str, Any]:
    rows = costs(study)
    warm = [row["without speed"] for row in rows if row["extraction"] < 1.0]
    cold = [row["without speed"] for row in rows if row["extraction"] >= 1.0]
    speed = [row["speed"] for row in rows]
    summary = {
        "study": name,
        "trials": len(study["trials"]),
        "wall_seconds": round(wall, 1),
        "cold_trials": [round(value, 2) for value in cold],
        "warm_median": round(statistics.median(warm), 2) if warm else None,
        "warm_max": round(max(warm), 2) if warm else None,
        "fit_median": round(statistics.median(row["fit"] for row in rows), 2),
        "speed_median": round(statistics.median(speed), 2),
        "speed_sum": round(sum(speed), 1),
    }
    for key, value in summary.items():
        print(f"  {key:>14}: {value}")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first = describe("features computed", *run_study(home, arguments.trials, []))
        second = describe("features stored", *run_study(home, arguments.trials, ["--fresh"]))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine, "studies": [first, second]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
