"""CFlow: the flow against autograd and FrEIA, its training, its scores."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from FrEIA.modules import AllInOneBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detectors import training, working_memory
from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext, seeded
from detectors.catalog import head_class
from detectors.data.mvtec import read_mvtec
from detectors.data.splits import make_splits
from detectors.detector import Detector
from detectors.errors import InputError, NumericalError
from detectors.features import Features
from detectors.flows import passes
from detectors.flows.coupling import Flow, axis_code
from detectors.flows.passes import FlowGradients, FlowPass, Workspace, block_weights, training_loss
from detectors.heads.cflow.head import Cflow
from detectors.heads.cflow.training import CELL_IMAGES, Cells, CflowTraining, draw_cells, steps_of_an_epoch
from detectors.scoring.metrics import auroc
from detectors.training import CHECKPOINT, learning_rate
from tests.helpers.trained_heads import same, weights_of

SMALL = {"coupling_blocks": 2, "condition_dimension": 8, "fibre_batch": 512, "learning_rate": 0.01}
GRIDS = {4: (6, 10), 8: (3, 5)}
CHANNELS = {4: 4, 8: 7}


def make_flow(channels: int = 6, grid=(3, 4), *, blocks: int = 3, code: int = 10, seed: int = 0) -> Flow:
    """A float64 flow, none of whose parameters is at its neutral start."""
    generator = torch.Generator().manual_seed(seed)
    flow = Flow(
        channels,
        grid,
        coupling_blocks=blocks,
        condition_dimension=code,
        hidden_ratio=2.0,
        clamp=1.9,
        generator=generator,
    ).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
        flow.mean.normal_(generator=generator)
        flow.deviation.uniform_(0.5, 2, generator=generator)
    return flow


def vectors(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def make_features(images: int = 12, *, seed: int = 0, scale: float = 1.0) -> Features:
    """Channels that hang together, around a mean of each position."""
    maps = {}
    for stride, (height, width) in GRIDS.items():
        channels = CHANNELS[stride]
        mixing = torch.randn(channels, channels, generator=seeded("cflow", 7, f"mixing {stride}"))
        mean = torch.randn(height * width, channels, 1, generator=seeded("cflow", 7, f"mean {stride}"))
        noise = torch.randn(height * width, channels, images, generator=seeded("cflow", seed, f"noise {stride}"))
        maps[stride] = (mean + scale * (mixing @ noise)).contiguous()
    return Features(maps=maps, grids=GRIDS, image_size=(24, 40))


class Script:
    """A `validate` that plays back values, and what was asked of the context in which order."""

    def __init__(self, *values: float) -> None:
        self.values, self.calls = list(values), []

    def context(self, **more) -> FitContext:
        return FitContext(validate=self.validate, report=self.report, should_stop=self.should_stop, **more)

    def validate(self) -> float:
        value = self.values[sum(call == "validate" for call in self.calls)]
        self.calls.append("validate")
        return value

    def report(self, epoch: int, value: float) -> None:
        self.calls.append((epoch, value))

    def should_stop(self) -> bool:
        self.calls.append("stop?")
        return False


# --- the code of a position


def test_the_code_of_a_place_is_its_sines_and_cosines():
    code = axis_code(5, 6)
    assert code.shape == (6, 5)
    for pair in range(3):
        angles = torch.arange(5) / 10_000 ** (pair / 3)
        torch.testing.assert_close(code[2 * pair], angles.sin())
        torch.testing.assert_close(code[2 * pair + 1], angles.cos())


@pytest.mark.parametrize("code", [4, 5, 6, 7, 128])
def test_a_code_of_any_length_tells_all_positions_apart(code):
    flow = make_flow(grid=(3, 5), code=code, blocks=1)
    codes = flow.codes(torch.arange(15)).double()
    assert codes.shape == (15, code)
    assert float(torch.pdist(codes).min()) > 1e-2
    torch.testing.assert_close(
        codes[7], torch.cat([axis_code(5, code // 2)[:, 2], axis_code(3, -(-code // 2))[:, 1]]).double()
    )


def test_rows_and_columns_give_the_hidden_units_of_the_code_beside_the_vector():
    flow = make_flow()
    block, weights = flow.blocks[1], block_weights(flow, 1)
    positions = torch.tensor([0, 5, 11, 5])
    x1 = vectors(4, block.passive)
    beside = torch.cat([x1, flow.codes(positions)], dim=1)
    weight = torch.cat([block.vector_weight, block.code_weight], dim=1)
    wanted = nn.functional.linear(beside, weight, block.hidden_bias)
    share = weights.rows[:, positions // 4] + weights.columns[:, positions % 4]
    torch.testing.assert_close(x1 @ weights.vector_weight.T + share.T, wanted)


# --- the flow


@pytest.mark.parametrize("channels", [2, 3, 5, 6])
def test_the_log_likelihood_is_that_of_the_full_jacobian(channels):
    flow = make_flow(channels)
    x, position = vectors(channels), torch.tensor([7])

    def transform(vector: torch.Tensor) -> torch.Tensor:
        standardised = (vector - flow.mean) / flow.deviation
        return flow.sequence(standardised[None], [flow.codes(position)])[0][0]

    jacobian = torch.autograd.functional.jacobian(transform, x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(transform(x)).sum()
    # Of the standardised vector: without the standardisation's own determinant.
    wanted = normal + torch.linalg.slogdet(jacobian).logabsdet + flow.deviation.log().sum()
    torch.testing.assert_close(flow.log_likelihood(x[None], position)[0], wanted)
    fast = FlowPass(flow).grid_log_likelihood(x.expand(12, -1)[:, :, None], Workspace(flow.mean))
    torch.testing.assert_close(fast[7, 0], wanted)


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_the_inverse_leads_back(channels):
    flow = make_flow(channels)
    x, code = vectors(20, channels), flow.codes(torch.arange(20) % 12)
    z, log_determinant = flow.sequence(x, [code])
    back, inverse_log_determinant = flow.sequence(z, [code], rev=True)
    assert not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_determinant, -log_determinant)


def test_a_block_is_freias_all_in_one_block_with_its_permutation_as_an_index():
    flow = make_flow(7, code=6)
    block = flow.blocks[0]

    def subnet(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, block.hidden), nn.ReLU(), nn.Linear(block.hidden, outputs))

    other = AllInOneBlock(
        [(7,)], [(6,)], subnet_constructor=subnet, affine_clamping=1.9, global_affine_type="EXP"
    ).double()
    with torch.no_grad():
        other.subnet[0].weight.copy_(torch.cat([block.vector_weight, block.code_weight], dim=1))
        other.subnet[0].bias.copy_(block.hidden_bias)
        other.subnet[2].weight.copy_(block.out_weight)
        other.subnet[2].bias.copy_(block.out_bias)
        other.global_scale.copy_(block.log_scale[None])
        other.global_offset.copy_(block.offset[None])
        other.w_perm.copy_(torch.eye(7, dtype=torch.double)[block.permutation])
    x, code = vectors(9, 7), flow.codes(torch.arange(9))
    for mine, theirs in zip(block([x], [code]), other([x], [code]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_flow_of_one_channel_is_refused():
    with pytest.raises(ValueError, match="2 channels"):
        make_flow(1)


@pytest.mark.parametrize("chunk", [1, 7, 24, 2048])
@pytest.mark.parametrize("images", [0, 1, 2, 9])
def test_all_vectors_of_images_at_once_get_the_likelihoods_of_each(monkeypatch, chunk, images):
    monkeypatch.setattr(passes, "CHUNK", chunk)
    flow = make_flow(5, (3, 4))
    values = vectors(12, 5, images)
    fast = FlowPass(flow).grid_log_likelihood(values, Workspace(flow.mean))
    assert fast.shape == (12, images)
    for position in range(12):
        wanted = flow.log_likelihood(values[position].T, torch.full((images,), position))
        torch.testing.assert_close(fast[position], wanted.detach())


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(2, 8),
    blocks=st.integers(1, 4),
    code=st.integers(4, 9),
    cells=st.lists(st.integers(0, 11), min_size=1, max_size=5),
    images=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_gradients_by_hand_are_those_of_autograd(channels, blocks, code, cells, images, seed):
    flow = make_flow(channels, blocks=blocks, code=code, seed=seed)
    gradients, workspace = FlowGradients(flow), Workspace(flow.mean)
    one, weight = FlowPass(flow), 0.37
    loss, wanted = 0.0, torch.zeros((), dtype=torch.double)
    # Two chunks of different lengths through the same buffers.
    for number, positions in enumerate([torch.tensor(cells), torch.tensor([3])]):
        x = vectors(channels, len(positions), images, seed=seed + number)
        loss += float(one.add_gradients(x, positions, weight=weight, gradients=gradients, workspace=workspace))
        log_likelihood = flow.log_likelihood(x.permute(1, 2, 0).flatten(0, 1), positions.repeat_interleave(images))
        wanted = wanted + training_loss(log_likelihood, channels).sum()
    assert loss == pytest.approx(float(wanted.detach()))
    (weight * wanted).backward()
    expected = {name: parameter.grad.clone() for name, parameter in flow.named_parameters()}
    flow.zero_grad()
    for index in range(blocks):
        gradients.store(index)
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_gradients_by_hand_are_the_slopes_of_the_loss():
    flow = make_flow()
    x, positions = vectors(6, 3, 2), torch.tensor([0, 7, 7])

    def loss() -> tuple[float, FlowGradients]:
        gradients = FlowGradients(flow)
        total = FlowPass(flow).add_gradients(
            x, positions, weight=1.0, gradients=gradients, workspace=Workspace(flow.mean)
        )
        return float(total), gradients

    _, gradients = loss()
    for index in range(len(flow.blocks)):
        gradients.store(index)
    step = 1e-6
    for name, parameter in flow.named_parameters():
        direction = vectors(*parameter.shape, seed=5)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss()[0]
            parameter.sub_(direction, alpha=2 * step)
            below = loss()[0]
            parameter.add_(direction, alpha=step)
        slope = float((parameter.grad * direction).sum())
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_gradients_of_several_threads_add_up():
    flow = make_flow()
    x, positions = vectors(6, 4, 2), torch.tensor([1, 9, 4, 2])
    one, workspace = FlowPass(flow), Workspace(flow.mean)
    whole, *parts = (FlowGradients(flow) for _ in range(3))
    one.add_gradients(x, positions, weight=1.0, gradients=whole, workspace=workspace)
    for part, cut in zip(parts, (slice(0, 3), slice(3, 4)), strict=True):
        one.add_gradients(x[:, cut], positions[cut], weight=1.0, gradients=part, workspace=workspace)
    parts[0].add_(parts[1])
    for mine, theirs in zip(parts[0].blocks, whole.blocks, strict=True):
        for first, second in zip(mine, theirs, strict=True):
            torch.testing.assert_close(first, second)
    whole.zero_()
    assert not any(bool(sums.any()) for block in whole.blocks for sums in block)


# --- cells and steps


@settings(max_examples=60, deadline=None)
@given(positions=st.integers(1, 20), images=st.integers(1, 150), steps=st.integers(1, 30))
def test_an_epoch_sees_every_vector_and_hardly_any_twice(positions, images, steps):
    cells = draw_cells(positions, images, torch.Generator().manual_seed(3))
    seen = torch.zeros(positions, images, dtype=torch.int64)
    for step in range(steps):
        part = cells.part(step, steps)
        assert abs(len(part.positions) - len(cells.positions) / steps) < 1
        for chunk in part.chunks():
            assert len(chunk.positions) * chunk.images <= max(passes.CHUNK, chunk.images)
            for position, first in zip(chunk.positions, chunk.first, strict=True):
                seen[position, first : first + chunk.images] += 1
    assert int(seen.min()) == 1
    assert cells.images <= CELL_IMAGES
    assert int(seen.sum() - seen.numel()) < positions * -(-images // CELL_IMAGES)


@pytest.mark.parametrize(("fibre_batch", "steps"), [(1024, 52), (5376, 10), (64, 80), (10**6, 1)])
def test_a_step_takes_a_batch_of_vectors_and_every_layer_has_a_cell_in_it(fibre_batch, steps):
    positions, images = [256, 64, 16], 160
    assert steps_of_an_epoch(positions, images, fibre_batch=fibre_batch) == steps


def test_cells_gather_their_own_vectors():
    values = vectors(5, 3, 11)
    cells = Cells(torch.tensor([4, 0, 4]), torch.tensor([7, 0, 2]), 4)
    gathered = cells.gather(values)
    assert gathered.shape == (3, 3, 4)
    for index, (position, first) in enumerate([(4, 7), (0, 0), (4, 2)]):
        assert torch.equal(gathered[:, index], values[position, :, first : first + 4])


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    rates = [learning_rate(step, 200, largest=0.5) for step in range(200)]
    top = rates.index(max(rates))
    assert max(rates) == 0.5
    assert 5 <= top <= 10
    assert all(earlier < later for earlier, later in pairwise(rates[: top + 1]))
    assert all(earlier >= later for earlier, later in pairwise(rates[top:]))
    assert rates[105] == pytest.approx(0.25, rel=0.02)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(0, 1, largest=0.5) == 0.5


# --- training


def test_training_makes_normals_it_never_saw_more_likely():
    held_out = make_features(8, seed=1)
    losses, scores = [], []
    for epochs in (1, 15):
        head = Cflow(**SMALL, epochs=epochs).fit(make_features(64), FitContext())
        losses.append(head.diagnostics["train_loss"])
        likelihoods = [
            FlowPass(flow).grid_log_likelihood(held_out.maps[stride], Workspace(flow.mean)).mean() / flow.channels
            for stride, flow in head.flows.items()
        ]
        scores.append([float(value) for value in likelihoods])
    assert losses[1] < losses[0] - 0.1
    assert all(later > earlier + 0.1 for earlier, later in zip(*scores, strict=True))


def test_a_trained_flow_comes_close_to_the_entropy_of_a_gaussian():
    """The best that any density can reach is the entropy of the vectors themselves."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    draws = torch.linalg.cholesky(covariance) @ torch.randn(1, 2, 4000, generator=torch.Generator().manual_seed(0))
    features = Features(maps={8: draws}, grids={8: (1, 1)}, image_size=(8, 8))
    head = Cflow(coupling_blocks=4, condition_dimension=4, fibre_batch=500, learning_rate=0.02, epochs=30)
    head.fit(features, FitContext())
    flow = head.flows[8]
    mean = float(FlowPass(flow).grid_log_likelihood(draws, Workspace(flow.mean)).mean())
    best = -0.5 * (2 * math.log(2 * math.pi * math.e) + float(torch.logdet(covariance)))
    assert best - 0.15 < mean < best + 0.05


