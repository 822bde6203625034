"""Tokens of vision transformers, and a detector on them, against a plain and slow version of AnomalyDINO's recipe."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from detectors.backbones.architecture import channels_by_layer, check_takes, fitting_size
from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore.head import Patchcore
from detectors.heads.spade.head import Spade
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.runtime.export import DetectorGraph
from tests.helpers.backbones import drawn_state, random_images

pytestmark = pytest.mark.usefixtures("bare_machine")
VIT = "test_vit"
"""timm's own tiny vision transformer: six blocks, patches of 16 x 16 pixels."""
DINO = "vit_small_patch14_reg4_dinov2"
"""Patches of 14 x 14 pixels, a class token and four registers."""


def whole(name: str, state: dict[str, Tensor]) -> torch.nn.Module:
    """The network as timm makes it, for images of any size, with these weights."""
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, dynamic_img_size=True
    )
    return model.eval()


def slow_tokens(model: torch.nn.Module, images: Tensor, blocks: int) -> Tensor:
    """Patch tokens behind the first so many blocks, normed, [B, P, C], step by step."""
    tokens = model.patch_embed(images)
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(tokens)))
    for block in model.blocks[:blocks]:
        tokens = block(tokens)
    return model.norm(tokens)[:, model.num_prefix_tokens :]


@pytest.mark.parametrize(("name", "count", "size"), [(VIT, 6, (96, 64)), (DINO, 12, (56, 70))])
def test_tokens_are_those_of_each_block_normed(folder, name, count, size):
    state = drawn_state(name)
    save_file(state, folder / f"{name}.safetensors")
    layers = [-count, -2, -1]
    backbone, model = build_backbone(name, layers, weights_dir=folder), whole(name, state)
    images = random_images(2, *size)
    found = backbone(images)
    patch = 16 if name == VIT else 14
    with torch.no_grad():
        normalised = (images - backbone.mean) / backbone.std
        for layer in layers:
            wanted = slow_tokens(model, normalised, count + 1 + layer).transpose(1, 2)
            assert found[layer].shape == (2, channels_by_layer(name)[layer], size[0] // patch, size[1] // patch)
            torch.testing.assert_close(found[layer].flatten(2), wanted, rtol=1e-4, atol=1e-4)
    # The last block's are those that the network's own features are.
    with torch.no_grad():
        own = model.forward_features(normalised)[:, model.num_prefix_tokens :]
    torch.testing.assert_close(found[-1].flatten(2), own.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_blocks_behind_the_last_one_asked_for_are_dropped():
    assert len(build_backbone(f"{VIT}@random", [-6, -3]).model.model.blocks) == 4
    assert len(build_backbone(f"{VIT}@random", [-1]).model.model.blocks) == 6


def test_a_detector_on_tokens_scores_as_the_recipe_does(folder):
    """AnomalyDINO: all reference tokens, of length one; distance to the nearest; mean of the highest hundredth."""
    state = drawn_state(VIT)
    save_file(state, folder / f"{VIT}.safetensors")
    size = (160, 160)
    backbone, model = build_backbone(VIT, [-1], weights_dir=folder), whole(VIT, state)
    head = Patchcore(coreset_ratio=1.0, neighbourhood=0, normalize="l2", top_share=0.05)
    detector = Detector(backbone, head, image_size=size, smoothing_sigma=0.0)
    train, test = random_images(4, *size, seed=1), random_images(3, *size, seed=2)
    found, patches = detector.fit(train).score_patches(detector.extract(test))
    with torch.no_grad():
        bank, queries = (
            torch.nn.functional.normalize(slow_tokens(model, (images - backbone.mean) / backbone.std, 6), dim=2)
            for images in (train, test)
        )
    for image in range(3):
        cosine = 1 - (queries[image] @ bank.flatten(0, 1).T).amax(dim=1)
        # Between vectors of length one, half of the squared distance is one minus the cosine.
        torch.testing.assert_close(patches[image].flatten().square() / 2, cosine, rtol=1e-3, atol=1e-5)
    pixels = found.maps.flatten(1).sort(dim=1, descending=True).values
    torch.testing.assert_close(found.scores, pixels[:, : round(0.05 * 160 * 160)].mean(dim=1))


@pytest.mark.parametrize(
    "head",
    [
        Patchcore(coreset_ratio=0.2, normalize="l2", window=1, whitening=0.1),
        Padim(n_features=20, normalize="l2"),
        Spade(n_neighbors=2, normalize="l2", top_share=0.02),
    ],
    ids=["patchcore", "padim", "spade"],
)
def test_heads_take_several_blocks_and_are_stored_and_exported(head, tmp_path):
    backbone = build_backbone(f"{VIT}@random", [-4, -1])
    detector = Detector(backbone, head, image_size=(64, 96), smoothing_sigma=2.0)
    detector.fit(random_images(6, 64, 96, seed=1), FitContext())
    images = random_images(3, 64, 96, seed=2)
    expected = detector(images)
    assert detector.head.grid == (4, 6)
    folder = save_artifact(Artifact(detector), tmp_path / "detector")
    again = load_artifact(folder).detector(images)
    assert torch.equal(again.scores, expected.scores)
    assert torch.equal(again.maps, expected.maps)
    with torch.no_grad():
        scores, maps = DetectorGraph(detector)(images)
    torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps, expected.maps, rtol=1e-4, atol=1e-4)


def test_an_export_of_tokens_scores_as_the_detector(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from detectors.runtime.export import export_detector

    head = Patchcore(coreset_ratio=0.5, normalize="l2", top_share=0.01, neighbourhood=0)
    detector = Detector(build_backbone(f"{VIT}@random", [-1]), head, image_size=(64, 96))
    detector.fit(random_images(5, 64, 96, seed=1))
    found = export_detector(
        Artifact(detector), tmp_path / "tokens.onnx", "onnx", images=random_images(3, 64, 96, seed=2)
    )
    assert found.relative < 1e-4


# --- sizes


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        (DINO, (256, 256), (252, 252)),
        (DINO, (448, 448), (448, 448)),
        (DINO, (3, 21), (14, 28)),
        (VIT, (250, 263), (256, 256)),
        ("swin_tiny_patch4_window7_224", (100, 76), (96, 64)),
        ("resnet18", (100, 76), (100, 76)),
        ("tf_efficientnet_lite0", (33, 95), (33, 95)),
        ("pixels", (33, 95), (33, 95)),
    ],
)
def test_the_nearest_size_that_a_backbone_takes(name, size, nearest):
    assert fitting_size(name, size) == nearest
    check_takes(name, nearest)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "hiera_tiny_224", "mixer_s16_224"])
def test_an_architecture_for_images_of_one_size_is_refused_at_others(name):
    check_takes(name, (224, 224))
    with pytest.raises(InputError, match="takes no images of 256 x 256 pixels; it was made for 224 x 224"):
        check_takes(name, (256, 256))
