"""The page of a report: one HTML file that contains everything it shows.

It opens no network connection, and no text that comes from a study can become markup or code.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from studies.report import phrases
from studies.report.comparison_section import comparison_section
from studies.report.study_section import study_section
from studies.search.view import StudyView
from studies.show import tables

TEMPLATES = Path(__file__).parent / "templates"


def render(views: Sequence[StudyView], *, made: float | None = None) -> str:
    """The page as HTML. Reads what is stored and writes nothing.

    Args:
        views: the studies in the order of the page; with several, a comparison comes first.
        made: when the report was made, in seconds since the epoch; default now.
    """
    ids = [f"s{index}" for index in range(1, len(views) + 1)]
    style, script = _file("report.css"), _file("report.js")
    return (
        _environment()
        .get_template("report.html")
        .render(
            studies=[study_section(view, id) for view, id in zip(views, ids, strict=True)],
            compared=comparison_section(views, ids) if len(views) > 1 else None,
            made=phrases.moment(time.time() if made is None else made),
            # Both are files of this package without end tags. They must not be escaped: the policy allows them by their digest.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=(
                f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
                "base-uri 'none'; form-action 'none'"
            ),
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": tables.shown, "prose": _prose, "breakable": _breakable}
    environment.tests["numeric"] = _is_number
    environment.globals["several"] = phrases.several
    return environment


def _prose(text: str) -> Markup:
    """Text as HTML: escaped, what is in backquotes as code, and no line break before a percent sign."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"(\d) %", r"\1&nbsp;%", marked))  # noqa: S704


def _breakable(text: str) -> Markup:
    """Text as HTML: escaped, with a line break allowed after each underscore."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))  # noqa: S704


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The hash by which a content security policy allows a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
