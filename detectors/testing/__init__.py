"""What every detector's head promises, as tests for pytest: a head of your own is held to it in three lines.

    from detectors.testing import HeadContract
    from my_package.my_head import MyHead

    class TestMyHead(HeadContract):
        head = MyHead
        settings = {"epochs": 2}  # where the defaults would make a fit long

The tests draw their own images, need neither network nor data, and take half a minute for a head that fits in a moment. They
need pytest. Most fit detectors with a small backbone of random weights on images of 64 x 64 pixels; one fits on drawn parts with
the bundled backbone, and wants their dents found.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("detectors.testing.contract")

from detectors.testing.contract import HeadContract  # noqa: E402 (an assertion that fails then shows its values)

__all__ = ["HeadContract"]
