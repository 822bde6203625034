"""The catalog: detectors as entry points, with and without installed metadata, none imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest

from detectors import catalog, entry_points
from detectors.catalog import built_in_names, head_class, parameters
from detectors.entry_points import offered
from detectors.errors import InputError
from tests.helpers import ROOT
from tests.helpers.worked_example import EXAMPLE, offer

BUILT_IN = ["autoencoder", "cflow", "cutpaste", "fastflow", "ganomaly", "padim", "patchcore", "spade", "vae"]


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    """Entry points are looked for again, now and after the test."""
    clear_caches()
    yield
    clear_caches()


def clear_caches() -> None:
    entry_points._offered.cache_clear()
    entry_points._own.cache_clear()


def install(folder: Path, package: str, name: str, value: str, *, group: str = catalog.GROUP) -> None:
    """The metadata of a package with one entry point."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


def test_names_are_listed_without_importing_a_head() -> None:
    code = (
        "import sys; from detectors import catalog; print(*catalog.names());"
        "print(*[name for name in sys.modules if name.startswith(('detectors.heads', 'detectors.flows'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    listed, imported = done.stdout.splitlines()
    assert listed.split() == BUILT_IN
    assert imported == ""


def test_the_project_file_lists_every_head() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][catalog.GROUP]
    folders = {path.parent.name for path in (ROOT / "detectors" / "heads").glob("*/head.py")}
    assert set(listed) == folders - {"reconstruction"}  # the base of three
    for name in listed:
        assert catalog.head_class(name).name == name


@pytest.mark.usefixtures("fresh_caches")
def test_a_checkout_without_metadata_knows_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_points, "entry_points", lambda group: [])
    assert catalog.names() == catalog.built_in_names() == BUILT_IN
    assert catalog.head_class("padim").name == "padim"


@pytest.mark.usefixtures("fresh_caches")
def test_neither_metadata_nor_a_checkout_leaves_no_detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(entry_points, "entry_points", lambda group: [])
    monkeypatch.setattr(entry_points, "BESIDE", tmp_path)
    for text in (None, "[project]\nname = 'something else'\n", "no toml ["):
        if text is not None:
            (tmp_path / "pyproject.toml").write_text(text)
        clear_caches()
        assert catalog.names() == []


@pytest.mark.usefixtures("fresh_caches")
def test_an_installed_distribution_knows_its_heads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The metadata beside the code count, not those of another version elsewhere on the path."""
    installed, elsewhere = tmp_path / "site-packages", tmp_path / "elsewhere"
    install(installed, "anomaly_studies", "padim", "detectors.heads.padim.head:Padim")
    install(installed, "wood_defects", "knots", "no_such_module:Knots")
    install(elsewhere, "anomaly-studies", "patchcore", "of.another.version:Patchcore")
    monkeypatch.setattr(sys, "path", [str(elsewhere), str(installed), *sys.path])
    monkeypatch.setattr(entry_points, "BESIDE", installed)
    assert catalog.built_in_names() == ["padim"]
    assert catalog.names() == ["padim", "knots"]
    assert catalog.head_class("padim").name == "padim"


@pytest.mark.usefixtures("fresh_caches")
def test_two_packages_with_one_name_are_both_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, "wood_defects", "padim", "wood:Padim")
    install(tmp_path, "steel_defects", "scratches", "steel:Scratches")
    install(tmp_path, "more_steel", "scratches", "more:Scratches")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert catalog.names().count("scratches") == 1
    with pytest.raises(InputError, match=r"detector 'padim' is offered by anomaly-studies and wood-defects; uninstall"):
        catalog.head_class("padim")
    with pytest.raises(InputError, match=r"detector 'scratches' is offered by .*(steel-defects|more-steel)") as caught:
        catalog.head_class("scratches")
    assert "steel-defects" in str(caught.value)
    assert "more-steel" in str(caught.value)
    assert catalog.head_class("patchcore").name == "patchcore"


def test_an_unknown_detector_says_how_to_bring_one() -> None:
    with pytest.raises(InputError, match=r"did you mean padim\? .*FILE\.py:CLASS.*entry point.*adding-a-detector\.md"):
        catalog.head_class("padmi")


def test_an_entry_point_knows_its_package() -> None:
    own = offered(catalog.GROUP)["padim"][0]
    assert entry_points.distribution_of(own) == "anomaly-studies"
    assert entry_points.distribution_of(EntryPoint("x", "y:z", catalog.GROUP)) == ""
    assert distribution("anomaly-studies").name == "anomaly-studies"


@pytest.mark.parametrize(("wrong", "hint"), [("padmi", "did you mean padim?"), ("", "known: "), ("x" * 50, "known: ")])
def test_an_unknown_detector_is_refused_with_the_known_ones(wrong: str, hint: str) -> None:
    for call in (head_class, parameters):
        with pytest.raises(InputError) as caught:
            call(wrong)
        assert hint in str(caught.value)
        assert all(known in str(caught.value) for known in built_in_names())


def test_an_installed_package_adds_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    offer(monkeypatch, "diagonal", "diagonal:Diagonal")
    assert head_class("diagonal").name == "diagonal"
    assert "regularization" in parameters("diagonal")
    with pytest.raises(InputError, match="did you mean diagonal"):
        head_class("diagonl")


@pytest.mark.parametrize(
    "value",
    ["no_such_module:Head", "json:loads", "detectors.heads.padim.head:Padim", "detectors.heads.padim.head:None"],
)
def test_a_broken_addition_is_reported(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    offer(monkeypatch, "mine", value)
    with pytest.raises(InputError, match=rf"detector 'mine' \({value}\) .*uninstall it"):
        head_class("mine")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("searchable = ()", "Mine lacks the class attribute name"),
        ("name = 'mine'", "Mine lacks the class attribute searchable"),
        ("name, searchable = 'mine', ()", "Mine lacks fit, grid, score"),
        ("name, searchable = 'mine', (); fit = grid = score = None", None),
        ("name, searchable = 3, (); fit = grid = score = None", r"Mine\.name 3 is no name"),
        ("name, searchable = 'yours', (); fit = grid = score = None", r"Mine\.name is 'yours', which is not the name"),
    ],
)
def test_a_head_of_a_package_is_checked_as_one_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, problem: str | None
) -> None:
    module = f"package_{abs(hash(body))}"  # a module of its own, for heads are loaded once
    (tmp_path / f"{module}.py").write_text(f"from detectors.base import Head\nclass Mine(Head): {body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, "mine", f"{module}:Mine")
    if problem is None:
        assert head_class("mine").name == "mine"
    else:
        with pytest.raises(InputError, match=rf"detector 'mine' \({module}:Mine\) cannot be used: {problem}"):
            head_class("mine")


@pytest.mark.usefixtures("fresh_caches")
def test_a_package_that_comes_onto_the_path_later_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As that of the next model which MLflow loads in the same process."""
    assert "knots" not in catalog.names()
    install(tmp_path, "wood_defects", "knots", "no_such_module:Knots")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "knots" in catalog.names()
    with pytest.raises(InputError, match=r"detector 'knots' \(no_such_module:Knots\) cannot be loaded"):
        catalog.head_class("knots")
