"""Small pieces of HTML for notebooks; everything that comes from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray
from PIL import Image


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """A table of two columns, names and values."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(shown(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a heading for each column."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(shown(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: Any) -> str:
    """A value as a person reads it: four digits of a number, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def png(rgb: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG", compress_level=4)
    return file.getvalue()


def image(rgb: NDArray[np.uint8], *, width: int) -> str:
    """An ``<img>`` that holds its image, uint8 [H, W, 3], drawn at most `width` pixels wide."""
    data = base64.b64encode(png(rgb)).decode()
    return f'<img src="data:image/png;base64,{data}" style="max-width:{width}px">'


def text(value: str) -> str:
    """A text as HTML shows it, escaped."""
    return str(escape(value))
