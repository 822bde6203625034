"""Every key of the study file, from the schema itself: ``python -m studies.file.reference > docs/study-file.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from detectors import catalog
from detectors.base import SMOOTHING_SIGMA, Parameter
from detectors.scoring.evaluation import LOWER_METRICS, METRICS
from studies.file.config import StudyConfig
from studies.file.sections import COST_METRICS

HEAD = """# The study file

One YAML file is one study; `study run FILE.yaml` runs it, and `study run NAME` one of those that come along (`study run --help`).
A key that is not listed here is refused with the ones that are. `--set KEY=VALUE` changes any of them for one run:
`--set data.image_size=320 --set search.n_features.int=[20,100]`.

This page is made from the schema: `python -m studies.file.reference > docs/study-file.md`.
"""
SEARCH = """## What can be searched or fixed

Under `search` a parameter has `{choices: [...]}`, `{int: [low, high]}` or `{float: [low, high]}`, with `log: true` or `step:`
where wanted; under `fixed` it has its value. What is in neither has the default. For every detector:
"""
METRIC_TEXT = """## Metrics

`objectives` and `constraints` take {quality} (of the validation images; with protocol `paper` of all)
and {cost}.
Percentiles of the latency are in milliseconds for one image, `throughput` in images per second at batch 32, `train_seconds`
of the fit alone, from features that are there to a fitted head; work that trials share, such as the order of a coreset,
counts in each of them.
"""
FILLED_IN = {"heads"}
"""Keys that are noted when a study file is read."""
MANY = 3
"""Kinds of a value from which on they are not listed."""
SHARED = (
    Parameter(
        "backbone",
        "choice",
        "required",
        "name of timm, or several joined by `+`; `<name>@random` for seeded random weights; `pixels` for the image itself",
    ),
    Parameter(
        "layers",
        "choice",
        "8+16",
        "strides of its maps, e.g. `[8, 16]`; of pixels out of 1, 2, 4; or a transformer's blocks: `[-1]` is the last",
    ),
    Parameter(
        "image_size", "choice", "data.image_size", "size in pixels that a trial looks at: 256, or `[height, width]`"
    ),
    Parameter(
        "tiles",
        "choice",
        "none",
        "`{side: 320, overlap: 32}` cuts images into squares that are looked at one by one, in pixels of the resized image",
    ),
)


def text() -> str:
    """The page, in Markdown."""
    schema = StudyConfig.model_json_schema()
    sections = [*_sections(schema, schema["$defs"])]
    detectors = [
        f"### {name}\n\n{_table(map(_parameter_row, catalog.head_class(name).searchable), 'parameter')}"
        for name in catalog.built_in_names()
    ]
    page = "\n".join(
        [
            HEAD,
            *sections,
            SEARCH,
            _table(map(_parameter_row, (*SHARED, SMOOTHING_SIGMA)), "parameter"),
            *detectors,
            METRIC_TEXT.format(quality=_names((*METRICS, *LOWER_METRICS)), cost=_names(COST_METRICS)),
        ]
    )
    return page.replace("``", "`")  # from the style of docstrings to that of Markdown


def _written(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that a person writes."""
    return ((name, field) for name, field in schema["properties"].items() if name not in FILLED_IN)


def _sections(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """The file's own keys, then those of each section in it."""
    yield f"## The keys\n\n{_table(_rows(schema, definitions), 'key')}"
    for name, field in _written(schema):
        if (inner := _inner(field, definitions)) is not None:
            yield f"## {name}\n\n{inner['description']}\n\n{_table(_rows(inner, definitions), 'key')}"


def _rows(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", [])
    for name, field in _written(schema):
        if _inner(field, definitions) is not None:
            yield f"`{name}`", "section", "", f"see [{name}](#{name})"
        else:
            default = "required" if name in required else _value(field.get("default"))
            yield f"`{name}`", _kind(field, definitions), default, field.get("description", "")


def _inner(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key leads to."""
    reference = field.get("$ref", "")
    return definitions[reference.rpartition("/")[2]] if reference else None


def _kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A value's type and range in words."""
    if "$ref" in field:
        return "range or choices"
    if field.get("format") == "duration":
        return "duration: `90s`, `30m`, `2h`"
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        kinds = [_kind(option, definitions) for option in field["anyOf"] if option.get("type") != "null"]
        return "value" if len(kinds) > MANY else " or ".join(dict.fromkeys(kinds))
    kind = str(field.get("type", ""))
    if kind == "array":
        entries = field.get("prefixItems") or [field.get("items", {})]
        inner = ", ".join(dict.fromkeys(_kind(entry, definitions) for entry in entries if entry))
        return f"list of {inner}" if inner else "list"
    if kind == "object":
        inner = _kind(values, definitions) if isinstance(values := field.get("additionalProperties"), dict) else ""
        return f"mapping to {inner}" if inner else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}[kind]
    return f"{words}{_range(field)}"


def _range(field: Mapping[str, Any]) -> str:
    bounds = [
        f" {sign} {_plain(field[key])}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    return ",".join(bounds)


def _parameter_row(parameter: Parameter) -> tuple[str, ...]:
    if parameter.kind == "choice":
        kind = ", ".join(f"`{_plain(choice)}`" for choice in parameter.choices)
    else:
        words = "whole number" if parameter.kind == "int" else "number"
        limits = {"minimum": parameter.low, "maximum": parameter.high}
        kind = words + _range({name: limit for name, limit in limits.items() if abs(limit) != float("inf")})
    return f"`{parameter.name}`", kind, _value(parameter.default), parameter.doc


def _value(value: Any) -> str:
    return "" if value is None else f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_plain(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:g}"
    return str(value)


def _table(rows: Iterator[tuple[str, ...]] | map[tuple[str, ...]], first: str) -> str:
    lines = [f"| {first} | values | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(' '.join(cell.split()) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.stdout.write(text())
