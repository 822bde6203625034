"""CutPaste: what is pasted, the second stages against scikit-learn and SciPy, training, localisation, scores."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.svm import OneClassSVM

from detectors import training, working_memory
from detectors.backbones.pyramid import build_backbone, load_network
from detectors.base import FitContext, Prediction, seeded
from detectors.detector import Detector
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.heads.cutpaste import training as cutpaste_training
from detectors.heads.cutpaste.head import Cutpaste
from detectors.heads.cutpaste.network import Network, Tail
from detectors.heads.cutpaste.pasting import Patches, draw_rectangles, draw_scars, paste
from detectors.heads.cutpaste.second_stage import NU, SMALLEST_VARIANCE, VARIANCE_FLOOR, Gaussian, SupportVectors
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.runtime.description import digest_of
from detectors.runtime.export import export_detector
from detectors.runtime.exported import load_exported

SMALL = {"batch": 4, "steps": 3, "epochs": 3}
GRIDS = {8: (6, 10), 16: (3, 5)}


def make_features(images: int = 10, *, seed: int = 0) -> Features:
    """Smooth maps of 3 and 5 channels, with noise."""
    maps = {}
    for stride, (height, width) in GRIDS.items():
        y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
        plain = torch.stack([(3 * y + k * x).sin() for k in range(stride // 4 + 1)], dim=0).flatten(1).T
        noise = torch.randn(*plain.shape, images, generator=seeded("test", seed, str(stride)))
        maps[stride] = (plain[..., None] + 0.1 * noise).contiguous()
    return Features(maps=maps, grids=GRIDS, image_size=(48, 80))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(first: Cutpaste, second: Cutpaste) -> bool:
    mine, theirs = first.export_tensors(), second.export_tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- what is pasted


def test_a_rectangle_is_an_exact_copy_and_nothing_else_changes():
    values = torch.randn(1, 2, 7, 9, generator=generator())
    factor = torch.tensor([[1.0, 0.9]])
    patches = Patches(torch.tensor([[2, 3]]), torch.tensor([[4, 1]]), torch.tensor([[0, 6]]), torch.zeros(1), factor)
    before, pasted = values.clone(), paste(values, patches)
    wanted = values.clone()
    wanted[:, :, 0:2, 6:9] = values[:, :, 4:6, 1:4] * factor[:, :, None, None]
    assert torch.equal(pasted, wanted)
    assert torch.equal(values, before)


def test_a_quarter_turn_turns_the_patch():
    values = torch.arange(81.0).view(1, 1, 9, 9)
    patches = Patches(
        torch.tensor([[3, 3]]),
        torch.tensor([[0, 0]]),
        torch.tensor([[5, 4]]),
        torch.tensor([math.pi / 2]),
        torch.ones(1, 1),
    )
    wanted = values.clone()
    # Clockwise or not, rows become columns: the middle stays.
    cut = values[0, 0, 0:3, 0:3]
    found = paste(values, patches)
    assert torch.equal(found[0, 0, 5:8, 4:7], torch.rot90(cut, 1)) or torch.equal(
        found[0, 0, 5:8, 4:7], torch.rot90(cut, -1)
    )
    wanted[0, 0, 5:8, 4:7] = found[0, 0, 5:8, 4:7]
    assert torch.equal(found, wanted)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), scar=st.booleans(), seed=st.integers(0, 99))
def test_patches_fit_any_grid_and_change_their_own_place_alone(height, width, scar, seed):
    grid, count = (height, width), 5
    if scar:
        patches = draw_scars(count, 2, grid, generator=generator(seed))
    else:
        patches = draw_rectangles(count, 2, grid, largest_area=0.15, generator=generator(seed))
    for place in (patches.source, patches.target):
        assert int(place.min()) >= 0
        assert bool((place + patches.size <= torch.tensor(grid)).all())
    assert int(patches.size.min()) >= 1
    assert float((patches.factor - 1).abs().max()) <= 0.1 + 1e-6
    # Positions carry their own number, so that a pasted one shows where it is from.
    values = torch.arange(1.0, height * width + 1).view(1, 1, height, width).repeat(count, 1, 1, 1)
    plain = patches._replace(factor=torch.ones(count, 1))
    changed = paste(values, patches._replace(factor=torch.full((count, 1), -1.0))) < 0
    pasted = paste(values, plain)
    assert torch.equal(pasted[~changed], values[~changed])
    for index in range(count):
        own = changed[index, 0]
        assert int(own.sum()) >= 1
        found = pasted[index, 0][own].long() - 1
        (top, left), (tall, wide) = patches.source[index].tolist(), patches.size[index].tolist()
        assert bool(((found // width >= top) & (found // width < top + tall)).all())
        assert bool(((found % width >= left) & (found % width < left + wide)).all())
        if not scar:
            assert int(own.sum()) == tall * wide


def test_rectangles_have_the_papers_areas_and_aspect_ratios():
    patches = draw_rectangles(2000, 1, (256, 256), largest_area=0.15, generator=generator())
    height, width = patches.size.T.double()
    area, ratio = height * width / 256**2, height / width
    assert 0.019 < float(area.min()) < 0.025
    assert 0.145 < float(area.max()) < 0.155
    assert 0.29 < float(ratio.min()) < 0.32
    assert 3.1 < float(ratio.max()) < 3.4
    assert float(patches.angle.abs().max()) == 0


def test_scars_have_the_papers_sides_and_shrink_with_the_grid():
    large = draw_scars(2000, 1, (256, 256), generator=generator())
    assert (int(large.size[:, 0].min()), int(large.size[:, 0].max())) == (10, 25)
    assert (int(large.size[:, 1].min()), int(large.size[:, 1].max())) == (2, 16)
    assert math.pi / 4 - 0.01 < float(large.angle.abs().max()) <= math.pi / 4
    small = draw_scars(2000, 1, (32, 32), generator=generator())
    assert (int(small.size[:, 0].min()), int(small.size[:, 0].max())) == (1, 3)
    assert (int(small.size[:, 1].min()), int(small.size[:, 1].max())) == (1, 2)


def test_the_same_generator_draws_the_same():
    for draw in (lambda g: draw_scars(6, 3, (8, 9), generator=g),
                 lambda g: draw_rectangles(6, 3, (8, 9), largest_area=0.3, generator=g)):  # fmt: skip
        first, second, other = draw(generator(1)), draw(generator(1)), draw(generator(2))
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))
        assert not torch.equal(first.factor, other.factor)


# --- second stages


def embeddings(count: int = 60, size: int = 6, *, seed: int = 0) -> torch.Tensor:
    mixing = torch.randn(size, size, generator=generator(7), dtype=torch.double)
    return torch.randn(count, size, generator=generator(seed), dtype=torch.double) @ mixing + 3


def test_the_density_is_scipys_mahalanobis_distance_under_ledoit_wolf():
    z, maps = embeddings(), torch.randn(5, 6, 3, 4, generator=generator(1)) + 3
    covariance = LedoitWolf().fit(z.numpy()).covariance_
    covariance += np.eye(6) * (VARIANCE_FLOOR * covariance.diagonal().mean() + SMALLEST_VARIANCE)
    precision = np.linalg.inv(covariance)
    wanted = [mahalanobis(one, z.numpy().mean(axis=0), precision) for one in maps.mean(dim=(2, 3)).numpy()]
    np.testing.assert_allclose(Gaussian.fitted_to(z)(maps)[0].numpy(), wanted, rtol=1e-4)


def test_the_one_class_svm_is_scikit_learns():
    z, maps = embeddings(), torch.randn(9, 6, 2, 2, generator=generator(1)) * 4 + 3
    machine = OneClassSVM(kernel="rbf", gamma="scale", nu=NU).fit(z.numpy())
    stage = SupportVectors.fitted_to(z)
    decision = machine.decision_function(maps.mean(dim=(2, 3)).double().numpy())
    rho = float(machine.offset_[0])
    scores = stage(maps)[0].double()
    np.testing.assert_allclose(rho * (-scores).exp().numpy() - rho, decision, rtol=1e-3, atol=1e-3)
    assert ((scores > 0).numpy() == (decision < 0)).all()
    assert {True, False} == set((decision < 0).tolist())


def test_the_svms_score_goes_on_where_its_decision_ends():
    z = embeddings()
    scores = SupportVectors.fitted_to(z)(torch.tensor([1e2, 1e4]).view(2, 1, 1, 1).expand(2, 6, 2, 2))[0]
    assert bool(torch.isfinite(scores).all())
    assert float(scores[1]) > 100 * float(scores[0]) > 0


@pytest.mark.parametrize("kind", [Gaussian, SupportVectors])
def test_the_map_is_grad_cam_of_the_score(kind):
    stage = kind.fitted_to(embeddings()).double()
    maps = (torch.randn(3, 6, 4, 5, generator=generator(1)) * 3 + 3).double().requires_grad_()
    scores, relevance = stage(maps)
    gradient = torch.autograd.grad(scores.sum(), maps)[0].sum(dim=(2, 3), keepdim=True)
    apart = maps - stage.mean[:, None, None]
    torch.testing.assert_close(relevance, (gradient * apart).sum(dim=1).relu(), rtol=1e-5, atol=1e-6)
    if kind is Gaussian:
        torch.testing.assert_close((gradient * apart).sum(dim=1).mean(dim=(1, 2)), scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Gaussian, SupportVectors])
@pytest.mark.parametrize("count", [1, 4])
def test_normals_that_are_all_the_same_leave_a_finite_stage(kind, count):
    stage = kind.fitted_to(torch.full((count, 3), 2.0, dtype=torch.double))
    maps = torch.full((2, 3, 2, 2), 2.0)
    maps[1] += 0.5
    scores, relevance = stage(maps)
    assert bool(torch.isfinite(scores).all() and torch.isfinite(relevance).all())
    assert float(scores[0]) < float(scores[1])


# --- networks


@pytest.mark.parametrize(
    ("stride", "grid", "last"),
    [(2, (128, 96), (8, 6)), (8, (32, 32), (8, 8)), (32, (5, 7), (5, 7)), (8, (1, 1), (1, 1))],
)
def test_the_tail_ends_at_the_stride_of_most_backbones(stride, grid, last):
    assert Tail(3, stride)(torch.zeros(1, 3, *grid)).shape[2:] == last


def test_channels_are_standardised_by_the_normals_and_a_constant_one_is_no_trouble():
    features = make_features()
    features.maps[16][:, 1] = 4.0
    network = Network(torch.nn.Identity(), 8)
    network.standardise_to(features)
    assert float(network.deviation.min()) > 0
    found = network(torch.cat([values.permute(2, 1, 0)[:, :, :15, None] for values in features.maps.values()], dim=1))
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[:, 4], torch.zeros_like(found[:, 4]), atol=1e-4, rtol=0)


def test_weights_follow_the_seed_alone():
    torch.manual_seed(1)
    first = Cutpaste(**SMALL).fit(make_features(), FitContext(seed=3))
    torch.manual_seed(2)
    assert same(first, Cutpaste(**SMALL).fit(make_features(), FitContext(seed=3)))
    assert not same(first, Cutpaste(**SMALL).fit(make_features(), FitContext(seed=4)))


# --- training


def test_training_tells_the_classes_apart():
    features = make_features(24)
    losses = [
        Cutpaste(variant="normal-vs-patch", largest_area=0.4, batch=16, steps=15, epochs=epochs)
        .fit(features, FitContext())
        .diagnostics["train_loss"]
        for epochs in (1, 6)
    ]
    assert losses[1] < losses[0] - 0.1


@pytest.mark.parametrize(("variant", "classes"), [("normal-vs-patch", 2), ("scar", 2), ("3way", 3)])
@pytest.mark.parametrize("second_stage", ["gaussian", "ocsvm"])
def test_every_variant_trains_and_scores(variant, classes, second_stage):
    head = Cutpaste(**SMALL, variant=variant, second_stage=second_stage)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = cutpaste_training.Classifier.forward
        patch.setattr(cutpaste_training.Classifier, "forward", lambda one, x: seen.append(len(x)) or original(one, x))
        head.fit(make_features(), FitContext())
    assert set(seen) == {4 * classes}
    maps, scores = head.score(make_features(3, seed=1))
    assert maps.shape == (3, 6, 10)
    assert float(maps.min()) >= 0
    assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("network", ["tail", "resnet10t@random"])
def test_short_memory_trains_alike(network):
    whole = Cutpaste(**SMALL, network=network).fit(make_features(), FitContext())
    with working_memory.halved(9):
        pieces = Cutpaste(**SMALL, network=network).fit(make_features(), FitContext())
    assert pieces.diagnostics["train_loss"] == pytest.approx(whole.diagnostics["train_loss"], rel=1e-4)


def test_the_catalog_loads_neither_lightning_nor_scikit_learn():
    code = "import sys, detectors.heads.cutpaste.head; print(*{'pytorch_lightning', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("network", ["tail", "mobilenetv3_small_100@random"])
@pytest.mark.parametrize("at", [2, 3])
def test_a_resumed_training_equals_one_without_interruption(tmp_path, network, at):
    def fit(values: list[float], stop_at: int = 0) -> Cutpaste:
        def report(epoch: int, value: float) -> None:
            if epoch == stop_at:
                raise KeyboardInterrupt

        played = iter(values)
        context = FitContext(
            validate=lambda: next(played), report=report, checkpoint_dir=tmp_path if stop_at or resumed else None
        )
        return Cutpaste(**SMALL, network=network).fit(make_features(), context)

    values, resumed = [0.5, 0.7, 0.6], False
    whole = fit(values)
    with pytest.raises(KeyboardInterrupt):
        fit(values, stop_at=at)
    assert (tmp_path / training.CHECKPOINT).is_file()
    resumed = True
    torch.manual_seed(99)
    again = fit(values[at - 1 :])
    assert same(again, whole)
    assert again.diagnostics == whole.diagnostics
    assert again.diagnostics["best_epoch"] == 2
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_that_is_too_large_is_reported():
    features = make_features()
    features.maps[8][3, 1, 2] = float("nan")
    with pytest.raises(NumericalError, match=r"cutpaste: .* lower it"):
        Cutpaste(**SMALL).fit(features, FitContext())


# --- the detector


def random_images(count: int, *, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, 64, 64]: soft stripes with noise."""
    stripes = 128 + 50 * torch.sin(torch.arange(64) / 4).expand(count, 3, 64, 64)
    return (stripes + 8 * torch.randn(count, 3, 64, 64, generator=generator(seed))).clamp(0, 255).to(torch.uint8)


