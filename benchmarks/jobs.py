"""Trials per minute of a PaDiM study: one trial at a time with one thread, with all threads, and two trials at a time.

    python benchmarks/jobs.py --trials 16 --out benchmarks/results/jobs.json

Every way runs `study run padim_screw --offline` with one backbone (same seed, hence the same settings as long as the trials end
in the same order) in a STUDY_HOME of its own whose features are there already. The FPS protocol runs alone on the machine by
design: it makes other trials wait, as it does for a person. Counted from the first ask to the last tell. Needs MVTEC_AD_ROOT.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

WAYS = {"1 job, 1 thread": (1, 1), "1 job, all threads": (1, None), "2 jobs": (2, None)}


def run_study(home: Path, *, trials: int, jobs: int, cores: int | None) -> dict[str, Any]:
    """The study as JSON.

    Args:
        cores: that the processes may use; None for all.
    """
    command = [sys.executable, "-m", "studies.cli", "run", "padim_screw", "--offline", "--json", "--device", "cpu"]
    command += ["--set", "search.backbone.choices=[tf_efficientnet_lite0]"]
    command += ["--trials", str(trials), "--jobs", str(jobs), "--set", "budget.stagnation=null"]
    # Slower on fewer threads, a trial must not miss the constraint: all ways shall search alike.
    command += ["--set", "constraints={}"]
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:cores])
    try:
        done = subprocess.run(command, env={**os.environ, "STUDY_HOME": str(home)}, stdout=subprocess.PIPE, check=True)
    finally:
        os.sched_setaffinity(0, allowed)
    return json.loads(done.stdout)


def per_minute(study: dict[str, Any]) -> dict[str, float]:
    """Trials, their seconds, and how many a minute."""
    trials = [trial for trial in study["trials"] if trial["told"] is not None]
    seconds = max(trial["told"] for trial in trials) - min(trial["asked"] for trial in trials)
    per_minute = 60 * len(trials) / seconds
    return {"trials": len(trials), "seconds": round(seconds, 1), "per_minute": round(per_minute, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        run_study(first, trials=1, jobs=1, cores=None)
        for name, (jobs, cores) in WAYS.items():
            home = Path(folder) / name.replace(" ", "-").replace(",", "")
            shutil.copytree(first / "features", home / "features")
            found[name] = per_minute(run_study(home, trials=arguments.trials, jobs=jobs, cores=cores))
            print(f"{name:>20}: {found[name]}", flush=True)
    if arguments.out:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        content = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "ways": found}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
