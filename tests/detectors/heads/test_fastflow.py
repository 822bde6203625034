"""FastFlow: the flow against autograd, its training, its scores, vision transformers under it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from FrEIA.modules import AllInOneBlock
from torch import nn

from detectors import training, working_memory
from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext, seeded
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import make_splits
from detectors.detector import Detector
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.flows.convolutional import ConvolutionalFlow
from detectors.heads.fastflow.head import Fastflow
from detectors.runtime.artifact import Artifact, load_artifact, save_artifact
from detectors.runtime.export import export_detector
from detectors.scoring.evaluation import single_metric
from detectors.training import CHECKPOINT
from tests.helpers.trained_heads import same, weights_of

SMALL = {"flow_steps": 2, "batch_size": 4, "learning_rate": 0.01}
GRIDS = {4: (6, 10), 8: (3, 5)}
CHANNELS = {4: 4, 8: 7}


def make_flow(channels: int = 4, kernels=(3, 1, 3), *, seed: int = 0) -> ConvolutionalFlow:
    """A float64 flow, none of whose parameters is at its neutral start."""
    generator = torch.Generator().manual_seed(seed)
    flow = ConvolutionalFlow(channels, kernels=kernels, hidden_ratio=1.5, clamp=1.9, generator=generator).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
        flow.mean.normal_(generator=generator)
        flow.deviation.uniform_(0.5, 2, generator=generator)
    return flow


def numbers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def make_features(images: int = 12, *, grids=GRIDS, seed: int = 0, scale: float = 1.0) -> Features:
    """Channels that hang together."""
    maps = {}
    for stride, (height, width) in grids.items():
        channels = CHANNELS[stride]
        mixing = torch.randn(channels, channels, generator=seeded("fastflow", 7, f"mixing {stride}"))
        noise = torch.randn(height * width, channels, images, generator=seeded("fastflow", seed, f"noise {stride}"))
        maps[stride] = (0.5 + scale * (mixing @ noise)).contiguous()
    return Features(maps=maps, grids=grids, image_size=(4 * grids[4][0], 4 * grids[4][1]))


# --- the flow


@pytest.mark.parametrize(
    ("channels", "grid", "kernels"), [(2, (1, 1), (3,)), (3, (2, 3), (3, 3)), (4, (3, 2), (3, 1, 3))]
)
def test_the_likelihood_is_that_of_the_full_jacobian(channels, grid, kernels):
    flow, x = make_flow(channels, kernels), numbers(1, channels, *grid)
    jacobian = torch.autograd.functional.jacobian(lambda own: flow.latent(own).flatten(), x).reshape(x.numel(), -1)
    # Of the standardised maps: without the standardisation's own determinant.
    standardising = grid[0] * grid[1] * flow.deviation.log().sum()
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(flow.latent(x)).sum()
    wanted = normal + torch.linalg.slogdet(jacobian).logabsdet + standardising
    torch.testing.assert_close(-flow.negative_log_likelihood(x)[0] * x.numel(), wanted)


def test_the_log_determinant_is_that_of_finite_differences():
    flow, x, step = make_flow(2, (3, 3)), numbers(1, 2, 2, 2), 1e-6
    columns = []
    for index in range(x.numel()):
        shift = torch.zeros(x.numel(), dtype=torch.double)
        shift[index] = step
        ends = [flow.sequence(x + sign * shift.view(x.shape))[0] for sign in (1, -1)]
        columns.append(((ends[0] - ends[1]) / (2 * step)).flatten())
    wanted = torch.linalg.slogdet(torch.stack(columns, dim=1)).logabsdet
    torch.testing.assert_close(flow.sequence(x)[1][0], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_the_inverse_leads_back(channels):
    flow, x = make_flow(channels), numbers(3, channels, 4, 5)
    z, log_determinant = flow.sequence(x)
    back, inverse_log_determinant = flow.sequence(z, rev=True)
    assert not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_determinant, -log_determinant)


def test_a_step_is_freias_all_in_one_block_with_its_permutation_as_an_index():
    step = make_flow(7).sequence[0]
    other = AllInOneBlock(
        [(7, 4, 5)], subnet_constructor=lambda *_: step.subnet, affine_clamping=1.9, global_affine_type="EXP"
    ).double()
    with torch.no_grad():
        other.global_scale.copy_(step.log_scale.view(1, 7, 1, 1))
        other.global_offset.copy_(step.offset.view(1, 7, 1, 1))
        other.w_perm.copy_(torch.eye(7, dtype=torch.double)[step.permutation][:, :, None, None])
    x = numbers(3, 7, 4, 5)
    for mine, theirs in zip(step([x]), other([x]), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("subnets", "areas"), [("3x3", 9 + 9 + 9), ("alternating", 9 + 1 + 9)])
def test_subnets_are_as_large_as_the_settings_say(subnets, areas):
    head = Fastflow(flow_steps=3, hidden_ratio=0.5, subnets=subnets)
    head._make_flows({8: 40}, (4, 4), seed=0)
    weights = sum(parameter.numel() for parameter in head.parameters() if parameter.ndim == 4)
    assert weights == areas * (20 * 10 + 10 * 40)


def test_channels_that_never_change_are_no_trouble():
    flow = ConvolutionalFlow(3, kernels=(3,), hidden_ratio=1.0, clamp=2.0, generator=torch.Generator().manual_seed(0))
    flow.standardise_to(Features(maps={8: torch.full((1, 3, 1), 7.0)}, grids={8: (1, 1)}, image_size=(8, 8)))
    assert bool(torch.isfinite(flow.latent(torch.full((1, 3, 1, 1), 9.0))).all())
    assert torch.equal(flow.deviation, torch.ones(3))


def test_layer_norm_takes_each_map_by_itself():
    features = make_features(6)
    head = Fastflow(**SMALL, normalization="layer", epochs=1).fit(features, FitContext())
    other = Features(
        maps={stride: 3 * values + 5 for stride, values in features.maps.items()},
        grids=features.grids,
        image_size=features.image_size,
    )
    torch.testing.assert_close(head.score(other)[0], head.score(features)[0], rtol=1e-3, atol=1e-4)
    assert all(torch.equal(flow.deviation, torch.ones(flow.channels)) for flow in head.flows.values())
    loaded = Fastflow(**SMALL, normalization="layer")
    loaded.import_tensors(weights_of(head))
    assert torch.equal(loaded.score(features)[0], head.score(features)[0])
    by_channel = Fastflow(**SMALL, epochs=1).fit(features, FitContext())
    assert not torch.allclose(by_channel.score(other)[0], by_channel.score(features)[0], rtol=0.1)


# --- training


def test_training_makes_normals_it_never_saw_more_likely():
    held_out, likelihoods = make_features(8, seed=1), []
    for epochs in (1, 15):
        head = Fastflow(**SMALL, epochs=epochs).fit(make_features(40), FitContext())
        with torch.no_grad():
            likelihoods.append(
                [
                    float(flow.negative_log_likelihood(held_out.channels_last(stride)).mean())
                    for stride, flow in head.flows.items()
                ]
            )
    assert all(later < earlier - 0.05 for earlier, later in zip(*likelihoods, strict=True))


def test_a_trained_flow_comes_close_to_the_entropy_of_a_gaussian():
    """The best that any density can reach is the entropy of the maps themselves."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    draws = torch.linalg.cholesky(covariance) @ torch.randn(16, 2, 400, generator=torch.Generator().manual_seed(0))
    features = Features(maps={8: draws}, grids={8: (4, 4)}, image_size=(32, 32))
    head = Fastflow(flow_steps=4, hidden_ratio=4.0, batch_size=40, learning_rate=0.02, epochs=15)
    head.fit(features, FitContext())
    best = 0.5 * math.log(2 * math.pi * math.e) + 0.25 * float(torch.logdet(covariance))
    assert best - 0.05 < head.diagnostics["train_loss"] < best + 0.1


