"""The page at ``/``: one file that loads nothing else; its policy allows its script and style by their hashes."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def page() -> str:
    """The page as HTML."""
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def content_security_policy() -> str:
    """The page's policy: it may use its own script and style, images that it makes itself, and this service."""
    text = page()
    script, style = (_hash(re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(match: re.Match[str] | None) -> str:
    """The hash of the text in the first group, in the form of a content security policy."""
    if match is None:
        raise RuntimeError("page.html has no inline script or style")
    return f"'sha256-{base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()}'"
