"""The executors that exist, by name: entry points of the group `GROUP`. One is imported when it is asked for, not before."""

from __future__ import annotations

import difflib

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
    if options.address is not None and not plugin.takes_address:
        takers = [other for other in names() if executor_plugin(other).takes_address]
        raise InputError(f"executor {name} takes no address; leave it out, or give --executor {' or '.join(takers)}")
    return plugin.make(options)
