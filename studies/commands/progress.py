"""How commands show what they are doing: a status line, a bar, plain lines where the output is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


def remarks_to(console: Console) -> Callable[[str], None]:
    """Prints lines that a person should not miss."""
    return lambda text: console.print(text, style="yellow", markup=False)


@contextmanager
def steps_on(console: Console, first: str = "opening") -> Iterator[Callable[[str], None]]:
    """A status line that is called with each step; in a file each step is a line."""
    with console.status(first) as status:

        def show(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text, markup=False, highlight=False)

        yield show


@contextmanager
def counting_on(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of work that is counted in images; nothing where the output is not a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                for finished in tasks.values():
                    progress.update(finished, visible=False)
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield show