def test_the_seed_alone_decides():
    torch.manual_seed(1)
    first = weights_of(Fastflow(**SMALL, epochs=2).fit(make_features(), FitContext(seed=3)))
    torch.manual_seed(2)
    assert same(first, weights_of(Fastflow(**SMALL, epochs=2).fit(make_features(), FitContext(seed=3))))
    assert not same(first, weights_of(Fastflow(**SMALL, epochs=2).fit(make_features(), FitContext(seed=4))))


@pytest.mark.parametrize("subnets", ["3x3", "alternating"])
def test_short_memory_trains_alike(subnets):
    scores = []
    for halvings in (0, 1, 5):
        with working_memory.halved(halvings):
            head = Fastflow(**SMALL, epochs=2, subnets=subnets).fit(make_features(9), FitContext())
            scores.append(head.score(make_features(5, seed=1))[0])
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumed_training_equals_one_without_interruption(tmp_path, at):
    values = (0.5, 0.7, 0.6)
    whole = Fastflow(**SMALL, epochs=3).fit(make_features(), FitContext(validate=iter(values).__next__))

    def interrupt(epoch: int, value: float) -> None:
        if epoch == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Fastflow(**SMALL, epochs=3).fit(
            make_features(), FitContext(validate=iter(values).__next__, report=interrupt, checkpoint_dir=tmp_path)
        )
    assert (tmp_path / CHECKPOINT).is_file() == (at > 1)
    torch.manual_seed(99)
    counted: list[float] = []
    rest = FitContext(validate=iter(values[at - 1 :]).__next__, checkpoint_dir=tmp_path, count_stored=counted.append)
    head = Fastflow(**SMALL, epochs=3).fit(make_features(), rest)
    assert same(weights_of(head), weights_of(whole))
    assert head.diagnostics == whole.diagnostics
    assert head.diagnostics["best_epoch"] == 2
    # The epochs that an earlier attempt did are part of what the training cost.
    assert len(counted) == (at > 1)
    assert all(seconds > 0 for seconds in counted)
    assert not list(tmp_path.iterdir())


