"""Which package may know what: studies -> tracking -> detectors, Optuna in the first alone, MLflow in the second alone."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "detectors": {"optuna", "mlflow", "studies", "tracking"},
    "tracking": {"optuna", "studies"},
    "studies": {"mlflow"},
}
"""{package: top-level modules that it must not import}"""
CODE_RUNNERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Modules whose files run code when they are read."""
OPTIONAL = {"ray", "psycopg", "fastapi", "uvicorn", "multipart", "python_multipart", "prometheus_client", "starlette"}
"""What the extras of pyproject.toml bring: a module that needs one may be absent from an installation without it."""


def sources() -> list[Path]:
    found = sorted(path for package in FORBIDDEN for path in (ROOT / package).rglob("*.py"))
    assert len(found) > 40
    return found


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level module) of every import, those within functions and by `import_module` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value).partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_what_its_package_must_not_know(package):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] == package
        for line, module in imported(ast.parse(path.read_text(encoding="utf-8")))
        if module in FORBIDDEN[package]
    ]
    assert not wrong


def test_nothing_reads_files_that_run_code():
    wrong = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(ROOT)
        wrong += [f"{place}:{line} imports {module}" for line, module in imported(tree) if module in CODE_RUNNERS]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            constants = {
                option.arg: option.value.value for option in node.keywords if isinstance(option.value, ast.Constant)
            }
            if called == "torch.load" and constants.get("weights_only") is not True:
                wrong.append(f"{place}:{node.lineno} torch.load without weights_only=True")
            elif called == "torch.save" or constants.get("allow_pickle", False) is not False:
                wrong.append(f"{place}:{node.lineno} {called} pickles")
    assert not wrong


def test_the_check_sees_every_kind_of_import():
    source = """
        import optuna.trial as t
        from mlflow.entities import Run
        def late():
            import pickle, json
            importlib.import_module("studies.cli")
            __import__("tracking")
    """
    seen = [module for _, module in imported(ast.parse(textwrap.dedent(source)))]
    assert sorted(seen) == ["json", "mlflow", "optuna", "pickle", "studies", "tracking"]


IMPORT_ALL = """
import importlib, pkgutil, sys
package, refused, optional = sys.argv[1], set(sys.argv[2].split()), set(sys.argv[3].split())

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{package} asks for {name}", name=name)

sys.meta_path.insert(0, Refuse())
try:
    importlib.import_module(sorted(refused)[0])
except ModuleNotFoundError:
    pass
else:
    sys.exit("the hook refuses nothing")
top = importlib.import_module(package)
count = 0
for module in pkgutil.walk_packages(top.__path__, package + "."):
    try:
        importlib.import_module(module.name)
        count += 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in optional:
            raise
present = refused & {name.partition(".")[0] for name in sys.modules}
assert not present, present
print(count)
"""


@pytest.mark.parametrize("package", ["detectors", "tracking"])
def test_every_module_imports_where_the_other_side_is_not_installed(package, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IMPORT_ALL,
            package,
            " ".join(FORBIDDEN[package]),
            " ".join(OPTIONAL - FORBIDDEN[package]),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modules = [path for path in (ROOT / package).rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert int(done.stdout.split()[-1]) >= len(modules) - len(OPTIONAL)


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        # What every command needs to start, to print a table and to tell an error.
        (
            ["studies.cli", "studies.commands", "studies.show.tables", "studies.search.outcome"],
            {"torch", "timm", "sklearn", "mlflow"},
        ),
        # What looks at a finished study.
        (
            ["studies.release.locate", "studies.search.view", "studies.show.insight"],
            {"timm", "torchvision", "sklearn", "mlflow"},
        ),
    ],
    ids=["every command", "looking at a study"],
)
def test_commands_do_not_wait_for_what_they_do_not_need(modules, unwanted):
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not unwanted & {name.partition(".")[0] for name in done.stdout.split()}
