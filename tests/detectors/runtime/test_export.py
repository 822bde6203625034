"""Detectors as files of other runtimes, run over all heads of the catalog; a new head joins by being listed there."""

from __future__ import annotations

import html
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, helper

from detectors.backbones.pyramid import build_backbone
from detectors.base import Head, Prediction
from detectors.catalog import built_in_names, head_class
from detectors.data.images import RESIZE_RULE
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore import graph as patchcore_graph
from detectors.heads.patchcore.head import Patchcore
from detectors.own_version import own_version
from detectors.runtime import artifact as artifact_module
from detectors.runtime import export, exported
from detectors.runtime.artifact import Artifact
from detectors.runtime.description import digest_of
from detectors.runtime.export import DetectorGraph, compare, export_detector, measure_speed, stand_ins
from detectors.runtime.exported import METADATA_KEY, Exported, load_exported
from detectors.runtime.verdicts import judge
from detectors.scoring.operating_point import Threshold
from detectors.testing.contract import BACKBONE, STRIDES, close, random_images
from tests.detectors.heads.test_detector_contract import QUICK

FORMATS: tuple[exported.Format, ...] = ("onnx", "openvino")
SIZE = (64, 64)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "padim": [{}, {"neighbourhood": 1, "shrinkage": 0.2}, {"normalize": "l2", "top_share": 0.1}],
    "patchcore": [
        {},
        {"n_neighbors": 4, "neighbourhood": 0},
        {"reweighting": 3, "neighbourhood": 3},
        {"whitening": 0.1, "reweighting": 9, "n_neighbors": 2, "coreset_ratio": 0.1},
        {"coreset_ratio": 1e-5, "reweighting": 3},
        {"coreset_ratio": 1.0, "n_neighbors": 50},
        {"window": 1, "n_neighbors": 3, "coreset_ratio": 0.1, "reweighting": 2, "normalize": "l2", "whitening": 0.1},
        {"window": 2, "coreset_ratio": 1.0, "bank_precision": "float16", "top_share": 0.1},
    ],
    "cutpaste": [{}, {"second_stage": "ocsvm"}],
    "fastflow": [{}, {"subnets": "3x3", "flow_steps": 1, "score": "latent", "normalization": "layer"}],
    "autoencoder": [{}, {"loss": "ssim", "bottleneck": "position", "depth": 2}],
    "vae": [{}, {"map": "ssim"}],
    "ganomaly": [{}, {"score": "latent"}],
    "spade": [
        {},
        {"n_neighbors": 3, "n_correspondences": 2, "pooled": "all", "image_score": "retrieval"},
        {"normalize": "l2", "top_share": 0.1},
    ],
    "cflow": [{}, {"coupling_blocks": 1, "condition_dimension": 5, "clamp": 0.5}],
}
"""Settings that take another way through a head's graph; the defaults where a head is not listed."""


def fitted(name: str, size: tuple[int, int] = SIZE, **settings: Any) -> Detector:
    head = head_class(name)(**QUICK.get(name, {}) | settings)
    backbone = build_backbone(BACKBONE, STRIDES)
    detector = Detector(backbone, head, image_size=size, smoothing_sigma=2.0).fit(random_images(8, size))
    scores = detector(random_images(4, size, seed=2)).scores
    detector.threshold = Threshold(float(scores.median()), "false_alarm_rate", "validation", normals=4, rate=0.5)
    return detector


def as_artifact(detector: Detector) -> Artifact:
    normals = np.sort(detector(random_images(4, detector.image_size, seed=2)).scores.double().numpy())
    return Artifact(detector, normals, {"study": 'Teile "groß" <1>', "trial": 7})


def only_line(error: BaseException) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1
    assert len(text) < 500
    return text


# --- the heads' graphs


@pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name in built_in_names() for settings in VARIANTS.get(name, [{}])]
)
@pytest.mark.parametrize("size", [SIZE, (100, 76)])
def test_the_graph_scores_as_the_detector_does(name, settings, size):
    detector = fitted(name, size, **settings)
    images = torch.cat([random_images(3, size, seed=1), 255 - random_images(1, size, seed=3)])
    with torch.no_grad():
        for batch in (images, images[:1]):
            close(Prediction(*DetectorGraph(detector)(batch)), detector(batch))