def fitted(**settings) -> Detector:
    head = Cutpaste(**{"batch": 4, "steps": 2, "epochs": 2} | settings)
    return Detector(build_backbone("pixels", [2]), head, image_size=(64, 64)).fit(random_images(6))


def both(detector: Detector, images: torch.Tensor) -> tuple[Prediction, Prediction]:
    return detector(images), Prediction(*(torch.cat(parts) for parts in zip(
        *((one.scores, one.maps) for one in (detector(image[None]) for image in images)), strict=True)))  # fmt: skip


@pytest.mark.parametrize("network", ["mobilenetv3_small_100@random", "resnet10t@random", "tail"])
def test_images_themselves_are_scored_end_to_end(network):
    detector = fitted(network=network)
    together, alone = both(detector, random_images(3, seed=1))
    assert together.maps.shape == (3, 64, 64)
    assert detector.head.grid == (32, 32)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.maps, alone.maps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("second_stage", ["gaussian", "ocsvm"])
@pytest.mark.parametrize("network", ["mobilenetv3_small_100@random", "tail"])
def test_a_saved_detector_scores_exactly_alike(tmp_path, second_stage, network):
    detector = fitted(second_stage=second_stage, network=network)
    save_artifact(Artifact(detector), tmp_path / "saved")
    loaded = load_artifact(tmp_path / "saved").detector
    images = random_images(3, seed=1)
    assert torch.equal(loaded(images).scores, detector(images).scores)
    assert torch.equal(loaded(images).maps, detector(images).maps)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    tensors = fitted().head.export_tensors()
    with pytest.raises(ValueError, match="do not fit the settings"):
        Cutpaste(network="resnet10t@random").import_tensors(tensors)
    with pytest.raises(ValueError, match="shape"):
        Cutpaste().import_tensors(tensors | {"shape": torch.tensor([0, 1, 2])})
    save_artifact(Artifact(fitted()), tmp_path / "saved")
    path = tmp_path / "saved" / "detector.json"
    data = json.loads(path.read_text()) | {"settings": {"second_stage": "ocsvm"}}
    path.write_text(json.dumps(data | {"sha256": digest_of(data)}))
    with pytest.raises(InputError, match="do not fit"):
        load_artifact(tmp_path / "saved")