def test_patience_and_a_stop_end_training(monkeypatch):
    monkeypatch.setattr(training, "ASK_EVERY", 0.0)
    values = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    head = Fastflow(**SMALL, epochs=5, patience=2).fit(make_features(), FitContext(validate=values.__next__))
    assert (head.diagnostics["epochs_trained"], head.diagnostics["best_epoch"]) == (4, 2)
    asked = iter([False, False, True])
    head = Fastflow(**SMALL, epochs=5).fit(make_features(), FitContext(should_stop=lambda: next(asked, True)))
    assert head.diagnostics["epochs_trained"] == 0


def test_what_cannot_be_learned_is_reported_in_one_line():
    features = make_features()
    features.maps[8][3, 2, 1] = float("nan")
    with pytest.raises(NumericalError, match=r"fastflow: .*epoch 1 at learning_rate=0\.01; lower it"):
        Fastflow(**SMALL, epochs=2).fit(features, FitContext())
    single = Features(maps={8: torch.zeros(4, 1, 3)}, grids={8: (2, 2)}, image_size=(16, 16))
    with pytest.raises(InputError, match="layer 8 has a single channel"):
        Fastflow(**SMALL).fit(single, FitContext())


# --- scores


@pytest.fixture(scope="module")
def fitted() -> Fastflow:
    return Fastflow(**SMALL, epochs=3).fit(make_features(40), FitContext())


@pytest.fixture(scope="module")
def by_latent() -> Fastflow:
    """The paper's score."""
    return Fastflow(**SMALL, epochs=3, score="latent").fit(make_features(40), FitContext())


def test_positions_add_up_to_the_likelihood_of_the_map():
    flow, x = make_flow(4, (3, 1, 3)), numbers(2, 4, 3, 2)
    whole = flow.surprise(x, likelihood=True).mean(dim=(1, 2)) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(whole, flow.negative_log_likelihood(x))


def test_the_likelihood_of_one_stride_is_the_score():
    head = Fastflow(**SMALL, epochs=1).fit(make_features(20).select([8]), FitContext())
    images = make_features(3, seed=1).select([8])
    wanted = head.flows[8].negative_log_likelihood(images.pyramid()[8]).detach() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(head.score(images)[0].mean(dim=(1, 2)), wanted, rtol=1e-4, atol=1e-5)


def test_the_papers_score_is_the_mean_over_strides_of_half_the_mean_square(by_latent):
    images, wanted = make_features(3, seed=1), torch.zeros(3, 6, 10)
    for stride, flow in by_latent.flows.items():
        maps = images.pyramid()[stride]
        level = flow.latent(maps).detach().square().sum(dim=1, keepdim=True) / (2 * CHANNELS[stride])
        wanted += nn.functional.interpolate(level, size=(6, 10), mode="bilinear", align_corners=False)[:, 0] / 2
    torch.testing.assert_close(by_latent.score(images)[0], wanted, rtol=1e-4, atol=1e-5)