def test_a_large_bank_is_gone_through_in_parts(monkeypatch):
    detector = fitted("patchcore", reweighting=2, coreset_ratio=0.2)
    monkeypatch.setattr(patchcore_graph, "PRODUCT_BYTES", 4 * len(detector.head.bank_) * 7)
    graph = DetectorGraph(detector)
    assert graph.head.step == 7
    with torch.no_grad():
        close(Prediction(*graph(random_images(3, seed=1))), detector(random_images(3, seed=1)))
    monkeypatch.setattr(patchcore_graph, "PRODUCT_BYTES", 1)
    monkeypatch.setattr(patchcore_graph, "MAX_PARTS", 4)
    assert DetectorGraph(detector).head.step == 16


def test_patches_that_are_the_very_same_make_way_for_each_other():
    plain = torch.full((3, 3, *SIZE), 90, dtype=torch.uint8)
    head = Patchcore(coreset_ratio=1.0, reweighting=3, neighbourhood=0)
    detector = Detector(build_backbone(BACKBONE, STRIDES), head, image_size=SIZE).fit(plain)
    assert len(head.bank_) > len(head.bank_.unique(dim=0))
    with torch.no_grad():
        close(Prediction(*DetectorGraph(detector)(random_images(2))), detector(random_images(2)))


def test_a_stride_without_chosen_channels_is_left_out():
    detector = fitted("padim", n_features=1)
    assert 0 in {len(channels) for channels in detector.head._embedding.channels.values()}
    with torch.no_grad():
        close(Prediction(*DetectorGraph(detector)(random_images(2))), detector(random_images(2)))


def test_the_fitted_detector_is_left_as_it_was():
    detector = fitted("patchcore", whitening=0.1)
    before = {name: value.clone() for name, value in artifact_module.stored_tensors(detector).items()}
    graph = DetectorGraph(detector)
    graph.head.bank.zero_()
    after = artifact_module.stored_tensors(detector)
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- the files

Made = tuple[Artifact, Path, export.Comparison]


@pytest.fixture(scope="module")
def make_export(tmp_path_factory) -> Callable[[str, exported.Format], Made]:
    folder, artifacts, recorded, made = tmp_path_factory.mktemp("exports"), {}, {}, {}
    record = export._recorded

    def make(name: str, format: exported.Format) -> Made:
        if (name, format) not in made:
            if name not in artifacts:
                artifacts[name] = as_artifact(fitted(name))

            def once(graph: DetectorGraph, size: tuple[int, int]) -> Any:
                """Recording takes nearly all of an export's time; either file is written from the same record."""
                if name not in recorded:
                    recorded[name] = record(graph, size)
                return recorded[name]

            artifact, target = artifacts[name], folder / (f"{name}.onnx" if format == "onnx" else name)
            with mock.patch.object(export, "_recorded", once):
                found = export_detector(artifact, target, format, images=random_images(5, seed=1))
            made[name, format] = artifact, target, found
        return made[name, format]

    return make


@pytest.fixture(params=[(name, format) for name in built_in_names() for format in FORMATS], ids="-".join)
def made(request, make_export) -> Made:
    return make_export(*request.param)


@pytest.fixture
def padim_onnx(make_export) -> bytes:
    return make_export("padim", "onnx")[1].read_bytes()


def test_scores_and_maps_are_those_of_the_detector(made):
    artifact, path, comparison = made
    images = torch.cat([random_images(6, seed=5), 255 - random_images(1, seed=3)])
    opened = load_exported(path)
    close(opened.predict(images), artifact.predict(images))
    assert comparison.images == 5
    assert comparison.relative < 1e-5
    assert compare(opened, artifact.detector, random_images(5, seed=1)).relative == pytest.approx(
        comparison.relative, abs=1e-5
    )


def test_an_images_score_does_not_depend_on_its_batch(made):
    opened, images = load_exported(made[1]), random_images(7, seed=5)
    together = opened.predict(images)
    for size in (1, 2, 3):
        parts = [opened.predict(batch) for batch in images.split(size)]
        close(Prediction(torch.cat([p.scores for p in parts]), torch.cat([p.maps for p in parts])), together)
    assert opened.predict(images[:0]).maps.shape == (0, *SIZE)