@pytest.mark.parametrize(("network", "second_stage"), [("tail", "ocsvm"), ("resnet10t@random", "gaussian")])
def test_onnx_scores_as_the_detector_does(tmp_path, network, second_stage):
    artifact = Artifact(fitted(network=network, second_stage=second_stage))
    images = torch.cat([random_images(2, seed=1), 255 - random_images(1, seed=2)])
    comparison = export_detector(artifact, tmp_path / "x.onnx", "onnx", images=images)
    assert comparison.relative < 1e-3
    found, wanted = load_exported(tmp_path / "x.onnx").predict(images), artifact.predict(images)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.maps, wanted.maps, rtol=1e-3, atol=1e-3 * float(wanted.maps.abs().max()))


# --- from pretrained weights


def pretrained(**settings) -> Cutpaste:
    return Cutpaste(**{"network": "tf_efficientnet_lite0", "batch": 2, "steps": 1, "epochs": 1} | settings)


def pixels(images: torch.Tensor) -> Features:
    return Detector(build_backbone("pixels", [1]), Cutpaste(), image_size=(64, 64)).extract(images)


def test_training_starts_from_the_weights_and_keeps_their_statistics():
    head = pretrained(learning_rate=1e-5).fit(pixels(random_images(4)), FitContext())
    found, wanted = head._whole.body.state_dict(), load_network("tf_efficientnet_lite0").state_dict()
    assert found.keys() == wanted.keys()
    moved = 0
    for name, tensor in wanted.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
            moved += not torch.equal(found[name], tensor)
    assert moved > 50


