"""YAML as people write it, and told plainly where they slip."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import InputError
from studies.file.yaml_file import MAX_BYTES, parse, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2000.0),
        ("5e2", 500.0),
        (".5e1", 5.0),
        ("1.0e-4", 1e-4),
        ("12", 12),
        ("0.25", 0.25),
        ("1e", "1e"),
        ("e4", "e4"),
        ("8+16", "8+16"),
        ("'1e-4'", "1e-4"),
        ("[1e-4, 1e-1]", [1e-4, 1e-1]),
        ("{a: {b: [1, 2]}}", {"a": {"b": [1, 2]}}),
        ("", None),
        ("\ufeffname: a", {"name": "a"}),
    ],
)
def test_values(text, value):
    found = parse(text, name="x")
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_prints_is_a_number(value):
    assert parse(repr(value), name="x") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["f.yaml", "line 3, column 1", "'a' is given twice"]),
        ("x:\n  a: 1\n  a: 1\n", ["line 3, column 3", "'a' is given twice"]),
        ("a: [1, 2\nb: 3\n", ["f.yaml, line"]),
        ("a:\n\t- 1\n", ["line 2", "\\t"]),
        ("{[1, 2]: 3}", ["a key must be a plain word"]),
        ("? {a: 1}\n: 2\n", ["a key must be a plain word"]),
        ("~: 1", ["a key must be a plain word"]),
        ("a: !!python/object/apply:os.system ['true']", ["f.yaml, line 1", "python/object"]),
        ("a: !mine 3", ["f.yaml, line 1", "!mine"]),
        ("a: 2024-99-99", ["f.yaml", "not YAML", "month"]),
        ("a: \x01", ["f.yaml", "not YAML"]),
        ("a: *nobody", ["f.yaml", "nobody"]),
        ("a: &a [*a]", ["f.yaml", "recursive"]),
        ("--- 1\n--- 2\n", ["f.yaml", "document"]),
        ("[" * 5000, ["f.yaml", "not YAML"]),
        ("a: " + "9" * 5000, ["f.yaml", "not YAML"]),
    ],
)
def test_a_slip_is_one_line_with_its_place(text, words):
    with pytest.raises(InputError) as caught:
        parse(text, name="f.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text("name: Prüfung\n", encoding="utf-8")
    assert read(path) == {"name": "Prüfung"}


def test_a_file_is_named_with_the_line_of_its_slip(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(InputError, match=r"study\.yaml, line 2, column 1: the key 'name' is given twice"):
        read(path)


@pytest.mark.parametrize("case", ["missing", "folder", "latin-1", "large"])
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, case):
    path = tmp_path / "study.yaml"
    reason = {
        "missing": "No such file",
        "folder": "Is a directory",
        "latin-1": "not UTF-8",
        "large": "too large for a study file",
    }[case]
    if case == "folder":
        path.mkdir()
    elif case == "latin-1":
        path.write_bytes("name: Prüfung".encode("latin-1"))
    elif case == "large":
        path.write_bytes(b"# " + b"x" * MAX_BYTES)
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert reason in message
    assert "\n" not in message