def test_the_global_generators_do_not_matter_and_stay():
    torch.manual_seed(1)
    first = weights_of(Cflow(**SMALL, epochs=2).fit(make_features(), FitContext(seed=3)))
    threads = torch.get_num_threads()
    torch.manual_seed(2)
    second = weights_of(Cflow(**SMALL, epochs=2).fit(make_features(), FitContext(seed=3)))
    other = weights_of(Cflow(**SMALL, epochs=2).fit(make_features(), FitContext(seed=4)))
    assert same(first, second)
    assert not same(first, other)
    assert torch.get_num_threads() == threads


def test_threads_share_the_work_and_are_given_back():
    before = torch.get_num_threads()
    scores = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            head = Cflow(**SMALL, epochs=2).fit(make_features(40), FitContext())
            assert torch.get_num_threads() == threads
            scores.append(head.score(make_features(3, seed=1))[0])
            again = Cflow(**SMALL, epochs=2).fit(make_features(40), FitContext())
            assert same(weights_of(head), weights_of(again))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-2, atol=1e-2)
    assert not any(thread.name.startswith("cflow") for thread in threading.enumerate())


@pytest.mark.parametrize("halvings", [0, 1, 5])
def test_autograd_trains_as_the_gradients_by_hand_do(monkeypatch, halvings):
    by_hand = Cflow(**SMALL, epochs=2).fit(make_features(40), FitContext())
    monkeypatch.setattr(CflowTraining, "_gradients_by_hand", CflowTraining._gradients_by_autograd)
    with working_memory.halved(halvings):
        by_autograd = Cflow(**SMALL, epochs=2).fit(make_features(40), FitContext())
    assert by_autograd.diagnostics["train_loss"] == pytest.approx(by_hand.diagnostics["train_loss"], rel=1e-4)
    images = make_features(3, seed=1)
    torch.testing.assert_close(by_autograd.score(images)[0], by_hand.score(images)[0], rtol=1e-2, atol=1e-2)


