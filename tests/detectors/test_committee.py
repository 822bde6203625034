"""Several backbones in one detector: their scale, their mean, their storage and their export."""

from __future__ import annotations

import pytest
import torch

from detectors.backbones.architecture import channels_by_layer, check_takes, fitting_size
from detectors.backbones.pyramid import Backbones, build_backbones, weights_identity
from detectors.backbones.weights import BackboneSpec, licence, weights_tag
from detectors.base import FitContext
from detectors.catalog import head_class
from detectors.committee import Committee, _parts, make_detector
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.features import Features, merged
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore.head import Patchcore
from detectors.heads.spade.head import Spade
from detectors.runtime.artifact import Artifact, load_artifact, model_size_mb, save_artifact
from detectors.runtime.tensor_file import read_tensors
from detectors.testing.contract import random_images
from detectors.tiles import Tiles

ONE, OTHER = "resnet18@random:1", "resnet18@random:2"
BOTH = f"{ONE}+{OTHER}"
SIZE = (64, 64)
HEADS = {
    "patchcore": lambda: Patchcore(coreset_ratio=0.2),
    "padim": lambda: Padim(n_features=12),
    "spade": lambda: Spade(n_neighbors=3),
    "reweighted": lambda: Patchcore(coreset_ratio=0.2, reweighting=3),
}


def both(head, *, tiles: Tiles | None = None, size=SIZE) -> Committee:
    made = make_detector(build_backbones(BOTH, [8, 16]), head, image_size=size, smoothing_sigma=2.0, tiles=tiles)
    assert isinstance(made, Committee)
    return made


def alone(name: str, head, *, tiles: Tiles | None = None, size=SIZE) -> Detector:
    return make_detector(build_backbones(name, [8, 16]), head, image_size=size, smoothing_sigma=2.0, tiles=tiles)


# --- names


def test_several_names_are_one_backbone():
    spec = BackboneSpec.parse(BOTH)
    assert [str(one) for one in spec.members] == [ONE, OTHER]
    assert str(spec) == BOTH
    assert channels_by_layer(BOTH) == channels_by_layer(ONE)
    assert channels_by_layer("resnet18@random+wide_resnet50_2@random") == channels_by_layer("resnet18")
    assert channels_by_layer("resnet18@random+test_vit@random") == {16: 64}
    identity = weights_identity(BOTH)
    assert identity == build_backbones(BOTH, [8]).identity
    assert identity.name == BOTH
    assert identity.tag == weights_tag(spec) or identity.tag == "random:1+random:2"
    assert identity.sha256 != weights_identity(f"{OTHER}+{ONE}").sha256
    assert fitting_size("test_vit@random+vit_small_patch14_dinov2@random", (200, 230)) == (224, 224)
    with pytest.raises(InputError, match="beit_base_patch16_224@random takes no images"):
        check_takes("resnet18@random+beit_base_patch16_224@random", SIZE)
    assert licence(BackboneSpec.parse("resnet18+vit_small_patch16_dinov3")) == "apache-2.0, dinov3-license"


@pytest.mark.parametrize(
    "text", ["resnet18+resnet18", "resnet18+pixels", "+".join(f"resnet18@random:{i}" for i in range(9))]
)
def test_several_must_differ_and_be_few(text):
    with pytest.raises(InputError, match="several at once are different networks of timm, at most 8"):
        BackboneSpec.parse(text)


@pytest.mark.parametrize("text", ["resnet18+", "+resnet18", "resnet18+nonsense"])
def test_every_name_is_known(text):
    with pytest.raises(InputError, match="unknown backbone"):
        BackboneSpec.parse(text)


# --- features


def test_features_of_members_are_told_apart():
    made = both(HEADS["patchcore"]())
    features = made.extract(random_images(3, SIZE))
    assert features.strides == (8, 16, 10_008, 10_016)
    for place, name in enumerate((ONE, OTHER)):
        own = alone(name, HEADS["patchcore"]()).extract(random_images(3, SIZE))
        found = features.member(place)
        assert found.strides == (8, 16)
        assert all(torch.equal(found.maps[stride], own.maps[stride]) for stride in (8, 16))
    assert features.select([16]).strides == (16, 10_016)
    assert features.take([2, 0]).member(1).maps[8].shape[2] == 2
    with pytest.raises(KeyError):
        features.select([4])


