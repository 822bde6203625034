"""How a head gets its settings: the constructor and `searchable` agree, values are checked, a constructor is optional."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest

from detectors.base import Head, Parameter
from detectors.catalog import built_in_names, head_class
from detectors.errors import InputError
from detectors.heads.padim.head import Padim

RATIO = Parameter("ratio", "float", 0.5, "a share", 0.0, 1.0)
COUNT = Parameter("count", "int", 3, "a number", 1)


class Stub(Head):
    """A head that does nothing; tests derive theirs from it."""

    name = "stub"
    grid = fit = score = None  # type: ignore[assignment]


class Plain(Stub):
    searchable = (RATIO, COUNT)


class Explicit(Stub):
    searchable = (RATIO, COUNT)

    def __init__(self, *, ratio: float = 0.5, count: int = 3) -> None:
        super().__init__()
        self.ratio, self.count = float(ratio), int(count)


BOTH = pytest.mark.parametrize("head_type", [Plain, Explicit])


@BOTH
def test_settings_are_complete_and_in_their_own_types(head_type):
    assert head_type().settings == {"ratio": 0.5, "count": 3}
    settings = head_type(ratio=1, count=2.0).settings
    assert settings == {"ratio": 1.0, "count": 2}
    assert [type(value) for value in settings.values()] == [float, int]


@BOTH
def test_a_value_out_of_range_is_refused_with_its_name(head_type):
    with pytest.raises(InputError, match="ratio: 2 is out of range"):
        head_type(ratio=2)


@BOTH
def test_an_unknown_name_is_a_type_error(head_type):
    with pytest.raises(TypeError, match="stub has no setting rati"):
        head_type(rati=0.5)


@BOTH
def test_settings_are_taken_by_name_only(head_type):
    with pytest.raises(TypeError, match="positional"):
        head_type(0.5)


@BOTH
def test_a_copy_has_the_same_settings(head_type):
    assert copy.deepcopy(head_type(ratio=0.25)).settings == {"ratio": 0.25, "count": 3}


def test_changing_the_settings_that_a_head_returns_does_not_change_the_head():
    head = Plain()
    head.settings["ratio"] = 1.0
    assert head.settings["ratio"] == 0.5


def test_a_head_derived_from_another_may_add_a_setting():
    class Wider(Explicit):
        searchable = (*Explicit.searchable, Parameter("extra", "int", 1, "one more"))

        def __init__(self, *, ratio: float = 0.5, count: int = 3, extra: int = 1) -> None:
            super().__init__(ratio=ratio, count=count)
            self.extra = extra

    head = Wider(count=7, extra=2)
    assert head.settings == {"ratio": 0.5, "count": 7, "extra": 2}
    assert (head.count, head.extra) == (7, 2)


def test_a_constructor_that_takes_any_keyword_is_allowed():
    class Open(Stub):
        searchable = (RATIO, COUNT)

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)

    assert Open(count=4).settings == {"ratio": 0.5, "count": 4}


def a_missing_name(self, *, ratio: float = 0.5) -> None: ...


def a_name_too_many(self, *, ratio: float = 0.5, count: int = 3, colour: str = "red") -> None: ...


def another_default(self, *, ratio: float = 0.25, count: int = 3) -> None: ...


def no_default(self, *, ratio: float, count: int = 3) -> None: ...


def a_default_of_another_type(self, *, ratio: float = 0.5, count: float = 3.0) -> None: ...


def by_position(self, ratio: float = 0.5, count: int = 3) -> None: ...


@pytest.mark.parametrize(
    ("constructor", "message"),
    [
        (a_missing_name, "does not take the searchable count"),
        (a_name_too_many, "takes colour, which is not among"),
        (another_default, r"ratio=0\.25 where searchable has the default 0\.5"),
        (no_default, r"searchable has the default 0\.5"),
        (a_default_of_another_type, r"count=3\.0 where searchable has the default 3"),
        (by_position, r"takes ratio by position"),
    ],
)
def test_a_constructor_that_disagrees_with_searchable_is_refused_when_the_class_is_defined(constructor, message):
    with pytest.raises(TypeError, match=message):
        type("Wrong", (Stub,), {"searchable": (RATIO, COUNT), "__init__": constructor})


def test_a_head_that_adds_a_setting_and_keeps_the_constructor_of_another_is_refused():
    with pytest.raises(TypeError, match=r"Wider\.__init__ does not take the searchable extra"):
        type("Wider", (Padim,), {"searchable": (*Padim.searchable, Parameter("extra", "int", 1, "one more"))})


def test_two_parameters_of_one_name_are_refused():
    with pytest.raises(TypeError, match="the same name"):
        type("Twice", (Stub,), {"searchable": (RATIO, RATIO)})


@pytest.mark.parametrize("name", built_in_names())
def test_the_constructors_of_our_heads_name_every_setting(name):
    arguments = list(inspect.signature(head_class(name)).parameters.values())
    assert {one.name: one.default for one in arguments} == {
        one.name: one.default for one in head_class(name).searchable
    }
    assert {one.kind for one in arguments} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(one.annotation != inspect.Parameter.empty for one in arguments)