def test_half_precision_gives_nearly_the_same_gradients():
    flow = make_flow().float()
    x, positions = vectors(50, 6).float(), torch.arange(50) % 12
    gradients = []
    for half in (False, True):
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            training_loss(flow.log_likelihood(x, positions), 6).mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in flow.parameters()]))
    assert float(nn.functional.cosine_similarity(*gradients, dim=0)) > 0.99


def test_training_keeps_quiet_and_leaves_no_files(tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    Cflow(**SMALL, epochs=1).fit(make_features(), FitContext(checkpoint_dir=tmp_path / "checkpoints"))
    out = capfd.readouterr()
    assert out.out == out.err == ""
    assert not recwarn.list
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_catalog_loads_neither_lightning_nor_freia():
    code = "import sys, detectors.catalog; print(*{'pytorch_lightning', 'FrEIA'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- between epochs


def test_each_epoch_is_validated_reported_and_then_asked_about():
    script = Script(0.5, 0.7, 0.6)
    head = Cflow(**SMALL, epochs=3).fit(make_features(), script.context())
    calls = [call for call, later in zip(script.calls, [*script.calls[1:], None], strict=True) if call != later]
    # One question may come before the first step of an epoch.
    calls = calls[1:] if calls[0] == "stop?" else calls
    assert calls == ["validate", (1, 0.5), "stop?", "validate", (2, 0.7), "stop?", "validate", (3, 0.6)]
    assert head.diagnostics == {
        "epochs_trained": 3,
        "best_epoch": 2,
        "train_loss": pytest.approx(head.diagnostics["train_loss"]),
    }


def test_the_weights_are_those_of_the_best_epoch_and_score_as_they_did():
    head, seen = Cflow(**SMALL, epochs=4), []
    images, values = make_features(3, seed=1), iter([0.5, 0.9, 0.9, 0.2])

    def validate() -> float:
        seen.append((weights_of(head), head.score(images)[0]))
        return next(values)

    head.fit(make_features(), FitContext(validate=validate))
    assert same(weights_of(head), seen[1][0])
    assert torch.equal(head.score(images)[0], seen[1][1])
    assert not same(seen[1][0], seen[2][0])


def test_without_validation_the_last_epoch_counts():
    reports = []
    context = FitContext(report=lambda epoch, value: reports.append(epoch))
    head = Cflow(**SMALL, epochs=3, patience=1).fit(make_features(), context)
    assert (head.diagnostics["epochs_trained"], head.diagnostics["best_epoch"]) == (3, 3)
    assert reports == []


@pytest.mark.parametrize(("patience", "trained", "best"), [(1, 3, 2), (2, 4, 2), (3, 8, 7), (0, 8, 7)])
def test_patience_ends_training(patience, trained, best):
    script = Script(0.5, 0.7, 0.6, 0.7, 0.8, 0.1, 0.9, 0.3)
    head = Cflow(**SMALL, epochs=8, patience=patience).fit(make_features(), script.context())
    assert (head.diagnostics["epochs_trained"], head.diagnostics["best_epoch"]) == (trained, best)


@pytest.mark.parametrize("ask_every", [0.0, 1e9])
def test_a_stop_ends_the_training(monkeypatch, tmp_path, ask_every):
    monkeypatch.setattr(training, "ASK_EVERY", ask_every)
    script, values = Script(0.5, 0.6, 0.7, 0.8), []

    def stop() -> bool:
        return len(values) >= 2

    def report(epoch: int, value: float) -> None:
        values.append(value)

    context = FitContext(validate=script.validate, report=report, should_stop=stop, checkpoint_dir=tmp_path)
    head = Cflow(**SMALL, epochs=4).fit(make_features(), context)
    assert values == [0.5, 0.6]
    assert head.diagnostics["epochs_trained"] == 2
    assert not list(tmp_path.iterdir())


def test_a_stop_within_an_epoch_ends_it_there(monkeypatch):
    monkeypatch.setattr(training, "ASK_EVERY", 0.0)
    asked = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 3

    head = Cflow(**SMALL, epochs=4).fit(make_features(60), FitContext(should_stop=stop))
    assert len(asked) == 4
    assert head.diagnostics["epochs_trained"] == 0


def test_a_loss_that_is_not_finite_is_reported_in_one_line():
    features = make_features()
    features.maps[8][3, 2, 1] = float("nan")
    with pytest.raises(NumericalError, match=r"epoch 1 at learning_rate=0\.01; lower it") as caught:
        Cflow(**SMALL, epochs=2).fit(features, FitContext())
    assert "\n" not in str(caught.value)


def test_a_layer_of_one_channel_is_refused():
    features = Features(maps={8: torch.zeros(4, 1, 3)}, grids={8: (2, 2)}, image_size=(16, 16))
    with pytest.raises(InputError, match="layer 8 has a single channel"):
        Cflow(**SMALL).fit(features, FitContext())


# --- going on after a crash


def interrupted(head: Cflow, folder, *, at: int, values=(0.5, 0.7, 0.6, 0.8), error=KeyboardInterrupt) -> Script:
    """Fit until the report of an epoch, which raises."""
    script = Script(*values)

    def report(epoch: int, value: float) -> None:
        if epoch == at:
            raise error
        script.report(epoch, value)

    context = FitContext(validate=script.validate, report=report, checkpoint_dir=folder)
    with pytest.raises(error):
        head.fit(make_features(), context)
    return script


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_resumed_training_equals_one_without_interruption(tmp_path, at):
    values = (0.5, 0.7, 0.6, 0.65)
    whole = Cflow(**SMALL, epochs=4).fit(make_features(), Script(*values).context())
    interrupted(Cflow(**SMALL, epochs=4), tmp_path, at=at, values=values)
    assert (tmp_path / CHECKPOINT).is_file() == (at > 1)
    rest = Script(*values[at - 1 :])
    torch.manual_seed(99)
    head = Cflow(**SMALL, epochs=4).fit(make_features(), rest.context(checkpoint_dir=tmp_path))
    assert [call for call in rest.calls if isinstance(call, tuple)] == [
        (epoch, values[epoch - 1]) for epoch in range(at, 5)
    ]
    assert same(weights_of(head), weights_of(whole))
    assert head.diagnostics == whole.diagnostics
    assert not list(tmp_path.iterdir())


def test_a_training_that_was_over_is_not_begun_again(tmp_path):
    values = (0.5, 0.4, 0.3)
    whole = Cflow(**SMALL, epochs=6, patience=2).fit(make_features(), Script(*values).context())
    saved = training.Checkpoint.remove
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Checkpoint, "remove", lambda checkpoint: None)
        Cflow(**SMALL, epochs=6, patience=2).fit(make_features(), Script(*values).context(checkpoint_dir=tmp_path))
    assert training.Checkpoint.remove is saved
    script = Script()
    head = Cflow(**SMALL, epochs=6, patience=2).fit(make_features(), script.context(checkpoint_dir=tmp_path))
    assert script.calls == []
    assert same(weights_of(head), weights_of(whole))