def test_blocks_of_members_are_told_apart():
    maps = {block: torch.full((4, 2, 3), float(block)) for block in (-4, -1)}
    one = Features(maps, dict.fromkeys(maps, (2, 2)), SIZE)
    both_of_them = merged([one, one])
    assert both_of_them.strides == (-4, -1, 9_996, 9_999)
    assert both_of_them.member(0).strides == both_of_them.member(1).strides == (-4, -1)
    assert both_of_them.select([-1]).strides == (-1, 9_999)


# --- scores


@pytest.mark.parametrize("name", HEADS)
def test_the_score_is_the_mean_of_the_members_on_the_scale_of_unseen_normals(name):
    train, test = random_images(9, SIZE, seed=1), random_images(4, SIZE, seed=2)
    made = both(HEADS[name]())
    made.fit(train)
    found = made(test)
    scores, maps = torch.zeros(4), torch.zeros(4, *SIZE)
    for place, backbone in enumerate((ONE, OTHER)):
        unseen = torch.cat(
            [
                alone(backbone, HEADS[name]()).fit(train[fitted])(train[held_out]).scores
                for fitted, held_out in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2)))
            ]
        ).double()
        mean, deviation = float(unseen.mean()), float(unseen.std())
        assert made.scales[place].tolist() == pytest.approx([mean, deviation], rel=1e-4)
        own = alone(backbone, HEADS[name]()).fit(train)(test)
        scores += (own.scores - mean) / deviation / 2
        maps += (own.maps - mean) / deviation / 2
    torch.testing.assert_close(found.scores, scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.maps, maps, rtol=1e-3, atol=1e-3)
    stored = made.score_features(made.extract(test))
    torch.testing.assert_close(stored.scores, found.scores, rtol=1e-4, atol=1e-4)
    for image in range(4):
        torch.testing.assert_close(made(test[image : image + 1]).scores[0], found.scores[image], rtol=1e-4, atol=1e-4)


def test_copies_of_an_image_are_in_one_half():
    """Else each half would know the other's images, and members that keep images would score them with nothing."""
    images = random_images(6, SIZE, seed=1)
    made = both(Patchcore(coreset_ratio=1.0, neighbourhood=0)).fit(torch.cat([images, images]))
    assert isinstance(made, Committee)
    assert float(made.scales[:, 0].min()) > 0.1


@pytest.mark.parametrize("count", [2, 3])
def test_of_few_normals_each_is_left_out_in_turn(count):
    train = random_images(count, SIZE, seed=1)
    made = both(HEADS["patchcore"]()).fit(train)
    assert isinstance(made, Committee)
    for place, name in enumerate((ONE, OTHER)):
        unseen = []
        for index in range(count):
            others = [other for other in range(count) if other != index]
            unseen.append(float(alone(name, HEADS["patchcore"]()).fit(train[others])(train[[index]]).scores[0]))
        assert made.scales[place, 0].item() == pytest.approx(sum(unseen) / count, rel=1e-4)


def test_one_normal_has_no_scale():
    images = random_images(1, SIZE)
    with pytest.raises(InputError, match="one good image is too little for several backbones at once"):
        both(HEADS["patchcore"]()).fit(torch.cat([images, images]))
    with pytest.raises(InputError, match="no normal images"):
        both(HEADS["patchcore"]()).fit_features(both(HEADS["patchcore"]()).extract(images).take([]), FitContext())


def test_turned_copies_are_in_the_part_of_their_image_and_are_not_scored():
    images = random_images(4, SIZE, seed=1)
    copies = torch.cat([image[None].flip(axis) for image in images for axis in (2, 3)])
    features = both(HEADS["patchcore"]()).extract(torch.cat([images, copies]))
    assert _parts(features, copies=2) == [([1, 3, 6, 7, 10, 11], [0, 2]), ([0, 2, 4, 5, 8, 9], [1, 3])]
    with pytest.raises(InputError, match="one good image"):
        _parts(features.take([0, 4, 5]), copies=2)