def test_verdicts_are_those_of_the_detector(made):
    artifact, path, _ = made
    rng = np.random.default_rng(0)
    photographs = [
        rng.integers(0, 256, (90, 120, 3), dtype=np.uint8),
        random_images(1, seed=9)[0].permute(1, 2, 0).numpy(),
    ]
    for found, wanted in zip(judge(load_exported(path), photographs), judge(artifact, photographs), strict=True):
        assert (found.verdict, found.threshold, found.normals_below) == (
            wanted.verdict,
            wanted.threshold,
            wanted.normals_below,
        )
        assert found.score == pytest.approx(wanted.score, rel=1e-4)
        np.testing.assert_allclose(found.anomaly_map, wanted.anomaly_map, rtol=1e-4, atol=1e-4)


def test_what_is_known_of_the_detector_goes_along(made):
    artifact, path, _ = made
    description, detector = load_exported(path).description, artifact.detector
    assert (description.detector, description.settings) == (detector.head.name, detector.head.settings)
    assert (description.backbone, tuple(description.strides)) == (BACKBONE, STRIDES)
    assert (description.image_size, description.resize_rule) == (SIZE, RESIZE_RULE)
    assert description.threshold == detector.threshold.to_json()
    assert description.normal_scores == list(artifact.normal_scores)
    assert description.provenance == artifact.provenance
    assert description.version == own_version()


def test_nothing_in_a_file_tells_of_the_machine_it_was_made_on(made):
    files = [made[1]] if made[1].is_file() else list(made[1].iterdir())
    for place in (str(Path(export.__file__).parents[2]), sys.prefix, str(Path.home()), "site-packages", "stack_trace"):
        assert not any(place.encode() in file.read_bytes() for file in files)


