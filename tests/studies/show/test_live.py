"""What a person sees while a study runs, on a terminal and in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from studies.search.notices import Notice, Progressed
from studies.show.live import FAILURES, Live, duration
from tests.helpers.bench import Bench, ScriptedExecutor, quality


def make_console(*, terminal: bool, width: int = 200) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def drawn(live: Live, width: int) -> str:
    """The display as it is now."""
    console = make_console(terminal=False, width=width)
    for part in live.display:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def watch(bench: Bench, executor: ScriptedExecutor, *, width: int = 200, **changes: object) -> tuple[list[str], str]:
    """Run a study; the display at each stage, and all that was printed."""
    console, seen = make_console(terminal=True, width=width), []
    with Live(console) as live:

        def listen(notice: Notice) -> None:
            live(notice)
            if isinstance(notice, Progressed):
                seen.append(drawn(live, width))

        bench.run(executor, listener=listen, **changes)
    return seen, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_says_what_runs_and_the_bar_how_far_the_study_is(bench: Bench) -> None:
    seen, printed = watch(
        bench, ScriptedExecutor(), budget={"trials": 3}, constraints={"fps": ">= 0"}, protocol="holdout"
    )
    first, *_, last = seen
    assert "trial 0 · padim · " in first
    assert " · 8+16" in first
    assert "fit" in first
    assert "left" not in first  # nothing to go by yet
    assert "final refit of trial" in last
    assert "3/3 trials" in last
    assert ", 3 feasible, " in last
    assert "best 0." in last
    assert "trials/min" in last
    assert "about" in seen[2] or "almost there" in seen[2]
    assert "continues after" not in printed


def test_a_narrow_terminal_loses_names_but_no_figures(bench: Bench) -> None:
    seen, _ = watch(bench, ScriptedExecutor(), width=80, budget={"trials": 2}, constraints={"fps": ">= 0"})
    assert all(len(line.rstrip()) <= 80 for display in seen for line in display.splitlines())
    assert all(display.count("0:00:0") == 2 for display in seen)  # the times of study and trial are whole
    assert "trial 1 · padim · " in seen[-2]
    assert "2/2 trials" in seen[-1]
    assert len(seen[-1].splitlines()) == 3


def test_constraints_and_trials_of_an_earlier_run_count(bench: Bench) -> None:
    kept = {"constraints": {"fps": ">= 0"}}
    bench.run(budget={"trials": 2}, **kept)
    seen, printed = watch(bench, ScriptedExecutor(), budget={"trials": 3}, **kept)
    assert "continues after 2 trials" in printed
    assert "3/3 trials" in seen[-1]
    assert ", 3 feasible, " in seen[-1]


def test_the_last_failures_stay_in_sight(bench: Bench) -> None:
    def script(job):
        return quality(job) if job.number == 4 else "exception"

    seen, printed = watch(bench, ScriptedExecutor(script), budget={"trials": 1})
    lines = [line for line in seen[-1].splitlines() if line.startswith("  failed: trial")]
    assert [line.split(":")[1] for line in lines] == [f" trial {number}" for number in range(4 - FAILURES, 4)]
    assert all("as the script says" in line for line in lines)
    assert printed.count("fail: exception") == 4


def test_a_file_gets_lines_without_bars(bench: Bench) -> None:
    console = make_console(terminal=False, width=40)
    with Live(console) as live:
        bench.run(listener=live, budget={"trials": 2})
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    # As many as there is to say: a program that reads them must not find half a line, whatever rich thinks of the width.
    assert [line.split()[0] for line in lines] == ["study", "trial", "a", "the", "trial", "search"]
    assert not any("\x1b" in line for line in lines)


def test_quiet_says_nothing(bench: Bench) -> None:
    console = make_console(terminal=True)
    with Live(console, quiet=True) as live:
        bench.run(listener=live, budget={"trials": 1})
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "told"), [(-3, "0 s"), (41.4, "41 s"), (90, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_are_short(seconds: float, told: str) -> None:
    assert duration(seconds) == told
