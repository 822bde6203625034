"""What is wrong with a study file, in one line that names the key, the value and what would be valid."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from detectors.errors import InputError

UNION_BRANCHES = ("bool", "int", "float", "str")
"""Names that pydantic adds to the place of an error where a value may be of several types."""
Place = tuple[str | int, ...]
"""The keys and list indices that lead to a value in the file."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """``did you mean padim? `` (with the blank) for the most similar known name; empty where none is similar."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def check_name(name: str, known: Sequence[str], kind: str) -> None:
    """Raise `InputError` for a name that is not among the known ones.

    Args:
        kind: what the name stands for, such as ``metric``.
    """
    if name not in known:
        raise InputError(f"unknown {kind} {name!r}; {did_you_mean(name, known)}known: {', '.join(known)}")


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put the place in the file ahead of the message of a `ValueError` that is raised within the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's errors in one line; unknown keys come first, for they explain the others.

    Args:
        model: what was validated; it tells which keys are known where an unknown one stands.
    """
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    same = _same_value(problems)
    first = same[0]
    key = ".".join(str(part) for part in _place(first["loc"]))
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1], model)
        message = f"unknown key {key!r}; {did_you_mean(str(first['loc'][-1]), known)}known here: {', '.join(known)}"
        more = len({problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"}) - 1
        return message + (f" (and {more} more)" if more else "")
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    wanted = dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in same)
    wish = f"give {' or '.join(wanted)}" if len(wanted) > 1 else first["msg"]
    return f"{key}: {reprlib.repr(first['input'])} is not valid: {wish}"


def _same_value(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """The errors about the first one's value.

    A value that fits no branch of a union has one for each branch: those of the branches that got furthest into it.
    """
    place = _place(problems[0]["loc"])
    same = [problem for problem in problems if _place(problem["loc"])[: len(place)] == place]
    deepest = max(len(_place(problem["loc"])) for problem in same)
    return [problem for problem in same if len(_place(problem["loc"])) == deepest]


def _place(loc: Place) -> Place:
    """The keys that lead to an error, without the branches of unions, which mean nothing to a person."""
    # In search.<parameter>.int and .float these words are keys.
    keys = loc[:3] if loc[:1] == ("search",) else loc[:1]
    return keys + tuple(part for part in loc[len(keys) :] if not (part in UNION_BRANCHES or "[" in str(part)))


def _keys_at(place: Place, model: type[BaseModel]) -> list[str]:
    """The keys that the section at this place has."""
    annotation: Any = model
    for part in place:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif _is_section(annotation) and (field := annotation.model_fields.get(str(part))) is not None:
            annotation = field.annotation
        if _is_section(annotation):
            model = annotation
    return sorted(model.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