def test_any_program_can_run_the_onnx_file(make_export):
    artifact, path, _ = make_export("patchcore", "onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores, maps = session.run(["score", "map"], {"images": random_images(3, seed=1).numpy()})
    close(Prediction(torch.from_numpy(scores), torch.from_numpy(maps)), artifact.predict(random_images(3, seed=1)))
    described = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert described["resize_rule"] == RESIZE_RULE


def test_openvinos_folder_holds_two_files_and_either_name_opens_it(make_export):
    path = make_export("cflow", "openvino")[1]
    assert {file.name for file in path.iterdir()} == {"model.xml", "model.bin"}
    images = random_images(2, seed=1)
    close(load_exported(path / "model.xml").predict(images), load_exported(path).predict(images))
    assert exported.is_exported(path)
    assert exported.is_exported(path / "model.xml")
    assert not exported.is_exported(path.parent)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_that_predict_at_the_same_time_do_not_disturb_each_other(make_export, format):
    opened = load_exported(make_export("padim", format)[1], threads=1)
    batches = [random_images(count, seed=count) for count in (1, 2, 3, 4)]
    wanted, wrong = [opened.predict(batch) for batch in batches], []

    def work(batch: torch.Tensor, expected: Prediction) -> None:
        for _ in range(10):
            try:
                close(opened.predict(batch), expected)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(batches, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_images_are_refused(make_export):
    opened = load_exported(make_export("padim", "onnx")[1])
    for images in (torch.zeros(1, 3, 64, 65, dtype=torch.uint8), torch.zeros(1, 3, *SIZE)):
        with pytest.raises(InputError, match=r"uint8 \[B, 3, 64, 64\]"):
            opened.predict(images)


def test_speed_is_measured_beside_torch(make_export, monkeypatch):
    monkeypatch.setattr("detectors.runtime.latency.MIN_SECONDS", 0.0)
    artifact, path, _ = make_export("padim", "onnx")
    speed = measure_speed(artifact, path, random_images(1))
    assert speed.torch_ms > 0 < speed.exported_ms
    assert speed.threads >= 1


def test_drawn_images_differ_and_are_the_same_each_time():
    drawn = stand_ins(4, (40, 56))
    assert drawn.shape == (4, 3, 40, 56)
    assert torch.equal(drawn, stand_ins(4, (40, 56)))
    assert len({image.numpy().tobytes() for image in drawn}) == 4
    assert drawn.float().std() > 30


# --- what does not come to be


@pytest.fixture
def quick(monkeypatch, make_export) -> Callable[..., export.Comparison]:
    """`export_detector` to ONNX, with the graph recorded once for all tests."""
    artifact, path, _ = make_export("padim", "onnx")
    monkeypatch.setattr(export, "_recorded", lambda graph, size: None)
    monkeypatch.setattr(
        export, "_write_onnx", lambda program, artifact, target, together: target.write_bytes(path.read_bytes())
    )

    def run(target: Path, **options: Any) -> export.Comparison:
        return export_detector(artifact, target, "onnx", **{"images": random_images(2), **options})

    return run


def test_a_head_without_a_graph_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(Padim, "export_module", Head.export_module)
    with pytest.raises(InputError, match="padim cannot be exported") as caught:
        export_detector(as_artifact(fitted("padim")), tmp_path / "x.onnx", "onnx", images=random_images(1))
    only_line(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_file_that_scores_otherwise_is_refused_and_removed(quick, monkeypatch, tmp_path, wrong):
    (tmp_path / "x.onnx").write_bytes(b"the former one")
    original = Exported.predict

    def predict(self: Exported, images: torch.Tensor) -> Prediction:
        found = original(self, images)
        return Prediction(found.scores, found.maps * wrong)

    monkeypatch.setattr(Exported, "predict", predict)
    with pytest.raises(InputError, match=r"more than the tolerance 0\.001, and was removed") as caught:
        quick(tmp_path / "x.onnx", force=True)
    only_line(caught.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.onnx", b"the former one")]
    if wrong < 2:
        assert quick(tmp_path / "x.onnx", force=True, tolerance=0.02).relative == pytest.approx(0.01, rel=0.01)
        assert exported.is_exported(tmp_path / "x.onnx")


def test_an_inverted_files_misses_are_named_where_they_are_the_reason(monkeypatch, tmp_path):
    artifact = as_artifact(fitted("patchcore", index="ivf", coreset_ratio=1.0))
    monkeypatch.setattr(export, "compare", lambda *given: export.Comparison(1, 0.1, 0.1, 0.1))
    monkeypatch.setattr(export, "load_exported", lambda path, format: None)
    with pytest.raises(InputError, match=r"neighbours that the detector's inverted file \(index ivf\) misses"):
        export._checked(tmp_path, "onnx", artifact, random_images(1), 1e-3)


def test_an_interruption_leaves_nothing(quick, monkeypatch, tmp_path):
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "new" / "x.onnx")
    assert not list((tmp_path / "new").iterdir())


def test_a_place_that_is_taken_is_left_alone(quick, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"something")
    with pytest.raises(InputError, match="is there already; --force replaces it"):
        quick(tmp_path / "x.onnx")
    with pytest.raises(InputError, match=r"name ends in \.onnx"):
        quick(tmp_path / "x.bin")
    assert (tmp_path / "x.onnx").read_bytes() == b"something"
    quick(tmp_path / "x.onnx", force=True)
    load_exported(tmp_path / "x.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["x.onnx"]


def test_only_a_former_export_gives_way_to_a_folder(tmp_path):
    check = export.check_target
    (tmp_path / "photos").mkdir()
    check(tmp_path / "photos", "openvino")
    (tmp_path / "photos" / "model.xml").touch()
    with pytest.raises(InputError, match="--force"):
        check(tmp_path / "photos", "openvino")
    check(tmp_path / "photos", "openvino", force=True)
    (tmp_path / "photos" / "one.png").touch()
    with pytest.raises(InputError, match="holds other files"):
        check(tmp_path / "photos", "openvino", force=True)
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check(tmp_path / "a.onnx", "onnx", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        check(tmp_path / "file", "openvino", force=True)


def test_weights_too_large_for_one_onnx_file_are_reported_before_the_work(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "MAX_ONNX_BYTES", export.BESIDE_WEIGHTS + 1000)
    with pytest.raises(InputError, match="take --format openvino"):
        quick(tmp_path / "x.onnx")


def test_no_images_to_compare_on_are_refused(quick, tmp_path):
    with pytest.raises(InputError, match="no images"):
        quick(tmp_path / "x.onnx", images=random_images(1)[:0])


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_without_the_extra_one_line_says_how_to_get_it(make_export, monkeypatch, tmp_path, format, package):
    artifact, path, _ = make_export("padim", format)
    monkeypatch.setitem(sys.modules, package, None)
    target = tmp_path / ("x.onnx" if format == "onnx" else "x")
    with pytest.raises(InputError, match=r"pip install 'anomaly-studies\[export\]'") as caught:
        export_detector(artifact, target, format, images=random_images(1))
    assert package in only_line(caught.value)
    if package != "onnxscript":
        with pytest.raises(InputError, match=r"pip install 'anomaly-studies\[export\]'"):
            load_exported(path)


# --- hostile files


def edit_metadata(model: onnx.ModelProto, *, sealed: bool = True, **changes: Any) -> None:
    """Change the description; `sealed` computes its digest anew, as only somebody who means to would."""
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    data = json.loads(entry.value) | changes
    entry.value = json.dumps(data | {"sha256": digest_of(data)} if sealed else data)


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def constant_elsewhere(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def looping(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def replaced_weights(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    tensor.raw_data = bytes(len(tensor.raw_data))


def endless(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["score"], ["much"]))


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["score"], ["other"]))
    model.graph.output[0].name = "other"


def another_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["score"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch"]))


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "no description": (lambda model: model.ClearField("metadata_props"), "no detector's description"),
    "description no JSON": (lambda model: setattr(model.metadata_props[0], "value", "{"), "not JSON"),
    "description deep": (lambda model: setattr(model.metadata_props[0], "value", "[" * 10**5), "not JSON"),
    "description long": (lambda model: setattr(model.metadata_props[0], "value", " " * 2**25), "too large"),
    "description of something else": (lambda model: setattr(model.metadata_props[0], "value", "{}"), "damaged"),
    "description edited": (lambda model: edit_metadata(model, sealed=False, smoothing_sigma=1.0), "changed since"),
    "description without digest": (
        lambda model: edit_metadata(model, sealed=False, sha256=None),
        "sha256 is missing",
    ),
    "newer": (lambda model: edit_metadata(model, format=99), "newer version"),
    "other resize rule": (lambda model: edit_metadata(model, resize_rule="bicubic"), "unknown resize rule"),
    "threshold no number": (lambda model: edit_metadata(model, threshold={"value": "x"}), "threshold"),
    "scores no numbers": (lambda model: edit_metadata(model, normal_scores=["x"]), "normal_scores"),
    "another size": (lambda model: edit_metadata(model, image_size=[32, 64]), "inputs and outputs"),
    "huge size": (lambda model: edit_metadata(model, image_size=[10**6, 64]), "image_size"),
    "weights elsewhere": (elsewhere, "one file"),
    "a constant elsewhere": (constant_elsewhere, "one file"),
    "other weights": (replaced_weights, "sha256"),
    "a loop": (looping, "holds a graph"),
    "endless": (endless, "ConstantOfShape"),
    "code of its own": (lambda model: setattr(model.graph.node[3], "domain", "evil"), "not one of ONNX's own"),
    "functions": (
        lambda model: model.functions.append(
            helper.make_function("f", "g", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [])
        ),
        "functions",
    ),
    "unknown operation": (lambda model: setattr(model.graph.node[3], "op_type", "Evil"), "cannot load"),
    "a step missing": (lambda model: model.graph.node.pop(5), "cannot load"),
    "another output's name": (renamed_output, "inputs and outputs"),
    "one output more": (another_output, "inputs and outputs"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_onnx_file_is_refused_in_one_line(padim_onnx, tmp_path, capfd, case):
    change, words = HOSTILE[case]
    model = onnx.ModelProto.FromString(padim_onnx)
    change(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=words) as caught:
        load_exported(path)
    assert str(path) in only_line(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" * 500, b"PK\x03\x04" + bytes(300)])
@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_what_is_no_model_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_exported(tmp_path / name)
    only_line(caught.value)


def test_a_file_that_is_not_there_is_reported(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for name in ("x.onnx", "x.xml", "folder.onnx", "x"):
        with pytest.raises(InputError, match="no such file"):
            load_exported(tmp_path / name)


def test_a_file_that_is_too_large_is_not_read(padim_onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "MAX_ONNX_BYTES", 1000)
    (tmp_path / "x.onnx").write_bytes(padim_onnx)
    with pytest.raises(InputError, match="more than such a file can have"):
        load_exported(tmp_path / "x.onnx")


def damaged(content: bytes, *, seed: int) -> Iterator[bytes]:
    """Cut short at some places, and with some bytes changed."""
    rng = random.Random(seed)
    for _ in range(12):
        yield content[: rng.randrange(len(content))]
    for _ in range(25):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 10, 100))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield bytes(changed)


def test_a_damaged_onnx_file_never_ends_in_anything_but_one_line(padim_onnx, tmp_path):
    refused = 0
    for content in damaged(padim_onnx, seed=0):
        (tmp_path / "x.onnx").write_bytes(content)
        try:
            load_exported(tmp_path / "x.onnx")
        except InputError as error:
            only_line(error)
            refused += 1
    assert refused > 30


def test_a_damaged_openvino_file_never_ends_in_anything_but_one_line(make_export, tmp_path):
    folder = make_export("padim", "openvino")[1]
    files = {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}
    refused = 0
    for name in files:
        for content in damaged(files[name], seed=1):
            for other, whole in files.items():
                (tmp_path / other).write_bytes(content if other == name else whole)
            try:
                load_exported(tmp_path)
            except InputError as error:
                only_line(error)
                refused += 1
    assert refused > 55


def resealed(xml: str) -> str:
    """An OpenVINO file with the digest of its description computed anew."""
    text = re.search(r'anomaly_studies value="([^"]*)"', xml)
    assert text is not None
    data = json.loads(html.unescape(text[1]))
    return xml.replace(data["sha256"], digest_of(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda xml: xml.replace("anomaly_studies", "something"), "no detector's description"),
        (lambda xml: xml.replace("pillow-bilinear-antialias", "bicubic"), "changed since"),
        (lambda xml: resealed(xml.replace("pillow-bilinear-antialias", "bicubic")), "unknown resize rule"),
        (lambda xml: xml.replace('type="Convert"', 'type="Evil"'), "cannot read"),
        (lambda xml: xml.replace('offset="', 'offset="9'), "cannot read"),
        (
            lambda xml: resealed(xml.replace("&quot;image_size&quot;:[64,64]", "&quot;image_size&quot;:[64,32]")),
            "inputs and outputs",
        ),
    ],
)
def test_a_hostile_openvino_file_is_refused_in_one_line(make_export, tmp_path, change, words):
    folder = make_export("padim", "openvino")[1]
    xml = (folder / "model.xml").read_text()
    assert change(xml) != xml
    (tmp_path / "model.xml").write_text(change(xml))
    (tmp_path / "model.bin").write_bytes((folder / "model.bin").read_bytes())
    with pytest.raises(InputError, match=words) as caught:
        load_exported(tmp_path)
    only_line(caught.value)


def test_an_openvino_file_of_another_format_or_without_weights_is_refused(make_export, padim_onnx, tmp_path):
    (tmp_path / "model.xml").write_bytes(padim_onnx)
    with pytest.raises(InputError, match="not an OpenVINO model"):
        load_exported(tmp_path)
    (tmp_path / "model.xml").write_bytes((make_export("padim", "openvino")[1] / "model.xml").read_bytes())
    with pytest.raises(InputError, match=r"model\.bin is missing"):
        load_exported(tmp_path)
    weights = bytearray((make_export("padim", "openvino")[1] / "model.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "model.bin").write_bytes(weights)
    with pytest.raises(InputError, match="sha256"):
        load_exported(tmp_path)


def test_openvino_computes_in_full_precision(make_export, monkeypatch):
    hints = []
    original = openvino.Core.compile_model

    def watched(self: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        compiled = original(self, model, device, config)
        hints.append(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        return compiled

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    load_exported(make_export("padim", "openvino")[1])
    assert hints == ["f32"]
