"""YAML as people write it: safe, no silent duplicate keys, ``1e-4`` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from detectors.errors import InputError

MAX_BYTES = 2**20


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads ``1e-4`` as YAML 1.2 does."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse(text: str, *, name: str) -> Any:
    """The value of a YAML text. Raises `InputError` with name, line and column."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise InputError(f"{place}: {error.problem or 'not YAML'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: not YAML ({str(error).splitlines()[0]})") from error


def read(path: Path) -> Any:
    """The value of a YAML file. Raises `InputError` where it is missing, too large or not YAML."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: too large for a study file (over {MAX_BYTES // 2**20} MB)")
        return parse(path.read_text(encoding="utf-8"), name=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
