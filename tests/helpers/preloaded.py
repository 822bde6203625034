"""The command ``study`` in real processes that begin with its libraries loaded, which saves seconds for each."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

MODULES = [
    "matplotlib.pyplot",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "studies.cli",
    "studies.search.run",
    "studies.executors.inline",
    "studies.executors.local",
    "studies.show.live",
    "studies.show.tables",
    "studies.worker.trial",
    "timm",
    "tracking.projection",
    "tests.helpers.settled",  # last
]
SECONDS = 240


@dataclass(frozen=True)
class Ended:
    """A command that is over."""

    code: int
    """Exit code; minus the signal's number where one ended it."""
    out: str
    err: str


def study(
    arguments: Sequence[object],
    *,
    folder: Path,
    environment: Mapping[str, str | None],
    before: Callable[[], None] | None = None,
) -> Ended:
    """Run ``study ARGUMENTS`` to its end, in `folder` as working folder.

    Args:
        environment: changes to this process's; None leaves a variable out.
        before: called in the new process first; a function of a module, or a partial of one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    words = ["study", *map(str, arguments)]
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    out, err = folder / ".stdout.txt", folder / ".stderr.txt"
    process = context.Process(target=_main, args=(words, str(folder), variables, str(out), str(err), before))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{' '.join(words)} took longer than {SECONDS} s:\n{err.read_text()}")
    told = Ended(process.exitcode, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return told


def _main(
    words: list[str], folder: str, variables: dict[str, str], out: str, err: str, before: Callable[[], None] | None
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = words
    from studies.cli import main

    if before is not None:
        before()
    main()


def quick_patches() -> list[Any]:
    """Patches that give every detector the same speed and draw no curves, which take most of a small trial's time."""
    from tests.helpers.small_models import LATENCY

    return [
        mock.patch("studies.worker.trial.measure_latency", return_value=LATENCY),
        mock.patch("studies.release.timing.measure_latency", return_value=LATENCY),
        mock.patch("studies.worker.plots.write_curves"),
    ]


def quick_trials() -> None:
    """Apply `quick_patches` for as long as this process lives."""
    for patch in quick_patches():
        patch.start()
