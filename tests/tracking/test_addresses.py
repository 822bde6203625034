"""No password is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.addresses import without_password


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql+psycopg://ann:secret@db:5432/studies", "postgresql+psycopg://ann:***@db:5432/studies"),
        ("postgresql://ann:se/cr:et@db/studies", "postgresql://ann:***@db/studies"),
        ("postgresql://ann:se@cret@db/studies", "postgresql://ann:***@db/studies"),
        ("postgresql://db/studies?user=ann&password=secret&x=1", "postgresql://db/studies?user=ann&password=***&x=1"),
        ("http://ann:secret@host:5000", "http://ann:***@host:5000"),
        ("sqlite:////tmp/a@b:c.db", "sqlite:////tmp/a@b:c.db"),
        ("request to http://a:b@h/x failed: http://a:b@h", "request to http://a:***@h/x failed: http://a:***@h"),
    ],
)
def test_addresses(address: str, shown: str):
    assert without_password(address) == shown


@given(st.text(st.characters(codec="ascii", exclude_categories=["Z", "C"]), min_size=1))
def test_any_password_is_hidden(password: str):
    assert without_password(f"postgresql://ann:{password}@db/studies") == "postgresql://ann:***@db/studies"