OTHERS = {
    "settings": lambda: (Cflow(**SMALL | {"clamp": 1.5}, epochs=4), make_features(), {}),
    "seed": lambda: (Cflow(**SMALL, epochs=4), make_features(), {"seed": 1}),
    "features": lambda: (Cflow(**SMALL, epochs=4), make_features(seed=5), {}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_training_is_ignored(tmp_path, other):
    interrupted(Cflow(**SMALL, epochs=4), tmp_path, at=3)
    head, features, more = OTHERS[other]()
    fresh = OTHERS[other]()[0].fit(features, Script(0.5, 0.7, 0.6, 0.8).context(**more))
    script = Script(0.5, 0.7, 0.6, 0.8)
    head.fit(features, script.context(checkpoint_dir=tmp_path, **more))
    assert (1, 0.5) in script.calls
    assert same(weights_of(head), weights_of(fresh))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "folder"])
def test_a_damaged_checkpoint_is_ignored(tmp_path, damage):
    interrupted(Cflow(**SMALL, epochs=2), tmp_path, at=2)
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path = tmp_path / "none" / CHECKPOINT
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no tensors"}[damage])
    script = Script(0.5, 0.7)
    Cflow(**SMALL, epochs=2).fit(make_features(), script.context(checkpoint_dir=path.parent))
    assert (1, 0.5) in script.calls
    assert not path.exists()


