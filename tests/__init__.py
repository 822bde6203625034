"""The tests, and in `tests.helpers` what they share."""

import pytest

pytest.register_assert_rewrite("tests.helpers")  # a helper's assertion that fails shows both sides, as a test's does
