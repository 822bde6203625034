"""Autoencoder, VAE and GANomaly: their layers, SSIM and losses against references, their training, their maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.distributions import Normal, kl_divergence

from detectors import training, working_memory
from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext
from detectors.catalog import head_class
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import make_splits
from detectors.detector import Detector
from detectors.errors import NumericalError
from detectors.features import Features
from detectors.heads.ganomaly.training import AdversarialTraining
from detectors.heads.reconstruction.convolutional import Decoder, Encoder, Plan
from detectors.heads.reconstruction.network import Scale, Ssim
from detectors.heads.vae.network import divergence
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.runtime.export import DetectorGraph
from detectors.scoring.metrics import auroc
from detectors.training import CHECKPOINT
from tests.helpers.trained_heads import same, weights_of
from tests.helpers.widgets import draw_widget

NAMES = ("autoencoder", "vae", "ganomaly")
SMALL: dict[str, Any] = {"width": 8, "latent": 8, "batch_size": 4, "epochs": 3}
VARIANTS = [
    ("autoencoder", {"loss": "ssim"}),
    ("autoencoder", {"loss": "l2", "bottleneck": "position", "depth": 1}),
    ("vae", {"map": "l2"}),
    ("vae", {"map": "ssim", "bottleneck": "position"}),
    ("ganomaly", {"score": "latent"}),
    ("ganomaly", {"score": "residual", "bottleneck": "position"}),
]


def make_features(images: int = 10, *, grid=(12, 9), channels: int = 5, seed: int = 0) -> Features:
    """Two strides, mixtures of three smooth patterns, with a little noise."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(77)
    grids = {4: grid, 8: (-(-grid[0] // 2), -(-grid[1] // 2))}
    maps = {}
    for stride, (height, width) in grids.items():
        patterns = torch.randn(height * width, channels, 3, generator=fixed)
        noise = torch.randn(height * width, channels, images, generator=generator)
        weights = torch.randn(3, images, generator=torch.Generator().manual_seed(seed + 1))
        maps[stride] = 4 + patterns @ weights + 0.05 * noise
    return Features(maps=maps, grids=grids, image_size=(4 * grid[0], 4 * grid[1]))


def random_images(count: int, *, dent: bool = False, seed: int = 0, size: int = 64) -> torch.Tensor:
    drawn = [draw_widget(seed + index, dent=dent, size=size)[0] for index in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


# --- layers


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (4, 4), (5, 9), (13, 8), (64, 33)])
def test_encoder_and_decoder_take_any_grid(grid, whole):
    plan = Plan(channels=5, grid=grid, width=8, depth=6, code=3, whole=whole)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, *grid, generator=generator)
    code = Encoder(plan, generator=generator)(values)
    assert code.shape == (2, *plan.code_shape)
    assert Decoder(plan, generator=generator)(code).shape == values.shape


@pytest.mark.parametrize(
    ("grid", "depth", "bottom"),
    [((64, 64), 6, (4, 4)), ((64, 64), 2, (16, 16)), ((9, 17), 6, (3, 5)), ((3, 40), 6, (3, 40)), ((1, 1), 6, (1, 1))],
)
def test_the_grid_is_halved_until_it_is_small(grid, depth, bottom):
    assert Plan(channels=1, grid=grid, width=8, depth=depth, code=1, whole=True).bottom == bottom


def test_fresh_layers_keep_the_scale_of_what_goes_through():
    plan = Plan(channels=3, grid=(32, 32), width=32, depth=6, code=100, whole=True)
    generator = torch.Generator().manual_seed(0)
    code = Encoder(plan, generator=generator)(torch.randn(4, 3, 32, 32, generator=generator))
    decoded = Decoder(plan, generator=generator)(code)
    for values in (code, decoded):
        assert 0.3 < float(values.detach().std()) < 3


# --- the residual


def reference_ssim(x: np.ndarray, y: np.ndarray, *, span: float, reach: int) -> np.ndarray:
    """Equation 13 of Wang et al., as scikit-image computes it with `gaussian_weights` and without sample covariances."""

    def averaged(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="reflect", radius=reach)

    mean_x, mean_y = averaged(x), averaged(y)
    variance_x, variance_y = averaged(x * x) - mean_x**2, averaged(y * y) - mean_y**2
    covariance = averaged(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return above / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))


