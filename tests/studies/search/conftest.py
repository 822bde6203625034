"""Of all tests of the search: nothing of a prior that one of them has put in the stored one's place is left to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from studies.search import candidates


@pytest.fixture(autouse=True)
def places_of_this_prior() -> Iterator[None]:
    """The places of settings are looked up anew, before a test and after it."""
    place = candidates._place  # some tests put another in its place
    place.cache_clear()
    yield
    place.cache_clear()
