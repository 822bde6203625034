"""Every command that messages, reports and pages recommend: it exists with its options, and what can be run here is run."""

from __future__ import annotations

import ast
import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.shell import Shell, make_shell, raw_study
from tests.helpers.widgets import write_widgets
from tests.studies.api.conftest import draw_parts
from tests.test_docs import COMMANDS, INLINE, USAGE_ERROR, parse, program

ROOT = Path(__file__).resolve().parents[1]
VALUES = {
    "name": "tiny",
    "config.name": "tiny",
    "self._opened.view.address": "tiny",
    "view.address": "tiny",
    "search.view.address": "tiny",
    "row.study": "tiny",
    "' '.join(dict.fromkeys((row.study for row in comparison.rows)))": "tiny tiny",
    "shlex.quote(file)": "tiny.yaml",
    "test.looser": "0.25",
    "spec": "resnet18",
    "' '.join(missing)": "resnet18",
    "model": "tiny",
    "version.version": "1",
    "study": "tiny",
    "result.file": "tiny.onnx",
    "value_at(base, TRIALS)": "2",
}
"""{what stands between braces in a message: what it is for the study of this test}"""
NAMES = {
    **dict.fromkeys(("NAME", "padim_screw", "patchcore_screw", "cflow_screw", "padim_parts", "parts", "MODEL"), "tiny"),
    **dict.fromkeys(("IMAGE...", "IMAGE", "part.png", "new/"), "part.png"),
    **dict.fromkeys(("DIR", "parts/"), "parts"),
    "FILE.yaml": "tiny.yaml",
    "tiny.onnx": "tiny",  # a detector's file is read in tests.studies.commands.test_export_command
    "line-3": "tiny",
    "patchcore_parts": "tiny",
    "patchcore_parts,patchcore_screw": "tiny",
    "7": "0",
}
"""{what stands for a person's own name or file: what it is here}"""
NOT_RUN = {
    r"(data|weights) fetch": "needs a network; tests.detectors.data.test_fetch has a server of its own",
    r"(serve|ui)\b": "goes on until Ctrl-C; tests.studies.serving starts it",
    r".*--open": "opens a browser",
    r"run .*--demo": "takes minutes; tests.test_cli runs one with small settings",
    r"run .*(--images|--executor|--jobs)": "a long search, or a cluster; tests.studies.api.test_settings has a small one",
    r"run (best|all)_screw": "needs MVTec AD, and hours",
    r"run (padim )?(DIR|parts/)": "a long search; tests.test_first_run and tests.studies.api have small ones",
    r"retrain ": "needs a champion; tests.test_promotion has one",
    r"rollback ": "needs two champions; tests.test_promotion has them",
    r".*(models:/|--version|--to\b)": "needs a champion; tests.test_promotion and tests.test_story have one",
    r"(export|predict) \S+\.onnx|export .*openvino": "needs a file or an extra; test_export_command has them",
    r"run .*--enqueue": "another trial; tests.test_cli has one",
    r"data check$|\w+$(?<!list)(?<!models)(?<!doctor)(?<!clean)": "a command that is spoken of",
}
"""{the beginning of commands that are not run here: why}"""
RUNS = ["--inline", "--device", "cpu", "--offline"]


