"""The tests, and in `tests.helpers` what they share."""

import pytest

# An assertion of a helper or of a contract that fails shows both sides, as a test's does.
pytest.register_assert_rewrite("tests.helpers", "detectors.testing", "studies.testing")
