"""README and docs/: commands exist, study files are valid, links lead somewhere, generated pages are current."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperCommand, TyperGroup

import studies
from studies import cli
from studies.file import reference
from studies.file.config import StudyConfig
from studies.file.library import load
from tests.helpers.shell import make_shell
from tests.helpers.worked_example import EXAMPLE, offer_example

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PYTHON = DOCS / "python.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
USAGE_ERROR = typer.BadParameter.__bases__[0]
SHELLS = ("bash", "")
READ_ONLY = ("study list", "study models", "study weights list", "study doctor")
"""Commands of which every form in a page is run, on an empty folder."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    language, start, lines = None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, start, lines = line[3:], number, []
        else:
            yield Block(page, start, language, "\n".join(lines))
            language = None
    assert language is None, f"{page.name}: a block is not closed"


ALL = [block for page in PAGES for block in blocks(page)]


def study_lines(text: str) -> Iterator[list[str]]:
    """The words of every ``study`` command, comments and environment left out."""
    for line in text.splitlines():
        for command in re.split(r"&&|\|\|", line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0].rpartition("/")[2] == "study":
                yield words[1:]


@cache
def program() -> TyperGroup:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    return group


def parse(words: list[str]) -> TyperCommand:
    """The command; raises `USAGE_ERROR` where it or an option does not exist or lacks something."""
    command, rest = program(), list(words)
    context = typer.Context(command)
    while isinstance(command, TyperGroup):
        if not rest or rest[0] not in command.commands:
            raise USAGE_ERROR(f"no such command: study {' '.join(words)}")
        command, rest = command.commands[rest[0]], rest[1:]
        context = typer.Context(command, parent=context)
    if rest != ["--help"]:
        command.parse_args(context, rest)
    return command


COMMANDS = [
    pytest.param(words, id=f"{block} study {' '.join(words)}"[:80])
    for block in ALL
    if block.language in SHELLS
    for words in study_lines(block.text)
]
INLINE = [
    pytest.param(words, id=f"{page.name} {' '.join(words)}"[:80])
    for page in PAGES
    for code in re.findall(r"(?<!`)`((?:study|STUDY_\w+=\S+ study) [^`]+)`", page.read_text(encoding="utf-8"))
    for words in study_lines(re.sub(r"(\w)\.\.\.", r"\1", code))
]


@pytest.mark.parametrize("words", [*COMMANDS, *INLINE])
def test_every_command_exists_with_its_options(words: list[str]) -> None:
    if "NAME" in words and len(words) == 2 and words[0] == "run":
        words = ["run", "padim_screw"]
    if len(words) == 1 and words[0] in program().commands:
        return  # a command that is spoken of
    assert parse(words)


def test_the_check_of_commands_can_fail() -> None:
    for wrong in (
        ["runn", "x"],
        ["run", "x", "--no-such"],
        ["data", "chek"],
        ["promote"],
        ["run", "x", "--trials", "a"],
    ):
        with pytest.raises(USAGE_ERROR):
            parse(wrong)


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "bash"], ids=str)
def test_shell_blocks_can_be_read(block: Block) -> None:
    assert all(shlex.split(line, comments=True) is not None for line in block.text.replace("\\\n", " ").splitlines())


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "yaml"], ids=str)
def test_study_files_are_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = yaml.safe_load(block.text)
    if "name" not in raw:  # a section of a study file
        whole = {"name": "x", "detector": "padim", "fixed": {"backbone": "resnet18"}, "baselines": [{"n_features": 9}]}
        raw = whole | raw
    if raw["detector"] == "diagonal":
        offer_example(monkeypatch)
    if raw["detector"] == "diagonal.py:Diagonal":
        shutil.copy(EXAMPLE, tmp_path)
    path = tmp_path / f"{raw['name']}.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert isinstance(load(str(path)), StudyConfig)


def test_the_example_is_shown_whole_and_is_short() -> None:
    text = EXAMPLE.read_text()
    (shown,) = (block.text for block in ALL if block.language == "python" and block.text.startswith('"""Diagonal'))
    assert shown == text.rstrip("\n")
    assert len(text.splitlines()) < 80


@pytest.mark.parametrize("block", list(blocks(PYTHON)), ids=str)
def test_python_names_what_there_is(block: Block) -> None:
    """Every call of `studies`, and of what it returns there, has these arguments."""
    returned = {"study": studies.Study, "detector": studies.Predictor, "result": studies.Result}
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in returned:
            assert hasattr(returned[node.value.id], node.attr), ast.unparse(node)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id in {"studies", *returned}:
            owner = returned.get(node.func.value.id, studies)
            called = getattr(owner, node.func.attr)
            first = [] if owner is studies else [None]
            names = {keyword.arg or "": None for keyword in node.keywords}
            inspect.signature(called).bind(*first, *node.args, **names)


def test_the_page_of_the_study_file_is_current() -> None:
    assert (DOCS / "study-file.md").read_text() == reference.text(), (
        "python -m studies.file.reference > docs/study-file.md"
    )


def test_every_key_is_described() -> None:
    empty = re.findall(r"^\| `(\w+)` \|.*\|\s*\|$", reference.text(), re.MULTILINE)
    assert empty == []
    assert "| `coreset_ratio` |" in reference.text()


def test_toml_blocks_are_toml() -> None:
    found = [tomllib.loads(block.text) for block in ALL if block.language == "toml"]
    assert found


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_page_can_be_reached() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in (ROOT / "README.md", DOCS / "README.md")
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
    assert {path for path in DOCS.rglob("*") if path.suffix in (".md", ".png")} <= linked


def test_every_command_and_variable_is_told_of() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in program().commands:
        assert re.search(rf"study [^`\n]*\b{name}\b|`{name}`", text), name
    code = "\n".join(
        path.read_text() for package in ("studies", "tracking", "detectors") for path in (ROOT / package).rglob("*.py")
    )
    own = {"STUDY_UID", "STUDY_DASHBOARD_STORAGE"}  # not for people
    for name in set(re.findall(r"\bSTUDY_[A-Z_]+\b", code)) - own:
        assert name in text, name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_only_reads_runs_as_written(name: str, tmp_path: Path, empty_stores: Path) -> None:
    shell = make_shell(tmp_path / "work", empty_stores)
    assert shell(*name.split()[1:]).code == 0