def test_normals_that_score_alike_up_to_rounding_keep_the_unit():
    image = random_images(1, SIZE, seed=1)
    nearly = torch.cat([image] * 4)
    nearly[:, 0, 0, 0] = torch.tensor([10, 11, 12, 13], dtype=torch.uint8)
    made = both(Padim(n_features=4, regularization=1e3)).fit(nearly)
    assert isinstance(made, Committee)
    deviations = made.scales[:, 1]
    assert bool(((deviations == 1.0) | (deviations > 1e-5 * made.scales[:, 0].abs())).all())


def test_members_may_have_patches_of_different_sizes(tmp_path):
    name = "test_vit@random+vit_tiny_patch16_224@random"
    made = make_detector(build_backbones(name, [-1]), Patchcore(coreset_ratio=0.5), image_size=(96, 96))
    made.fit(random_images(5, (96, 96), seed=1))
    again = load_artifact(save_artifact(Artifact(made), tmp_path / "one")).detector
    assert torch.equal(again(random_images(2, (96, 96))).scores, made(random_images(2, (96, 96))).scores)
    different = "test_vit@random+vit_small_patch14_dinov2@random"
    other = make_detector(build_backbones(different, [-1]), Patchcore(coreset_ratio=0.5), image_size=(448, 448))
    other.fit(random_images(3, (448, 448), seed=1))
    again = load_artifact(save_artifact(Artifact(other), tmp_path / "other")).detector
    assert torch.equal(again(random_images(1, (448, 448))).scores, other(random_images(1, (448, 448))).scores)


def test_a_head_that_trains_is_refused():
    with pytest.raises(InputError, match="several backbones at once are for detectors that do not train; cflow trains"):
        both(head_class("cflow")())


# --- storage and export


@pytest.mark.parametrize("name", ["patchcore", "padim"])
@pytest.mark.parametrize("tiles", [None, Tiles(64, 16)])
def test_a_saved_committee_scores_as_before(name, tiles, tmp_path):
    size = (64, 112)
    made = both(HEADS[name](), tiles=tiles, size=size).fit(random_images(6, size, seed=1))
    folder = save_artifact(Artifact(made), tmp_path / "detector")
    again = load_artifact(folder).detector
    assert isinstance(again, Committee)
    assert isinstance(again.backbone, Backbones)
    assert again.tiles == tiles
    assert model_size_mb(again) == model_size_mb(made)
    # Each member is known by its own weights: features are stored by these.
    assert [one.identity.sha256 for one in again.backbone.members] == [
        weights_identity(name).sha256 for name in (ONE, OTHER)
    ]
    test = random_images(3, size, seed=2)
    assert torch.equal(again(test).scores, made(test).scores)
    assert torch.equal(again(test).maps, made(test).maps)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 2), torch.ones(3, 2, dtype=torch.float64), torch.zeros(2, 2).double()]
)
def test_scales_of_another_form_are_refused(wrong):
    made = both(HEADS["patchcore"]())
    with pytest.raises(ValueError, match="not those of 2 members"):
        made.import_extra({"scales": wrong})
    with pytest.raises(KeyError):
        made.import_extra({})


def test_what_is_stored_of_a_committee(tmp_path):
    made = both(HEADS["patchcore"]()).fit(random_images(6, SIZE, seed=1))
    folder = save_artifact(Artifact(made), tmp_path / "detector")
    names = read_tensors(folder / "detector.safetensors").keys()
    assert {"extra.scales", "head.bank", "head1.bank"} <= names
    assert any(name.startswith("backbone.networks.1.") for name in names)


@pytest.mark.parametrize("name", ["patchcore", "padim"])
@pytest.mark.parametrize("tiles", [None, Tiles(64, 16)])
def test_an_export_of_a_committee_scores_as_it_does(name, tiles, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from detectors.runtime.export import export_detector

    size = (64, 112)
    made = both(HEADS[name](), tiles=tiles, size=size).fit(random_images(6, size, seed=1))
    found = export_detector(Artifact(made), tmp_path / "both.onnx", "onnx", images=random_images(3, size, seed=2))
    assert found.relative < 1e-4
