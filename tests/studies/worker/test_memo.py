"""What trials share on disk."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest
import torch

from detectors.errors import InputError
from studies.worker.memo import FileMemo


@pytest.fixture
def memo(tmp_path) -> FileMemo:
    return FileMemo(tmp_path / "memos", features="features of screws")


def tensors() -> dict[str, torch.Tensor]:
    return {"picks": torch.tensor([5, 2, 9]), "radius": torch.rand(3, generator=torch.Generator().manual_seed(0))}


def test_what_was_saved_is_loaded(memo):
    assert memo.load("order") is None
    memo.save("order", tensors())
    loaded = memo.load("order")
    assert loaded is not None
    assert set(loaded) == {"picks", "radius"}
    assert all(torch.equal(loaded[name], value) for name, value in tensors().items())


def test_names_and_features_are_kept_apart(memo):
    memo.save("order", tensors())
    assert memo.load("another order") is None
    assert FileMemo(memo.root, features="features of carpets").load("order") is None
    memo.save("another order", {"picks": torch.zeros(1)})
    assert len(memo.load("order")["picks"]) == 3


def test_saving_again_replaces(memo):
    memo.save("order", tensors())
    memo.save("order", {"picks": torch.arange(7)})
    assert list(memo.load("order")) == ["picks"]
    assert [path.name for path in memo.root.iterdir()] == [memo.path("order").name]


@pytest.mark.parametrize("damage", ["cut short", "one byte", "empty", "no header", "of other features"])
def test_a_damaged_file_counts_as_absent(memo, damage):
    memo.save("order", tensors())
    path = memo.path("order")
    data = path.read_bytes()
    if damage == "of other features":
        other = FileMemo(memo.root, features="features of carpets")
        other.save("order", tensors())
        other.path("order").replace(path)
    else:
        path.write_bytes(
            {
                "cut short": data[:-5],
                "one byte": data[:-1] + bytes([data[-1] ^ 1]),
                "empty": b"",
                "no header": b"x" * 99,
            }[damage]
        )
    assert memo.load("order") is None
    memo.save("order", tensors())
    assert memo.load("order") is not None


def test_the_least_recently_used_goes_first(tmp_path):
    memo = FileMemo(tmp_path, features="f", max_bytes=3 * 4500)
    for age, name in enumerate(["a", "b", "c"]):
        memo.save(name, {"values": torch.zeros(1000)})
        os.utime(memo.path(name), (time.time() - 100 + age,) * 2)
    assert memo.load("a") is not None  # used now, so b is the oldest
    memo.save("d", {"values": torch.zeros(1000)})
    assert [memo.load(name) is not None for name in "abcd"] == [True, False, True, True]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "memos").write_text("in the way")
    with pytest.raises(InputError, match="memos") as caught:
        FileMemo(tmp_path / "memos", features="f").save("order", tensors())
    assert "\n" not in str(caught.value)


def _count_up(root, times: int) -> None:
    memo = FileMemo(root, features="f")
    for _ in range(times):
        with memo.lock("counter"):
            before = memo.load("counter")
            memo.save("counter", {"count": (before["count"] if before else torch.zeros(1)) + 1})


def test_the_lock_lets_one_process_at_a_time_work_on_a_name(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(tmp_path, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert FileMemo(tmp_path, features="f").load("counter")["count"].item() == 40
