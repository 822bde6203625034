"""Which package may know what: studies -> tracking -> detectors, Optuna in the first alone, MLflow in the second alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture_debts import CIRCLES, LATE, LONG_CLASSES, LONG_MODULES, UPWARDS
from tests.helpers.import_graph import PICTURE, arrows, circles, drawn_picture, imports, imports_of, mermaid, modules

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


FLOORS: dict[str, list[list[str]]] = {
    "detectors": [
        ["errors", "own_version", "while_inside", "working_memory"],
        ["process_state"],
        ["precision", "files", "data", "entry_points"],
        ["scoring", "backbones", "head_texts", "tiles"],
        ["features"],
        ["embedding", "base"],
        ["detector", "flows", "training", "head_files"],
        ["graphs", "committee"],
        ["heads"],
        ["catalog"],
        ["runtime"],
        ["testing"],
    ],
    "tracking": [
        ["addresses", "interrupts", "mlflow_settings", "moved", "records"],
        ["patience", "audit"],
        ["store"],
        ["views", "pyfunc", "figures"],
        ["packing"],
        ["model", "projection"],
        ["registered_models"],
        ["registry"],
    ],
    "studies": [
        ["home"],
        ["file"],
        ["worker"],
        ["executors"],
        ["testing", "search"],
        ["show", "release"],
        ["report", "serving", "upkeep"],
        ["api"],
        ["commands"],
        ["cli"],
    ],
}
"""{package: its rooms (folders and modules), the lowest floor first}. A room imports from lower floors and lower packages
only, never from its own floor's other rooms."""
LONGEST_MODULE, LONGEST_CLASS = 500, 300
"""Lines."""
LIGHTNING = "imports Lightning, which takes seconds; only a training needs it"
FREIA = "imports FrEIA, which takes a second; only fresh flows need it"
WORKER = "what a worker needs; the driver, which hands out the work, does not wait for it"
HEAVY: dict[str, dict[str, str]] = {
    "studies/commands/run_words.py": {"detectors.data.images": "imports numpy and Pillow, which the help does without"},
    "detectors/backbones/hub.py": {
        "huggingface_hub": "reads its environment when it is imported, which must be after `--offline` was",
    },
    "detectors/backbones/architecture.py": {"timm": "takes seconds; those that come along need none of it"},
    "detectors/backbones/pyramid.py": {
        "timm": "takes seconds; `pixels` and whoever only looks at a study need none of it"
    },
    "detectors/backbones/weights.py": {
        "huggingface_hub": "reads its environment when it is imported, which must be after `--offline` was",
        "timm": "takes seconds; needed only where a network is looked up",
    },
    "detectors/heads/cflow/head.py": {"detectors.flows.coupling": FREIA, "detectors.heads.cflow.training": LIGHTNING},
    "detectors/heads/cutpaste/head.py": {"detectors.heads.cutpaste.training": LIGHTNING},
    "detectors/heads/cutpaste/network.py": {"timm": "takes seconds; for whole networks alone"},
    "detectors/heads/cutpaste/second_stage.py": {"sklearn": "takes a second; the fit alone needs it"},
    "detectors/heads/fastflow/head.py": {
        "detectors.flows.convolutional": FREIA,
        "detectors.heads.fastflow.training": LIGHTNING,
    },
    "detectors/heads/ganomaly/head.py": {"detectors.heads.ganomaly.training": LIGHTNING},
    "detectors/heads/patchcore/index.py": {"faiss": "a library of its own, which only the search of neighbours needs"},
    "detectors/heads/reconstruction/head.py": {"detectors.heads.reconstruction.training": LIGHTNING},
    "detectors/heads/spade/head.py": {"faiss": "a library of its own, which only the search of neighbours needs"},
    "detectors/heads/vae/head.py": {"detectors.heads.vae.training": LIGHTNING},
    "detectors/runtime/overlays.py": {"matplotlib": "takes a second; for the colours of a heat map alone"},
    "studies/api/comparing.py": {"pandas": "takes a quarter of a second, for notebooks alone"},
    "studies/api/detector.py": {"pandas": "takes a quarter of a second, for notebooks alone"},
    "studies/api/images.py": {"studies.api.settings": "imports Optuna, for the images of a study alone"},
    "studies/api/study.py": {
        "pandas": "takes a quarter of a second, for notebooks alone",
        "studies.api.registry": "imports MLflow, which takes a second, for promotions alone",
        "studies.api.reports": "imports templates and MLflow, for reports alone",
    },
    "studies/commands/serve.py": {"studies.serving.server": "needs an extra, and says so where it is missing"},
    "studies/release/locate.py": {
        "studies.release.promotion": "imports MLflow, which takes a second, for models:/ alone"
    },
    "studies/serving/server.py": {"studies.release.promotion": "the gate and MLflow, for registered models alone"},
    "studies/upkeep/checks.py": dict.fromkeys(
        [
            "detectors.backbones.weights",
            "detectors.data.mvtec",
            "detectors.runtime.artifact",
            "psutil",
            "sqlalchemy",
            "studies.file.datasets",
            "studies.file.sections",
            "studies.release.promotion",
            "studies.search.storage",
            "studies.search.view",
            "studies.worker.feature_store",
            "torch",
            "tracking.projection",
        ],
        "`study doctor` looks whether it can be imported at all",
    ),
    "studies/executors/local.py": {"studies.worker.trial": WORKER},
    "studies/executors/process.py": {"studies.worker.trial": WORKER},
    "studies/executors/ray/executor.py": {"ray": "an extra; takes seconds"},
    "studies/executors/ray/node.py": {
        "detectors.backbones.pyramid": WORKER,
        "ray": "an extra; takes seconds",
        "studies.file.config": WORKER,
        "studies.file.datasets": WORKER,
        "studies.worker.fitting": WORKER,
    },
    "studies/show/insight.py": {"optuna": "its importances import scikit-learn, which takes a second"},
}
"""Imports within functions: {file: {module: why it is not imported at the top}}."""