def texts(path: Path) -> Iterator[str]:
    """Every text of a module but its docstrings, with what is filled in between braces."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed_over = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    passed_over |= {id(inner) for node in joined for inner in ast.walk(node) if inner is not node}
    for node in ast.walk(tree):
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def commands(text: str) -> Iterator[str]:
    """The commands in a message: between backticks, or at its end after a colon."""
    yield from re.findall(r"`study ([^`]*)`", text)
    if "`" not in text and (match := re.search(r"(?:^|: )study ([a-z].*?)(?:  |$)", text)):
        yield match[1]


def filled(command: str) -> list[str]:
    """The words of a command with the values of this test. Raises `KeyError` for a placeholder that `VALUES` lacks."""
    return shlex.split(re.sub(r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", lambda found: VALUES[found[1]], command))


IN_CODE = {
    (str(path.relative_to(ROOT)), command)
    for package in ("studies", "tracking", "detectors")
    for path in (ROOT / package).rglob("*.py")
    for text in texts(path)
    for command in commands(text)
}
FROM_CODE = sorted({tuple(filled(command)) for _, command in IN_CODE})
FROM_PAGES = list(dict.fromkeys(tuple(parameter.values[0]) for parameter in [*COMMANDS, *INLINE]))


def reason_not_to_run(words: tuple[str, ...]) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, " ".join(words))), None)


@pytest.mark.parametrize("words", FROM_CODE, ids=" ".join)
def test_a_command_of_a_message_exists_with_its_options(words: tuple[str, ...]) -> None:
    if len(words) == 1 and words[0] in program().commands:
        return  # a command that is spoken of
    assert parse(list(words))


def test_the_messages_are_found() -> None:
    assert ("studies/report/summary.py", "run {name} --set threshold.rate={test.looser}") in IN_CODE
    assert ("studies/commands/weights.py", "weights fetch {' '.join(missing)}") in IN_CODE
    assert list(commands("try `study shwo x`, or `study show x`")) == ["shwo x", "show x"]
    assert list(commands("detector: study predict x  (or y)")) == ["predict x"]
    with pytest.raises(USAGE_ERROR):
        parse(["shwo", "x"])
    with pytest.raises(KeyError):
        filled("show {something.new}")


def test_every_reason_is_needed() -> None:
    every = [" ".join(words) for words in (*FROM_CODE, *FROM_PAGES)]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, one) for one in every)] == []


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, empty_stores: Path) -> Shell:
    """A folder with the finished study ``tiny``, its model in the registry, its file in another place, and images."""
    folder = tmp_path_factory.mktemp("recommended")
    shell = make_shell(folder / "work", empty_stores)
    images = write_widgets(folder / "images")
    (shell.folder / "files").mkdir()
    path = shell.write(raw_study(images, budget={"trials": 5}))
    (path).rename(shell.folder / "files" / path.name)
    draw_parts(shell.folder / "parts", good=20, dent=6)
    (shell.folder / "part.png").write_bytes((shell.folder / "parts" / "dent" / "00.png").read_bytes())
    ended = shell("run", "files/tiny.yaml", "--trials", 1, *RUNS)
    assert ended.code == 0, ended
    # Any worker may be given a command about a registered model before one that promotes.
    assert shell("promote", "tiny").code in (0, 3)
    # As a reader of the report saves it.
    (shell.folder / "tiny.yaml").write_text((shell.folder / "files" / "tiny.yaml").read_text())
    return shell


def run(shell: Shell, words: tuple[str, ...]) -> None:
    here = [NAMES.get(word, word) for word in words]
    ended = shell(*here, *(RUNS if here[0] == "run" and "--help" not in here else []))
    refused_by_the_gate = here[0] == "promote" and ended.code == 3
    assert ended.code == 0 or refused_by_the_gate, (here, ended)


@pytest.mark.parametrize(
    "words", [words for words in dict.fromkeys([*FROM_CODE, *FROM_PAGES]) if not reason_not_to_run(words)], ids=" ".join
)
def test_a_recommended_command_does_what_it_says(shell: Shell, words: tuple[str, ...]) -> None:
    run(shell, words)


@pytest.mark.parametrize("layout", ["folder", "mvtec"])
def test_the_check_of_damaged_images_lists_them_all(tmp_path: Path, layout: str) -> None:
    shell = make_shell(tmp_path / "work")
    if layout == "folder":
        good = draw_parts(shell.folder / "my parts", good=20, dent=6) / "good"
        words: tuple[object, ...] = ("padim", "--images", "my parts")
    else:
        good = write_widgets(tmp_path / "images") / "widget" / "train" / "good"
        words = (shell.write(raw_study(tmp_path / "images")),)
    damaged = sorted(good.glob("*.png"))[:2]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:60])
    told = shell("run", *words, *RUNS).err
    (command,) = re.findall(r"`study (data check [^`]*)`", told)
    listed = shell(*shlex.split(command), "--json")
    assert listed.code == 2
    assert all(file.name in listed.out for file in damaged), (told, listed)


def test_what_is_not_understood_is_answered_with_commands_that_are(tmp_path: Path) -> None:
    shell = make_shell(tmp_path / "work")
    draw_parts(shell.folder / "all parts" / "a", good=20, dent=6)
    draw_parts(shell.folder / "all parts" / "b", good=20)
    some = [f"all parts/a/good/{name}.png" for name in ("00", "01")]
    for words in (
        ["all parts"],
        ["padim", "all parts/"],
        ["--images", "all parts"],
        some[:1],
        some,
        ["all parts/a", "all parts/b"],
    ):
        told = shell("run", *words)
        assert told.code == 2
        (command,) = re.findall(r"`study (run [^`]*)`", told.err)
        planned = shell(*shlex.split(command), "--dry-run", *RUNS)
        assert planned.code == 0, (words, command, planned)
    listed = shell("data", "check", "all parts")
    (first, second) = re.findall(r"next: study (run .*)", listed.out)
    assert [shlex.split(one) for one in (first, second)] == [["run", f"all parts/{name}"] for name in "ab"]
    assert shell(*shlex.split(first), "--dry-run", *RUNS).code == 0


def test_what_a_report_recommends_is_run_and_starts_no_search(shell: Shell) -> None:
    shown = shell("report", "tiny#1", "--out", "report.html")
    assert shown.code == 0, shown
    page = html.unescape(re.sub(r"</?(?:code|pre|kbd)[^>]*>", "`", (shell.folder / "report.html").read_text()))
    found = [tuple(shlex.split(command)) for command in re.findall(r"`study ([^`\n]*)`", page)]
    assert {words[0] for words in found} >= {"run", "show", "predict", "compare"}
    before = shell("list", "--json").out
    for words in dict.fromkeys(found):
        if "--fresh" not in words:
            run(shell, words)
    assert shell("list", "--json").out.count('"trials": 1') == before.count('"trials": 1')
