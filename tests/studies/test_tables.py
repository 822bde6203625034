"""Tables in narrow terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from studies.tables import Fitted

TABLE = Fitted(
    ["trial", "image\nauroc", "pixel\nauroc", "seconds", "layers"],
    [["*0", 0.91, 0.97, 12.3, [4, 8, 16]], ["1", 0.84, 0.96, 3.2, [8, 16]]],
    "trials",
    spare=["pixel\nauroc", "seconds", "layers"],
    elsewhere="see the report",
)


def drawn(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(TABLE)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "gone"), [(80, ""), (34, "pixel_auroc"), (26, "pixel_auroc, seconds")])
def test_what_does_not_fit_is_left_out_aloud(width: int, gone: str) -> None:
    text = drawn(width)
    told = " ".join(text.split())
    assert "0.910" in text
    assert (f"no room for {gone}: see the report" in told) == bool(gone)
    assert ("12.3" in text) == ("seconds" not in gone)
    assert all(len(line) <= width for line in text.splitlines())


def test_what_may_not_go_stays_in_the_narrowest_terminal() -> None:
    assert "no room for pixel_auroc, seconds, layers" in " ".join(drawn(16).split())
    assert "0.910" in drawn(16)
