"""Backbones: the strides they offer, and their features."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from detectors.backbones.architecture import channels_by_layer, check_layers
from detectors.backbones.bundled import SMALLEST
from detectors.backbones.pyramid import Backbone, WeightsIdentity, build_backbone, empty_backbone, weights_identity
from detectors.backbones.weights import (
    available_backbones,
    tensors_sha256,
)
from tests.helpers.backbones import SMALL, drawn_state, random_images, refusal

pytestmark = pytest.mark.usefixtures("bare_machine")
VIT = "test_vit"
"""timm's own tiny vision transformer: six blocks, patches of 16 x 16 pixels, for images of 160 x 160."""


# --- strides


def test_channels_by_layer_are_those_of_the_deepest_layer_of_each_stride():
    assert channels_by_layer("resnet18") == {4: 64, 8: 128, 16: 256, 32: 512}
    assert channels_by_layer("wide_resnet50_2") == {4: 256, 8: 512, 16: 1024, 32: 2048}
    assert channels_by_layer(SMALLEST) == {4: 24, 8: 40, 16: 112, 32: 320}
    assert channels_by_layer("resnet18@random:3") == channels_by_layer("resnet18")


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, AttributeError, TypeError, NotImplementedError])
def test_a_backbone_without_a_pyramid_is_refused(monkeypatch, error):
    def no_features(name, **options):
        assert options["features_only"]
        raise error("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", no_features)
    said = refusal(channels_by_layer, "test_mambaout@random")
    assert "test_mambaout" in said
    assert "choose" in said


@pytest.mark.parametrize("strides", [[], [16, 8], [8, 8], [4, 16, 8]])
def test_strides_must_ascend(strides):
    assert "ascending" in refusal(check_layers, "resnet18", strides)


@pytest.mark.parametrize("strides", [[2], [8, 64], [5], [0], [-4, 8]])
def test_a_stride_that_is_not_offered_is_refused_with_those_that_are(strides):
    said = refusal(build_backbone, "resnet18@random", strides)
    assert "[4, 8, 16, 32]" in said
    assert "resnet18" in said


# --- features


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
    channels = channels_by_layer(name)
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


def test_a_vision_transformer_offers_the_stride_of_its_patches_and_its_blocks():
    assert channels_by_layer(VIT) == {16: 64} | dict.fromkeys(range(-6, 0), 64)
    assert channels_by_layer("vit_tiny_patch16_224") == channels_by_layer("deit_tiny_patch16_224")
    assert channels_by_layer("vit_small_patch14_dinov2") == {14: 384} | dict.fromkeys(range(-12, 0), 384)
    assert "it offers [16] and blocks -6 to -1" in refusal(build_backbone, f"{VIT}@random", [8, 16])
    assert "has no block -7" in refusal(build_backbone, f"{VIT}@random", [-7, -1])
    assert "not both" in refusal(build_backbone, f"{VIT}@random", [-1, 16])


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
    assert channels_by_layer("pixels") == {1: 3, 2: 3, 4: 3}
    assert "it offers [1, 2, 4]" in refusal(build_backbone, "pixels", [8])


def test_an_odd_image_keeps_its_last_rows():
    found = build_backbone("pixels", [4])(torch.full((1, 3, 9, 6), 255, dtype=torch.uint8))[4]
    assert found.shape == (1, 3, 3, 2)
    assert torch.equal(found, torch.ones_like(found))


# --- channels last


def test_maps_whose_channels_come_last_are_turned():
    backbone = build_backbone("swin_tiny_patch4_window7_224@random", [8, 16])
    images = random_images(2, 128, 96)
    found = backbone(images)
    assert {stride: tuple(values.shape) for stride, values in found.items()} == {
        8: (2, 192, 16, 12),
        16: (2, 384, 8, 6),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False, features_only=True).eval()
    with torch.no_grad():
        wanted = whole((images - backbone.mean) / backbone.std)
    torch.testing.assert_close(found[8], wanted[1].permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
    for image in range(2):
        torch.testing.assert_close(backbone(images[image : image + 1])[16], found[16][[image]], rtol=1e-4, atol=1e-4)


def test_maps_of_another_form_are_refused():
    backbone = build_backbone(f"{SMALL}@random", [8])
    backbone.model.register_forward_hook(lambda module, inputs, maps: [values.permute(0, 2, 3, 1) for values in maps])
    assert "choose another one" in refusal(backbone, random_images(1, 64, 64))
