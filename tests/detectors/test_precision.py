"""Full precision of matrix products: for all threads that ask for it, as long as any of them does, and no longer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from detectors.backbones.pyramid import build_backbone
from detectors.catalog import head_class
from detectors.detector import Detector
from detectors.precision import OPERATIONS, full_precision

CPU, OTHER = torch.device("cpu"), torch.device("mps")
WAIT = 60
"""Seconds after which a thread that waits for another gives up."""


def precision() -> str:
    return torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def before() -> Iterator[str]:
    """The precision that every test begins with, which is not the one that is tested for; restored."""
    original = precision()
    torch.set_float32_matmul_precision("medium")
    yield "medium"
    torch.set_float32_matmul_precision(original)


class Visitor:
    """A thread that enters and leaves when it is asked to."""

    def __init__(self, device: torch.device = CPU, *, fails: bool = False) -> None:
        self.device, self.fails = device, fails
        self.entered, self.may_leave, self.left = threading.Event(), threading.Event(), threading.Event()
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._visit)

    def enter(self) -> Visitor:
        self.thread.start()
        assert self.entered.wait(WAIT)
        return self

    def leave(self) -> None:
        self.may_leave.set()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def _visit(self) -> None:
        try:
            with full_precision(self.device):
                self.entered.set()
                assert self.may_leave.wait(WAIT)
                if self.fails:
                    raise KeyError
        except BaseException as error:
            self.errors.append(error)


def test_the_precision_of_products_is_restored_after_an_error():
    def fail_in_full_precision() -> None:
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError):
            fail_in_full_precision()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_first_of_two_threads_to_leave_takes_nothing_from_the_other(before):
    first, second = Visitor().enter(), Visitor().enter()
    first.leave()
    assert precision() == "highest"
    second.leave()
    assert precision() == before


def test_the_last_to_enter_may_leave_first(before):
    first, second = Visitor().enter(), Visitor().enter()
    second.leave()
    assert precision() == "highest"
    first.leave()
    assert precision() == before


def test_an_error_in_one_thread_takes_nothing_from_the_other(before):
    failing, other = Visitor(fails=True).enter(), Visitor().enter()
    failing.leave()
    assert [type(error) for error in failing.errors] == [KeyError]
    assert precision() == "highest"
    other.leave()
    assert precision() == before


def test_two_devices_share_the_one_precision(before):
    cpu, other = Visitor(CPU).enter(), Visitor(OTHER).enter()
    cpu.leave()
    assert precision() == "highest"
    other.leave()
    assert cpu.errors == other.errors == []
    assert precision() == before


def test_blocks_may_be_nested_and_left_by_an_error(before):
    with full_precision(CPU):
        with pytest.raises(KeyError), full_precision(CPU), full_precision(OTHER):
            raise KeyError
        assert precision() == "highest"
    assert precision() == before


def test_it_can_be_entered_again_after_it_was_left():
    for setting in ("high", "medium"):
        torch.set_float32_matmul_precision(setting)
        with full_precision(CPU):
            assert precision() == "highest"
        assert precision() == setting


def test_autocast_is_off_inside_and_on_again_outside():
    vectors = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (vectors @ vectors).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (vectors @ vectors).dtype == torch.float32
        assert (vectors @ vectors).dtype == torch.bfloat16


def test_autocast_of_another_thread_is_left_alone():
    visitor = Visitor().enter()
    vectors = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (vectors @ vectors).dtype == torch.bfloat16
    visitor.leave()


def test_many_threads_that_come_and_go_always_find_it_highest(before):
    def visit(seed: int) -> list[str]:
        rng, seen = random.Random(seed), []
        nested: Callable[[], int] = lambda: rng.randrange(3)  # noqa: E731
        for _ in range(200):
            try:
                with full_precision(CPU):
                    seen.append(precision())
                    if nested() == 0:
                        with full_precision(OTHER):
                            seen.append(precision())
                    seen.append(precision())
                    if nested() == 0:
                        raise KeyError
            except KeyError:
                pass
        return seen

    with ThreadPoolExecutor(8) as threads:
        seen = [one for each in threads.map(visit, range(8)) for one in each]
    assert set(seen) == {"highest"}
    assert precision() == before


# --- convolutions, and the settings of single operations


def settings() -> dict[str, Any]:
    """Every setting that torch answers for; one that contradicts another is None."""
    found: dict[str, Any] = {}
    for name, ask in (
        ("matmul", torch.get_float32_matmul_precision),
        ("matmul TF32", lambda: torch.backends.cuda.matmul.allow_tf32),
        ("convolution TF32", lambda: torch.backends.cudnn.allow_tf32),
        ("all", lambda: torch.backends.fp32_precision),
        *((f"{owner}", lambda owner=owner: owner.fp32_precision) for owner in OPERATIONS),
    ):
        try:
            found[name] = ask()
        except RuntimeError:
            found[name] = None
    return found


def allow_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def forbid_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def forbid_convolutions() -> None:
    torch.backends.cudnn.allow_tf32 = False


def contradict() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def allow_everything() -> None:
    torch.backends.fp32_precision = "tf32"


@pytest.fixture
def settings_restored() -> Iterator[None]:
    everything = torch.backends.fp32_precision
    singles = [(owner, owner.fp32_precision) for owner in OPERATIONS]
    yield
    torch.backends.fp32_precision = everything
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for owner, value in singles:
        owner.fp32_precision = value


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="came with torch 2.9")
@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize(
    "change", [lambda: None, allow_products, forbid_products, forbid_convolutions, contradict, allow_everything]
)
def test_whatever_a_process_has_set_is_off_inside_and_as_it_was_outside(change: Callable[[], None]) -> None:
    change()
    found = settings()
    with full_precision(CPU):
        inside = settings()
    assert settings() == found
    assert inside["matmul"] == "highest"
    assert inside["matmul TF32"] is inside["convolution TF32"] is False
    assert {inside[f"{owner}"] for owner in OPERATIONS} == {"ieee"}


def test_a_detector_is_fitted_and_scored_in_full_precision():
    backbone, seen = build_backbone("pixels", [4]), set[tuple[str, bool, bool]]()
    backbone.register_forward_pre_hook(
        lambda *_: seen.add((precision(), torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
    )
    detector = Detector(backbone, head_class("padim")(n_features=2), image_size=(32, 32))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        detector.fit(images)
        prediction = detector(images)
    assert seen == {("highest", False, False)}
    assert prediction.scores.dtype == prediction.maps.dtype == torch.float32
