"""The command ``study`` within this process: as fast as a function call, with the exit code that a shell would see."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from studies import cli


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


def study(*words: object, typed: str = "") -> Ended:
    """Run ``study WORDS...``; `typed` is what comes from standard input, which is no terminal."""
    out, err = io.StringIO(), io.StringIO()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            mock.patch.object(sys, "argv", ["study", *map(str, words)]),
            mock.patch.object(sys, "stdin", io.StringIO(typed)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    else:
        code = 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue())


def set_home(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Give commands in `folder`, with its ``home`` as STUDY_HOME."""
    for name in ("STUDY_STORAGE", "MLFLOW_TRACKING_URI", "STUDY_WEIGHTS"):
        patch.delenv(name, raising=False)
    patch.setenv("STUDY_HOME", str(folder / "home"))
    patch.chdir(folder)