def sources() -> list[Path]:
    files = [ROOT / module.path for module in modules().values()]
    assert len(files) > 40
    return files


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level module) of every import, those within functions and by `import_module` included."""
    for found in imports(tree):
        yield found.line, found.module.partition(".")[0]


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


def room_floors() -> dict[str, int]:
    """{room: its floor, over all packages}; the ``__init__.py`` of a package is below its rooms, that of `studies` above."""
    floors = [[f"{package}/{room}" for room in floor] for package, rooms in FLOORS.items() for floor in rooms]
    result = {room: number for number, floor in enumerate(floors) for room in floor}
    # The public API is imported from `studies`, and uses `studies.api`.
    return result | {"detectors": -1, "tracking": -1, "studies": result["studies/api"] + 0.5}


def upward_arrows() -> set[str]:
    floors = room_floors()
    ours = modules()
    return {
        f"{source} -> {target}"
        for source, targets in arrows().items()
        for target in targets
        if ours[source].room != ours[target].room and floors[ours[target].room] >= floors[ours[source].room]
    }


def test_every_room_has_a_floor():
    floors, rooms = room_floors(), {module.room for module in modules().values()}
    assert sorted(rooms - set(floors)) == []
    # Rooms that are being built.
    assert sorted(set(floors) - rooms - {"detectors/testing", "studies/testing"}) == []


def test_arrows_between_rooms_point_downwards():
    assert sorted(upward_arrows()) == sorted(UPWARDS)


def test_no_modules_import_each_other_in_a_circle():
    assert circles(arrows()) == sorted(CIRCLES)


def test_no_module_is_long():
    assert sorted(str(module.path) for module in modules().values() if module.lines > LONGEST_MODULE) == sorted(
        LONG_MODULES
    )


def test_no_class_is_long():
    long = [
        f"{module.path}:{node.name}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_CLASS
    ]
    assert sorted(long) == sorted(LONG_CLASSES)


def test_the_picture_in_the_docs_is_that_of_the_code():
    assert drawn_picture() == mermaid(FLOORS), "draw it anew: python -m tests.helpers.import_graph"


def test_the_places_that_the_design_notes_name_are_there():
    places = re.findall(r"`((?:detectors|studies|tracking|tests)/[\w/.]*)`", PICTURE.read_text(encoding="utf-8"))
    assert len(places) > 20
    assert [place for place in places if not (ROOT / place).exists()] == []


def late_imports() -> dict[str, set[str]]:
    """{file: modules that are imported within functions}, ours by their full names, others by the first part."""
    ours, result = modules(), {}
    for module in ours.values():
        late = {
            found.module if found.module in ours else found.module.partition(".")[0]
            for found in imports_of(module)
            if found.late and not found.typing
        }
        if late:
            result[module.path.as_posix()] = late
    return result


def test_imports_within_functions_are_those_of_the_list():
    """Whoever adds one adds it to `HEAVY`, with the reason; an import that needs no reason belongs at the top."""
    known = {file: set(reasons) for file, reasons in HEAVY.items()}
    for file, names in LATE.items():
        known.setdefault(file, set()).update(names)
    late = late_imports()
    assert {file: sorted(names) for file, names in late.items()} == {
        file: sorted(names) for file, names in known.items()
    }
    assert all(reason.strip() for reasons in HEAVY.values() for reason in reasons.values())


def test_the_graph_sees_hidden_arrows_and_circles():
    source = """
        from typing import TYPE_CHECKING
        from a import b, c
        if TYPE_CHECKING:
            import a.d
        def late():
            if TYPE_CHECKING:
                from a.e import x
            from a.f import y
    """
    found = list(imports(ast.parse(textwrap.dedent(source)), modules=frozenset({"a", "a.b", "a.d", "a.e", "a.f"})))
    assert [(each.module, each.late, each.typing) for each in found] == [
        ("typing", False, False),
        ("a.b", False, False),
        ("a", False, False),
        ("a.d", False, True),
        ("a.e", True, True),
        ("a.f", True, False),
    ]
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles({name: frozenset(targets) for name, targets in graph.items()}) == [["a", "b", "c"], ["d", "e"]]


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
            ["studies.api.study", "studies.release.locate", "studies.search.view", "studies.show.insight"],
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