@pytest.mark.parametrize(("grid", "reach"), [((24, 31), 5), ((7, 16), 3), ((2, 5), 0), ((1, 1), 0)])
@pytest.mark.parametrize("lowest", [0.0, -3.0])
def test_ssim_is_that_of_the_textbook(grid, reach, lowest):
    generator = torch.Generator().manual_seed(1)
    normals = lowest + 4 * torch.rand(8, 2, *grid, generator=generator)
    features = Features.from_pyramid({4: normals}, (4 * grid[0], 4 * grid[1]))
    scale = Scale(2)
    scale.fit_to(features)
    x = lowest + 4 * torch.rand(3, 2, *grid, generator=generator)
    y = x + torch.randn(3, 2, *grid, generator=generator)
    found = Ssim(grid)(scale(x), scale(y), scale)
    low, high = normals.amin(dim=(0, 2, 3)), normals.amax(dim=(0, 2, 3))
    for image in range(3):
        for channel in range(2):
            # Only values below zero are moved: images are compared as they are.
            below = min(0.0, float(low[channel]))
            wanted = reference_ssim(
                x[image, channel].double().numpy() - below,
                y[image, channel].double().numpy() - below,
                span=float(high[channel] - low[channel]),
                reach=reach,
            )
            np.testing.assert_allclose(found[image, channel].numpy(), wanted, rtol=1e-3, atol=2e-4)