def test_the_network_sees_images_as_it_was_trained_on():
    """As the backbone of the same name does, whose last map is that of the last stage."""
    images = random_images(2)
    head = pretrained()
    head._make_network((64, 64, 1), 3, seed=0)
    head._whole.start_from("tf_efficientnet_lite0", weights_dir=None)
    stages = head._whole.body
    stages.conv_head = stages.bn2 = torch.nn.Identity()
    with torch.no_grad():
        found = head._whole(pixels(images).joined(slice(0, 2)))
        wanted = build_backbone("tf_efficientnet_lite0", [32])(images)[32]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_pretrained_network_scores_each_image_by_itself_and_is_saved_whole(tmp_path):
    detector = Detector(build_backbone("pixels", [1]), pretrained(), image_size=(64, 64)).fit(random_images(4))
    images = random_images(3, seed=1)
    together, alone = both(detector, images)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-3, atol=1e-3)
    save_artifact(Artifact(detector), tmp_path / "saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "detectors.heads.cutpaste.network.load_network",
            lambda *args, **options: pytest.fail("weights are in the artifact"),
        )
        loaded = load_artifact(tmp_path / "saved").detector
    assert torch.equal(loaded(images).scores, together.scores)


def test_weights_come_from_the_contexts_folder(tmp_path):
    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    save_file(state, tmp_path / "resnet10t.safetensors")
    context = FitContext(weights_dir=tmp_path)
    head = pretrained(network="resnet10t", learning_rate=1e-5).fit(pixels(random_images(4)), context)
    torch.testing.assert_close(
        head._whole.body.state_dict()["conv1.0.weight"], state["conv1.0.weight"], rtol=0, atol=1e-4
    )


def test_what_a_pretrained_network_cannot_start_from_is_reported(tmp_path, monkeypatch):
    monkeypatch.delenv("STUDY_WEIGHTS", raising=False)
    with pytest.raises(InputError, match="no weights for backbone resnet10t on this machine"):
        pretrained(network="resnet10t").fit(pixels(random_images(2)), FitContext())
    with pytest.raises(InputError, match="give it `backbone: pixels` and one layer"):
        pretrained().fit(make_features(4), FitContext())
    (tmp_path / "resnet10t.safetensors").write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(InputError, match="not a readable weights file"):
        pretrained(network="resnet10t").fit(pixels(random_images(2)), FitContext(weights_dir=tmp_path))
