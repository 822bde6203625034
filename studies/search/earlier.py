"""What earlier studies found, read from the storage for a warm start."""

from __future__ import annotations

from collections.abc import Sequence

from detectors.errors import InputError
from studies.file.encoding import canonical
from studies.file.keys import DETECTOR_KEY
from studies.file.messages import did_you_mean
from studies.home import Home
from studies.search.storage import GENERATION, look_up, stored_names
from studies.search.view import StudyView, TrialView
from studies.search.warm import Earlier, Winner


def read_earlier(home: Home, names: Sequence[str], *, now: str) -> tuple[Earlier, ...]:
    """Stored studies by name, ``NAME`` (the last one) or ``NAME#2``, each once, with what they found.

    Args:
        now: name of the study that starts from them. An earlier one of this name is called by its number.

    Raises:
        InputError: no such study, with those there are.
    """
    found = {}
    for name in names:
        stored = look_up(home, name)
        if stored is None:
            known = stored_names(home)
            raise InputError(
                f"--warm-from {name}: no study of this name was run here; {did_you_mean(name, known)}"
                f"there are: {', '.join(known) or 'none yet'}"
            )
        view = StudyView(stored.study, stored.header, home)
        is_named_alike = stored.header.name == now and GENERATION not in stored.name
        label = f"{stored.name}{GENERATION}1" if is_named_alike else view.address
        found[stored.name] = Earlier(label, tuple(_winners(view, label)))
    return tuple(found.values())


def _winners(view: StudyView, label: str) -> list[Winner]:
    """Every setting of a finished trial that met its constraints: the selected one first, then the best."""
    sign = 1 if view.config.direction == "maximize" else -1

    def rank(trial: TrialView) -> tuple[bool, float, int]:
        return (not trial.selected, -sign * (trial.value or 0.0), trial.number)

    winners: dict[str, Winner] = {}
    for trial in sorted((one for one in view.trials() if one.feasible and one.value is not None), key=rank):
        setting = {DETECTOR_KEY: trial.detector_name, **trial.params}
        winners.setdefault(canonical(setting), Winner(label, trial.number, setting))
    return list(winners.values())