def test_ssim_of_the_same_is_one_and_of_a_constant_finite():
    features = Features.from_pyramid({4: torch.full((3, 2, 16, 16), 0.5)}, (64, 64))
    scale = Scale(2)
    scale.fit_to(features)
    x = scale(torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(Ssim((16, 16))(x, x, scale), torch.ones(1, 2, 16, 16))
    found = Ssim((16, 16))(x, torch.zeros_like(x), scale)
    assert bool(torch.isfinite(found).all())
    assert float(found.max()) < 1


def test_channels_are_standardised_and_constant_ones_not_blown_up():
    features = make_features()
    features.maps[4][:, 2] = 7.0
    scale = Scale(10)
    scale.fit_to(features)
    values = scale(torch.cat([features.pyramid()[4], torch.zeros(10, 5, *features.grids[4])], dim=1))[:, :5]
    others = [0, 1, 3, 4]
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(values[:, others].std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    assert float(1 / scale.deviation[2]) < 1000


def test_the_l2_map_is_the_mean_squared_difference():
    head = head_class("autoencoder")(**SMALL, loss="l2").fit(make_features(), FitContext())
    features = make_features(3, seed=5)
    with torch.no_grad():
        values = head.network.scale(features.joined())
        wanted = (values - head.network.reconstruct(values)).square().mean(dim=1)
    torch.testing.assert_close(head.score(features)[0], wanted)


def test_the_divergence_is_the_closed_form():
    generator = torch.Generator().manual_seed(2)
    mean, log_variance = (torch.randn(4, 6, 2, 3, generator=generator, dtype=torch.double) for _ in range(2))
    wanted = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence(mean, log_variance), wanted)
    assert float(divergence(torch.zeros(1, 3), torch.zeros(1, 3))) == 0


# --- the detectors


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
@pytest.mark.parametrize("grid", [(1, 1), (13, 6)])
def test_any_grid_trains_and_scores(name, settings, grid):
    head = head_class(name)(**SMALL | {"epochs": 1}, **settings).fit(make_features(grid=grid), FitContext())
    maps, scores = head.score(make_features(3, grid=grid, seed=4))
    assert maps.shape == (3, *grid)
    assert bool(torch.isfinite(maps).all())
    assert (scores is not None) == (settings.get("score") == "latent")


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_residual_of_normals_it_never_saw(name):
    def residual(epochs: int) -> float:
        head = head_class(name)(**SMALL | {"epochs": epochs, "learning_rate": 5e-3}).fit(
            make_features(16), FitContext()
        )
        return float(head.score(make_features(6, seed=3))[0].mean())

    assert residual(15) < 0.7 * residual(1)


def test_a_larger_beta_pulls_the_codes_to_the_prior():
    def mean_divergence(beta: float) -> float:
        head = head_class("vae")(**SMALL | {"epochs": 20, "learning_rate": 5e-3}, beta=beta).fit(
            make_features(16), FitContext()
        )
        with torch.no_grad():
            return float(divergence(*head.network.posterior(head.network.scale(make_features(16).joined()))).mean())

    assert mean_divergence(100.0) < 0.5 * mean_divergence(0.1)


def test_noise_is_drawn_in_training_only():
    features = make_features(4)
    head = head_class("vae")(**SMALL).fit(features, FitContext())
    head.train()
    torch.testing.assert_close(head.score(features)[0], head.score(features)[0], rtol=0, atol=0)


def test_the_latent_score_is_the_distance_of_the_codes():
    head = head_class("ganomaly")(**SMALL, score="latent").fit(make_features(), FitContext())
    network, features = head.network, make_features(3, seed=5)
    with torch.no_grad():
        values = network.scale(features.joined())
        code = network.encoder(values)
        wanted = (code - network.second_encoder(network.decoder(code))).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(head.score(features)[1], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_short_memory_trains_alike(name):
    settings = SMALL | {"epochs": 1}
    plain = head_class(name)(**settings).fit(make_features(), FitContext())
    with working_memory.halved(8):
        cut = head_class(name)(**settings).fit(make_features(), FitContext())
    torch.testing.assert_close(weights_of(cut), weights_of(plain), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_does_not_matter(name):
    torch.manual_seed(5)
    first = head_class(name)(**SMALL).fit(make_features(), FitContext(seed=1))
    torch.manual_seed(6)
    second = head_class(name)(**SMALL).fit(make_features(), FitContext(seed=1))
    assert same(weights_of(first), weights_of(second))
    assert not same(weights_of(first), weights_of(head_class(name)(**SMALL).fit(make_features(), FitContext(seed=2))))


def test_discriminator_and_generator_both_learn(monkeypatch):
    seen: dict[str, Any] = {}
    begin = AdversarialTraining.begin_epoch

    def keep(module: training.Training) -> None:
        seen.setdefault("before", {name: value.clone() for name, value in module.model.state_dict().items()})
        seen["model"] = module.model
        begin(module)

    monkeypatch.setattr(AdversarialTraining, "begin_epoch", keep)
    head_class("ganomaly")(**SMALL).fit(make_features(), FitContext())
    after = seen["model"].state_dict()
    for part in ("network.encoder", "network.decoder", "network.second_encoder", "discriminator"):
        own = [name for name in after if name.startswith(part) and name.endswith("weight")]
        assert own
        assert all(not torch.equal(after[name], seen["before"][name]) for name in own)


@pytest.mark.parametrize("at", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_training_equals_one_without_interruption(name, at, tmp_path):
    values = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.65}

    def context(first: int, *, stop_at: int = 0, **more: Any) -> FitContext:
        epochs = iter(range(first, 5))

        def report(epoch: int, value: float) -> None:
            if epoch == stop_at:
                raise KeyboardInterrupt

        return FitContext(validate=lambda: values[next(epochs)], report=report, **more)

    settings = SMALL | {"epochs": 4}
    whole = head_class(name)(**settings).fit(make_features(), context(1))
    with pytest.raises(KeyboardInterrupt):
        head_class(name)(**settings).fit(make_features(), context(1, stop_at=at, checkpoint_dir=tmp_path))
    assert (tmp_path / CHECKPOINT).is_file()
    torch.manual_seed(99)
    head = head_class(name)(**settings).fit(make_features(), context(at, checkpoint_dir=tmp_path))
    assert same(weights_of(head), weights_of(whole))
    assert head.diagnostics == whole.diagnostics
    assert head.diagnostics["best_epoch"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_is_reported(name, monkeypatch):
    features = make_features()
    head = head_class(name)(**SMALL)
    monkeypatch.setattr(Scale, "forward", lambda scale, values: values * float("nan"))
    with pytest.raises(NumericalError, match=f"{name}: the training loss is not finite"):
        head.fit(features, FitContext())


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_do_not_fit_are_refused(name):
    tensors = weights_of(head_class(name)(**SMALL).fit(make_features(), FitContext()))
    with pytest.raises(ValueError, match="do not fit the settings"):
        head_class(name)(**SMALL | {"width": 16}).import_tensors(tensors)
    with pytest.raises(ValueError, match="shape"):
        head_class(name)(**SMALL).import_tensors(tensors | {"shape": torch.tensor([3, 0, 4])})


# --- on images


@pytest.mark.parametrize(
    ("name", "settings"), [("autoencoder", {"loss": "ssim"}), ("vae", {}), ("ganomaly", {"score": "residual"})]
)
def test_on_pixels_a_dent_is_found_and_all_is_saved_and_exported(name, settings, tmp_path):
    head = head_class(name)(**SMALL | {"width": 16, "epochs": 10, "learning_rate": 5e-3}, **settings)
    detector = Detector(build_backbone("pixels", [4]), head, image_size=(64, 64), smoothing_sigma=2.0)
    detector.fit(random_images(24))
    good, dents = random_images(6, seed=100), random_images(6, dent=True, seed=200)
    found = detector(dents)
    masks = np.stack([draw_widget(200 + index, dent=True)[1] for index in range(6)])
    assert auroc(found.maps.flatten().numpy(), masks.flatten()) > 0.9
    scores = torch.cat([detector(good).scores, found.scores])
    assert auroc(scores.numpy(), np.repeat([0, 1], 6)) > 0.9
    again = load_artifact(save_artifact(Artifact(detector), tmp_path / "saved")).detector(dents)
    assert torch.equal(again.maps, found.maps)
    assert torch.equal(again.scores, found.scores)
    with torch.no_grad():
        scores, maps = DetectorGraph(detector)(dents)
    torch.testing.assert_close(scores, found.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps, found.maps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_a_planted_defect_stands_out_where_it_is(name):
    head = head_class(name)(**SMALL | {"epochs": 12, "learning_rate": 5e-3}).fit(make_features(16), FitContext())
    features = make_features(1, seed=6)
    grid = features.grids[4]
    features.maps[4].unflatten(0, grid)[3:6, 4:7] += 6.0
    highest = int(head.score(features)[0].argmax())
    assert 3 <= highest // grid[1] < 6
    assert 4 <= highest % grid[1] < 7


@pytest.mark.real_images
def test_screws_with_a_planted_patch_have_it_in_the_map(real_data):
    splits = make_splits(read_mvtec(real_data / "MVTecAD", "screw"), protocol="holdout", image_size=(64, 64))
    head = head_class("autoencoder")(
        **SMALL | {"width": 16, "latent": 32, "epochs": 6, "learning_rate": 5e-3}, loss="l2"
    )
    detector = Detector(build_backbone("pixels", [2]), head, image_size=(64, 64), smoothing_sigma=2.0)
    detector.fit(splits.train.images(range(0, 320, 4)))
    images = splits.train.images(range(1, 320, 40)).clone()
    images[:, :, 4:12, 50:58] = 0
    highest = detector(images).maps.flatten(1).argmax(dim=1)
    inside = ((highest // 64 - 8).abs() < 6) & ((highest % 64 - 54).abs() < 6)
    assert float(inside.float().mean()) > 0.8
