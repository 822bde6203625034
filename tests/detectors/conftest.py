"""Fixtures of the tests of `detectors`."""

from __future__ import annotations

from tests.helpers.fetching import site as site  # the tests of fetch ask for it
