"""The script that runs beside Anomalib: what it computes of both sides' runs, and that neither side imports the other.
The tables of all detectors are those of the stored results."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from detectors import catalog
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("against_anomalib")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_neither_side_imports_the_other() -> None:
    assert "anomalib" in imports(ROOT / "benchmarks" / "_anomalib_side.py")
    assert not {"detectors", "studies", "tracking"} & imports(ROOT / "benchmarks" / "_anomalib_side.py")
    ours = [path for package in ("detectors", "studies", "tracking") for path in (ROOT / package).rglob("*.py")]
    for path in [*ours, ROOT / "benchmarks" / "against_anomalib.py"]:
        assert "anomalib" not in imports(path), path


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_from_us_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "detectors",
            "studies",
            "tracking",
        ):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_help_and_mistakes(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
    for words, code, said in (
        (["--help"], 0, "--limit-train"),
        ([], 2, "--anomalib-python"),
        (["--anomalib-python", "python"], 2, "MVTEC_AD_ROOT"),
        (["--anomalib-python", "python", "--data", ".", "--detectors", "padim,spade"], 2, "unknown detector spade"),
    ):
        with pytest.raises(SystemExit) as end:
            script.parse_arguments(words)
        assert end.value.code == code
        told = capsys.readouterr()
        assert said in told.out + told.err
    given = script.parse_arguments(["--anomalib-python", "python", "--data", ".", "--detectors", "padim, cflow"])
    assert given.detectors == ["padim", "cflow"]


def test_settings_are_those_that_the_detectors_know(script: ModuleType) -> None:
    for name, case in script.CASES.items():
        if name in catalog.built_in_names():
            assert set(case.ours) <= set(catalog.parameters(name))


def test_ratios_are_of_the_medians_and_leave_out_the_validation(script: ModuleType) -> None:
    theirs = [
        script.with_auroc(
            {
                "fit_seconds": fit, "validation_seconds": 10.0, "test_seconds": 9.0, "latency_ms": 40.0,
                "scores": [0.1, 0.2, 0.3], "labels": [0, 1, 1], "versions": {}, "feature_means": {},
                "reported": {"image_AUROC": 0.5},
            }
        )
        for fit in (110.0, 60.0, 500.0)
    ]  # fmt: skip
    ours = [
        {"fit_seconds": fit, "test_seconds": 3.0, "latency_ms": 20.0, "image_auroc": 0.75} for fit in (5.0, 4.0, 9.0)
    ]
    summary = script.summarise(theirs, ours)
    assert summary["fit_ratio"] == pytest.approx(20.0)
    assert summary["fit_ratio_with_its_validation"] == pytest.approx(22.0)
    assert (summary["test_ratio"], summary["latency_ratio"]) == (3.0, 2.0)
    assert summary["anomalib"]["image_auroc"] == 1.0
    assert "scores" not in theirs[0]
    *_, row = script.table({"padim": {"summary": summary}}).splitlines()
    assert row == "| padim | 100.0, 5.0, 20.0x | 9.0, 3.0, 3.0x | 40, 20, 2.0x | 1.000, 0.750 |"


def test_a_small_test_set_keeps_all_types_and_is_copied_as_it_is(
    script: ModuleType, tiny_mvtec: Path, tmp_path: Path
) -> None:
    dataset = read_mvtec(tiny_mvtec, "widget")
    assert script.choose(dataset.test, None) == dataset.test
    few = script.choose(dataset.test, 4)
    assert sorted(sample.defect_type for sample in few) == ["dent", "dent", "good", "good"]
    script.copy_images([ImageSet("test", few), ImageSet("train", dataset.train[:2])], tmp_path, "widget")
    copied = read_mvtec(tmp_path, "widget")
    assert [sample.key for sample in copied.test] == [sample.key for sample in few]
    assert all(sample.mask_file for sample in copied.test if sample.label)
    assert ImageSet("test", copied.test).digest == ImageSet("test", few).digest


@pytest.mark.parametrize("data", ["screw", "carpet"])
def test_the_tables_of_all_detectors_are_those_of_the_stored_results(data: str) -> None:
    table = load("table")
    rows = list(table.rows(data))
    assert len(rows) == len(catalog.built_in_names())
    assert "\n".join([*table.HEADER, *rows]) in (ROOT / "benchmarks" / "README.md").read_text(), "benchmarks/table.py"


def test_kept_results_tell_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load("table")
    study = json.loads((ROOT / "benchmarks" / "results" / "spade_carpet.json").read_text())
    home = "/somewhere/else"
    study["config"]["data"]["root"] = f"{home}/carpet_tiles"
    for trial in study["trials"]:
        trial["folder"] = f"{home}/{trial['folder']}"
        trial["detector"] = trial["detector"] and f"{home}/{trial['detector']}"
        trial["detectors"] = {name: f"{home}/{path}" for name, path in trial["detectors"].items()}
    (tmp_path / "run.json").write_text(json.dumps(study))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    kept = table.keep(tmp_path / "run.json")
    assert kept == tmp_path / "spade_carpet.json"
    assert home not in kept.read_text()
    assert json.loads(kept.read_text()) == json.loads(
        (ROOT / "benchmarks" / "results" / "spade_carpet.json").read_text()
    )


# --- on a GPU, tried without one


def test_every_detector_is_measured_with_settings_that_it_knows() -> None:
    gpu = load("gpu")
    assert set(gpu.DETECTORS) == set(catalog.names())
    for name, (_, _, settings) in gpu.DETECTORS.items():
        assert catalog.head_class(name)(**settings)


def test_both_devices_are_compared_and_a_failure_spares_the_others(
    tiny_mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = load("gpu")
    monkeypatch.setitem(gpu.DETECTORS, "padim", ("pixels", (4,), {"n_features": 2}))
    monkeypatch.setitem(gpu.DETECTORS, "spade", ("pixels", (4,), {"k": "many"}))
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--train", "8", "--test", "6", "--detectors", "padim,spade,vae", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["gpu.py", "--data", str(tiny_mvtec / "widget"), *words])
    monkeypatch.setattr(gpu, "milliseconds", lambda *_, **__: 1.0)
    monkeypatch.setitem(gpu.DETECTORS, "vae", ("pixels", (4,), {"epochs": 1}))
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    padim, spade, vae = json.loads(out.read_text())["runs"]
    assert spade["failed"].startswith("TypeError")
    for row in (padim, vae):
        # The same device twice; and what the process allows changes nothing.
        assert row["difference_to_cpu"] == row["difference_with_tf32_allowed"] == 0
        assert row["auroc"] == row["auroc_on_cpu"]
    assert "8 good images fitted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", ".", "--device", "cpu"], "is no folder"),
        (["--data", ".", "--device", "cpu", "--detectors", "padim,pfc"], "no detector pfc"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as ended:
        load("gpu").main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