def test_an_interrupt_stays_one_and_the_signals_stay_as_they_were(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupted(Cflow(**SMALL, epochs=2), tmp_path, at=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    interrupted(Cflow(**SMALL, epochs=2), tmp_path, at=1, error=RuntimeError)


# --- scores


@pytest.fixture(scope="module")
def fitted() -> Cflow:
    return Cflow(**SMALL, epochs=3).fit(make_features(40), FitContext())


def test_the_score_follows_from_the_likelihoods_of_all_strides(fitted):
    images = make_features(3, seed=1)
    probability = torch.zeros(3, 6, 10)
    for index, (stride, flow) in enumerate(fitted.flows.items()):
        positions = torch.arange(len(images.maps[stride]))
        for image in range(3):
            vector = images.maps[stride][:, :, image]
            likelihood = flow.log_likelihood(vector, positions).detach() / CHANNELS[stride] - fitted.peaks[index]
            grid = likelihood.view(1, 1, *GRIDS[stride])
            fine = nn.functional.interpolate(grid, size=(6, 10), mode="bilinear", align_corners=False)
            probability[image] += fine[0, 0].exp()
    torch.testing.assert_close(fitted.score(images)[0], -probability.log(), rtol=1e-4, atol=1e-4)


def test_peaks_are_the_largest_likelihoods_of_training_normals(fitted):
    head = Cflow(**SMALL, epochs=1).fit(make_features(20), FitContext())
    for index, (stride, flow) in enumerate(head.flows.items()):
        likelihoods = FlowPass(flow).grid_log_likelihood(make_features(20).maps[stride], Workspace(flow.mean))
        assert float(head.peaks[index]) == pytest.approx(float(likelihoods.max()) / CHANNELS[stride])


def test_the_further_off_the_higher_the_score_even_where_a_probability_is_nought(fitted):
    normal = make_features(2, seed=1)
    scores = [fitted.score(normal)[0].mean()]
    for factor in (5.0, 50.0, 500.0):
        scores.append(fitted.score(make_features(2, seed=1, scale=factor))[0].mean())
    assert all(bool(torch.isfinite(score)) for score in scores)
    assert all(earlier < later for earlier, later in pairwise(scores))
    assert math.exp(-float(scores[-1])) == 0.0


def test_a_change_at_one_position_shows_there(fitted):
    images = make_features(2, seed=1)
    images.maps[4][34, :, 1] += 30
    change = fitted.score(images)[0] - fitted.score(make_features(2, seed=1))[0]
    assert torch.equal(change[0], torch.zeros(6, 10))
    assert divmod(int(change[1].argmax()), 10) == (3, 4)


def test_threads_may_score_at_the_same_time(fitted):
    images = [make_features(2, seed=seed) for seed in range(8)]
    wanted = [fitted.score(one)[0] for one in images]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(lambda one: fitted.score(one)[0], images * 5), wanted * 5, strict=True):
            assert torch.equal(found, right)


def test_tensors_that_do_not_fit_are_refused(fitted):
    exported = weights_of(fitted)
    fresh = Cflow(**SMALL)
    fresh.import_tensors(exported)
    assert torch.equal(fresh.score(make_features(2))[0], fitted.score(make_features(2))[0])
    with pytest.raises(ValueError, match="stride 4 do not fit"):
        Cflow(**SMALL | {"coupling_blocks": 3}).import_tensors(exported)
    with pytest.raises(ValueError, match="peaks"):
        Cflow(**SMALL).import_tensors(exported | {"peaks": torch.zeros(3)})
    with pytest.raises(KeyError, match="peaks"):
        Cflow(**SMALL).import_tensors({name: value for name, value in exported.items() if name != "peaks"})
    with pytest.raises(RuntimeError, match="not fitted"):
        Cflow(**SMALL).export_tensors()


@pytest.mark.real_images
def test_real_screws_are_distinguished(real_data):
    data_set = read_mvtec(real_data / "MVTecAD", "screw")
    splits = make_splits(data_set, protocol="holdout", image_size=(256, 256))
    head = head_class("cflow")(coupling_blocks=4, condition_dimension=32, fibre_batch=256, learning_rate=0.01, epochs=8)
    detector = Detector(build_backbone("tf_efficientnet_lite0", [16]), head, image_size=(256, 256))
    detector.fit(splits.train.images(range(0, 320, 2)))
    prediction = detector.score_features(detector.extract(splits.validation.images()))
    assert auroc(prediction.scores.numpy(), splits.validation.labels) > 0.8
