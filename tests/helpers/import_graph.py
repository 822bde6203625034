"""Who imports whom within `detectors`, `tracking` and `studies`, read from the source: imports within functions and under
TYPE_CHECKING count as all others do.

    python -m tests.helpers.import_graph      # draws the picture of docs/design.md anew
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("detectors", "tracking", "studies")
"""From the lowest to the highest."""
DYNAMIC = {"import_module", "__import__"}


class Import(NamedTuple):
    """One imported name."""

    line: int
    module: str
    """Full name of the module, such as ``numpy.typing`` or ``detectors.base``."""
    late: bool
    """Within a function."""
    typing: bool
    """Under ``if TYPE_CHECKING``."""


@dataclass(frozen=True)
class Module:
    """One file of the three packages."""

    name: str
    """``detectors.heads.padim.head``; a package's ``__init__.py`` has the package's name."""
    path: Path
    """Below `ROOT`."""
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        """The folder or module right below the package, ``detectors/heads``; the package itself for its ``__init__.py``."""
        return "/".join(self.name.split(".")[:2])


def imports(tree: ast.AST, *, modules: frozenset[str] = frozenset()) -> Iterator[Import]:
    """Every import of a module.

    Args:
        modules: names of modules that are known: ``from a import b`` imports ``a.b`` where that is one of them, else ``a``.
    """

    def walk(node: ast.AST, *, late: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late=late, typing=typing)

    def visit(node: ast.AST, *, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, late, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(node.lineno, whole if whole in modules else base, late, typing)
        elif isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING":
            for child in node.body:
                yield from visit(child, late=late, typing=True)
            for child in node.orelse:
                yield from visit(child, late=late, typing=typing)
        else:
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in DYNAMIC:
                    yield Import(node.lineno, str(node.args[0].value), late, typing)
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(node, late=late or is_function, typing=typing)

    yield from walk(tree, late=False, typing=False)


@cache
def modules() -> Mapping[str, Module]:
    """{name: module} of the three packages."""
    result = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT)
            name = ".".join(place.with_suffix("").parts).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            result[name] = Module(name, place, ast.parse(text), len(text.splitlines()))
    return result


def imports_of(module: Module) -> list[Import]:
    """Every import of one of our modules, ours by their full names."""
    return list(imports(module.tree, modules=frozenset(modules())))


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """{module: our modules that it imports}."""
    ours = modules()
    return {
        name: frozenset(found.module for found in imports_of(module) if found.module in ours and found.module != name)
        for name, module in ours.items()
    }


def room_arrows() -> set[tuple[str, str]]:
    """(room, room that it imports from), no room from itself."""
    ours = modules()
    pairs = {(ours[name].room, ours[target].room) for name, targets in arrows().items() for target in targets}
    return {(source, target) for source, target in pairs if source != target}


def circles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """The groups of modules that reach each other (strongly connected components of more than one), sorted."""
    # Tarjan's algorithm; the graph has some hundred modules, so that recursion does no harm.
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph.get(name, ()):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            cut = stack.index(name)
            group = stack[cut:]
            del stack[cut:]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(groups)


def essential(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that remain when those that a longer way says already are left out (transitive reduction; no circles)."""
    targets: dict[str, set[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, set()).add(target)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(targets.get(start, ()))
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo.extend(targets.get(name, ()))
        return seen

    return {
        (source, target)
        for source, target in pairs
        if not any(target in reachable(other) for other in targets[source] - {target})
    }


SMALL = {
    "detectors": (
        "errors",
        "files",
        "own_version",
        "working_memory",
        "while_inside",
        "process_state",
        "precision",
        "entry_points",
        "head_files",
        "head_texts",
    ),
    "tracking": ("addresses", "audit", "interrupts", "mlflow_settings", "moved", "packing", "patience", "records"),
    "studies": (),
}
"""{package: modules of one purpose each that the picture leaves out}."""
PICTURE = ROOT / "docs" / "design.md"
BEGIN, END = "```mermaid\n", "\n```"


def mermaid(floors: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """The rooms of each package as a mermaid flowchart, highest first; an arrow means "imports".

    Args:
        floors: {package: its rooms' names, the lowest floor first}.
    """
    there = {module.room for module in modules().values()}
    hidden = {f"{package}/{name}" for package, names in SMALL.items() for name in names} | set(PACKAGES)
    pairs = room_arrows()
    drawn = essential({(source, target) for source, target in pairs if not {source, target} & hidden})
    lines = ["flowchart TB"]
    for package in reversed(PACKAGES):
        lines.append(f"  subgraph {package}")
        rooms = [f"{package}/{name}" for floor in reversed(floors[package]) for name in floor]
        lines += [f"    {_node(room)}[{room.split('/')[1]}]" for room in rooms if room in there - hidden]
        lines += [f"    {_node(s)} --> {_node(t)}" for s, t in sorted(drawn) if _package(s) == _package(t) == package]
        lines.append("  end")
    between = {(_package(source), _package(target)) for source, target in pairs if _package(source) != _package(target)}
    lines += [f"  {source} ==> {target}" for source, target in sorted(essential(between))]
    return "\n".join(lines)


def drawn_picture() -> str:
    """The picture that `PICTURE` holds."""
    return PICTURE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write_picture(picture: str) -> None:
    """Replace the picture in `PICTURE`."""
    before, begin, rest = PICTURE.read_text(encoding="utf-8").partition(BEGIN)
    PICTURE.write_text(before + begin + picture + END + rest.partition(END)[2], encoding="utf-8")


def _package(room: str) -> str:
    return room.split("/")[0]


def _node(room: str) -> str:
    return room.replace("/", "_")


if __name__ == "__main__":
    from tests.test_architecture import FLOORS

    write_picture(mermaid(FLOORS))
