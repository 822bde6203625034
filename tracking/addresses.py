"""Addresses of databases and servers, without their passwords."""

from __future__ import annotations

import re

_USER_AND_PASSWORD = re.compile(r"(://[^\s:/@?]*):[^\s]*@")
_PASSWORD_IN_QUERY = re.compile(r"(?i)([?&](?:password|passwd|pwd)=)[^\s&]*")


def without_password(text: str) -> str:
    """An address, or a text that contains addresses, with ``***`` in place of each password."""
    return _PASSWORD_IN_QUERY.sub(r"\1***", _USER_AND_PASSWORD.sub(r"\1:***@", text))
