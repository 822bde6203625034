"""The executors that exist, by name: entry points of the group `GROUP`. One is imported when it is asked for, not before."""

from __future__ import annotations

import difflib
from contextlib import suppress

from detectors.entry_points import load, offered, only_one
from detectors.errors import InputError
from studies.executors.base import Executor, ExecutorOptions, ExecutorPlugin

GROUP = "anomaly_studies.executors"


def names() -> list[str]:
    """All executors, those of this project first. Imports none of them."""
    return list(offered(GROUP))


def executor_plugin(name: str) -> ExecutorPlugin:
    """How to make an executor, and where it runs jobs.

    Raises:
        InputError: there is no such executor, two packages offer it, or the package that adds it is broken.
    """
    known_names = names()
    if name not in known_names:
        near = difflib.get_close_matches(name, known_names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"unknown executor {name!r}; {hint}known: {', '.join(sorted(known_names))}; "
            f"a package adds one by an entry point of the group {GROUP}"
        )
    point = only_one(offered(GROUP)[name], "executor")
    plugin = load(point, "executor")
    if not isinstance(plugin, ExecutorPlugin):
        raise InputError(
            f"executor {name!r} ({point.value}) is no `studies.executors.base.ExecutorPlugin`; mend or uninstall it"
        )
    return plugin


def make_executor(name: str, options: ExecutorOptions) -> Executor:
    """The executor of a name, ready for jobs.

    Raises:
        InputError: as `executor_plugin` does, or it cannot meet the options.
    """
    plugin = executor_plugin(name)
    check_address(name, options.address)
    return plugin.make(options)


def check_address(name: str, address: str | None) -> None:
    """Raise `InputError` where an address is given to an executor that takes none, naming those that take one."""
    if address is None or executor_plugin(name).takes_address:
        return
    takers = []
    for other in names():
        # A package that is broken has no say in what is wrong with another executor.
        with suppress(InputError):
            if executor_plugin(other).takes_address:
                takers.append(other)
    instead = f", or take the executor {' or '.join(takers)}" if takers else ""
    raise InputError(f"executor {name} takes no address; leave it out{instead}")