def test_one_stride_orders_positions_as_the_papers_probability_does():
    head = Fastflow(**SMALL, epochs=1, score="latent").fit(make_features(20).select([4]), FitContext())
    images = make_features(3, seed=1).select([4])
    probability = torch.exp(-head.flows[4].latent(images.pyramid()[4]).detach().square().mean(dim=1) / 2)
    assert torch.equal(head.score(images)[0].flatten().argsort(), (-probability).flatten().argsort())


def test_the_further_off_the_higher_the_score_even_where_a_probability_is_nought(by_latent):
    scores = [float(by_latent.score(make_features(2, seed=1, scale=factor))[0].mean()) for factor in (1, 5, 50, 500)]
    assert all(math.isfinite(score) for score in scores)
    assert all(earlier < later for earlier, later in pairwise(scores))
    assert float(torch.exp(torch.tensor(-scores[-1]))) == 0.0


def test_a_change_at_one_position_shows_there(fitted):
    images = make_features(2, seed=1)
    images.maps[4][34, :, 1] += 30
    change = fitted.score(images)[0] - fitted.score(make_features(2, seed=1))[0]
    assert torch.equal(change[0], torch.zeros(6, 10))
    assert divmod(int(change[1].argmax()), 10) == (3, 4)


def test_what_was_learned_serves_images_of_any_size(fitted):
    large = {4: (12, 20), 8: (6, 10)}
    tensors = weights_of(fitted)
    assert all(value.shape[-2:] in ((3, 3), (1, 1)) for value in tensors.values() if value.ndim == 4)
    other = Fastflow(**SMALL)
    other.import_tensors(tensors | {"size": torch.tensor(large[4])})
    assert other.grid == large[4]
    scores = other.score(make_features(3, grids=large, seed=1))[0]
    assert scores.shape == (3, 12, 20)
    small = fitted.score(make_features(3, seed=1))[0]
    assert float(scores.mean()) == pytest.approx(float(small.mean()), rel=0.2)


def test_tensors_that_do_not_fit_are_refused(fitted):
    exported = weights_of(fitted)
    with pytest.raises(ValueError, match="stride 4 do not fit"):
        Fastflow(**SMALL | {"flow_steps": 3}).import_tensors(exported)
    with pytest.raises(ValueError, match="do not fit"):
        Fastflow(**SMALL, subnets="3x3").import_tensors(exported)
    with pytest.raises(ValueError, match="strides"):
        Fastflow(**SMALL).import_tensors({"size": exported["size"]})
    with pytest.raises(KeyError, match="size"):
        Fastflow(**SMALL).import_tensors({name: value for name, value in exported.items() if name != "size"})
    for call in (Fastflow(**SMALL).export_tensors, lambda: Fastflow(**SMALL).export_module({})):
        with pytest.raises(RuntimeError, match="not fitted"):
            call()


# --- on a vision transformer


def test_a_vision_transformer_from_images_to_onnx(tmp_path):
    size = (64, 96)
    images = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector = Detector(build_backbone("test_vit@random", [16]), Fastflow(**SMALL, epochs=1), image_size=size)
    wanted = detector.fit(images)(images)
    assert detector.head.grid == (4, 6)
    artifact = Artifact(detector, np.sort(wanted.scores.double().numpy()), {})
    loaded = load_artifact(save_artifact(artifact, tmp_path / "detector")).detector
    assert torch.equal(loaded(images).scores, wanted.scores)
    assert torch.equal(loaded(images).maps, wanted.maps)
    found = export_detector(artifact, tmp_path / "detector.onnx", "onnx", images=images[:3])
    assert found.relative < 1e-4


@pytest.mark.real_images
def test_defects_of_real_screws_are_found(real_data):
    data_set = read_mvtec(real_data / "MVTecAD", "screw")
    splits = make_splits(data_set, protocol="holdout", image_size=(256, 256))
    head = Fastflow(learning_rate=0.01, batch_size=8, epochs=12)
    detector = Detector(build_backbone("tf_efficientnet_lite0", [16]), head, image_size=(256, 256), smoothing_sigma=4.0)
    detector.fit(splits.train.images(range(0, 320, 2)))
    prediction = detector.score_features(detector.extract(splits.validation.images()))
    maps, masks = prediction.maps.numpy(), splits.validation.masks()
    for metric, least in (("image_auroc", 0.8), ("pixel_auroc", 0.93)):
        found = single_metric(metric, scores=prediction.scores, maps=maps, labels=splits.validation.labels, masks=masks)
        assert found > least, metric
