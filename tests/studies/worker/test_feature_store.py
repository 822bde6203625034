"""The feature store: computed once, shared, checked on read, bounded, and never half-written."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors.backbones.pyramid import EXTRACTION_BATCH, Backbone, build_backbone
from detectors.data.mvtec import read_mvtec
from detectors.data.samples import ImageSet
from detectors.errors import InputError
from detectors.features import Features
from studies.worker import feature_store
from studies.worker.feature_store import Entry, FeatureKey, FeatureStore

CPU = torch.device("cpu")
STRIDES = (8, 16)
SIZE = (64, 64)
NAME = "resnet18@random"


class Counting(nn.Module):
    """A backbone that counts its forward passes, and may do something after some of them."""

    def __init__(self, backbone: Backbone, after: Callable[[int], None] = lambda calls: None) -> None:
        super().__init__()
        self.inner, self.after, self.calls = backbone, after, 0
        self.strides, self.identity = backbone.strides, backbone.identity

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        self.calls += 1
        pyramid: dict[int, Tensor] = self.inner(images)
        self.after(self.calls)
        return pyramid


def random_images(root: Path, *, count: int = 10, size: tuple[int, int] = SIZE) -> ImageSet:
    return ImageSet("train", read_mvtec(root, "widget").train[:count], size)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(NAME, STRIDES)


@pytest.fixture(scope="module")
def images(tiny_mvtec: Path) -> ImageSet:
    return random_images(tiny_mvtec)


@pytest.fixture(scope="module")
def direct(images: ImageSet, backbone: Backbone) -> Features:
    """The features without any store."""
    with torch.inference_mode():
        parts = [backbone(batch) for batch in images.images().split(EXTRACTION_BATCH)]
    return Features.from_pyramid({s: torch.cat([part[s] for part in parts]) for s in STRIDES}, SIZE)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def get(store: FeatureStore, images: ImageSet, backbone: Any) -> Features:
    return store.features(images, backbone, device=CPU)


def same(found: Features, wanted: Features) -> bool:
    return all(torch.equal(found.maps[stride], wanted.maps[stride]) for stride in wanted.maps)


def entry_of(store: FeatureStore, stride: int) -> Path:
    found = [
        entry.folder
        for entry in store.entries()
        if json.loads((entry.folder / "entry.json").read_text())["key"]["stride"] == stride
    ]
    assert len(found) == 1
    return found[0]


BATCHES = -(-10 // EXTRACTION_BATCH)


# --- computed once


def test_what_is_stored_is_what_the_backbone_gives(store, images, backbone, direct):
    found = get(store, images, backbone)
    assert same(found, direct)
    assert found.strides == STRIDES
    assert found.grids == {8: (8, 8), 16: (4, 4)}
    assert found.image_size == SIZE
    assert len(found) == 10


def test_stored_features_are_memory_mapped(store, images, backbone, direct):
    found = get(store, images, backbone)
    for stride in STRIDES:
        file = np.load(entry_of(store, stride) / "features.npy", mmap_mode="r")
        assert file.shape == tuple(direct.maps[stride].shape)
        assert np.array_equal(file, direct.maps[stride].numpy())
        assert str(entry_of(store, stride)) in Path("/proc/self/maps").read_text()
        # Each reader has its own view: what it writes never reaches the disk.
        found.maps[stride].zero_()
        assert np.array_equal(np.load(entry_of(store, stride) / "features.npy"), direct.maps[stride].numpy())
    assert same(get(FeatureStore(store.root), images, backbone), direct)


def test_computed_once(store, images, backbone):
    counting = Counting(backbone)
    get(store, images, counting)
    assert counting.calls == BATCHES
    get(store, images, counting)
    get(FeatureStore(store.root), images, counting)
    assert counting.calls == BATCHES


def test_progress_is_told_while_features_are_computed_and_never_after(store, images, backbone):
    seen: list[tuple[int, int]] = []
    store.features(images, backbone, device=CPU, progress=lambda *told: seen.append(told))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    store.features(images, backbone, device=CPU, progress=lambda *told: seen.append(told))
    assert len(seen) == 3


def test_only_missing_strides_are_computed(store, images, backbone, direct):
    one = build_backbone(NAME, (16,))
    get(store, images, one)
    before = (entry_of(store, 16) / "features.npy").stat().st_ino
    counting = Counting(backbone)
    assert same(get(store, images, counting), direct)
    assert counting.calls == BATCHES
    assert (entry_of(store, 16) / "features.npy").stat().st_ino == before
    one_counted = Counting(one)
    get(store, images, one_counted)
    assert one_counted.calls == 0


def test_small_chunks_write_the_same_file(store, images, backbone, direct, monkeypatch):
    monkeypatch.setattr(feature_store, "CHUNK_BYTES", 1)
    assert same(get(store, images, backbone), direct)


def test_holds(store, images, backbone):
    sha256 = backbone.identity.sha256
    assert not store.holds(images, weights_sha256=sha256, strides=STRIDES, device=CPU)
    get(store, images, backbone)
    assert store.holds(images, weights_sha256=sha256, strides=STRIDES, device=CPU)
    assert store.holds(images, weights_sha256=sha256, strides=[8], device=CPU)
    assert not store.holds(images, weights_sha256=sha256, strides=[4, 8], device=CPU)
    assert not store.holds(images, weights_sha256="0" * 64, strides=STRIDES, device=CPU)


# --- the key


def test_every_part_of_the_key_counts():
    key = {"data_digest": "a", "image_size": (64, 64), "weights_sha256": "b", "stride": 8, "device_type": "cpu"}
    other = {"data_digest": "c", "image_size": (64, 96), "weights_sha256": "d", "stride": 16, "device_type": "cuda"}
    folders = {FeatureKey(**key | {name: value}).folder for name, value in other.items()} | {FeatureKey(**key).folder}
    assert len(folders) == 6
    assert FeatureKey(**key).folder == FeatureKey(**key).folder


def test_another_size_other_weights_and_other_images_have_their_own_entries(store, tiny_mvtec, images, backbone):
    get(store, images, backbone)
    for other_images, other_backbone in (
        (random_images(tiny_mvtec, size=(64, 96)), backbone),
        (images, build_backbone(f"{NAME}:1", STRIDES)),
        (random_images(tiny_mvtec, count=9), backbone),
    ):
        counting = Counting(other_backbone)
        get(store, other_images, counting)
        assert counting.calls == BATCHES
    assert len(store.entries()) == 8


def test_the_same_images_at_another_place_are_found(store, images, backbone, own_widgets):
    get(store, images, backbone)
    counting = Counting(backbone)
    get(store, random_images(own_widgets), counting)
    assert counting.calls == 0


# --- damage


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x20
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, 6, 8, 40, 90, 128, 5000, -1])
def test_one_changed_byte_is_noticed_and_computed_again(store, images, backbone, direct, position):
    get(store, images, backbone)
    flip(entry_of(store, 8) / "features.npy", position)
    counting = Counting(backbone)
    assert same(get(FeatureStore(store.root), images, counting), direct)
    assert counting.calls == BATCHES
    assert same(get(FeatureStore(store.root), images, Counting(backbone)), direct)


def test_every_byte_of_the_header_is_guarded(store, images, backbone):
    get(store, images, backbone)
    file = entry_of(store, 8) / "features.npy"
    sound = file.read_bytes()
    key = FeatureKey(images.digest, images.image_size, backbone.identity.sha256, 8, "cpu")
    for position in range(128):
        flip(file, position)
        assert FeatureStore(store.root)._read(key) is None
        assert not file.parent.exists()  # what is damaged is taken away at once
        file.parent.mkdir()
        file.write_bytes(sound)
        (file.parent / "entry.json").write_text(json.dumps(_description(key, file)))
    assert FeatureStore(store.root)._read(key) is not None


def _description(key: FeatureKey, file: Path) -> dict[str, Any]:
    return {"key": key.identity, "grid": [8, 8], "xxh3": feature_store._checksum(file)}


@pytest.mark.parametrize("keep", [0, 10, 127, 128, 5000])
def test_a_cut_file_is_computed_again(store, images, backbone, direct, keep):
    get(store, images, backbone)
    file = entry_of(store, 16) / "features.npy"
    file.write_bytes(file.read_bytes()[:keep])
    counting = Counting(backbone)
    assert same(get(FeatureStore(store.root), images, counting), direct)
    assert counting.calls == BATCHES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '"key"',
        "\udcff",
        pytest.param(lambda entry: entry | {"grid": [8, 9]}, id="grid does not fit"),
        pytest.param(lambda entry: entry | {"grid": []}, id="no grid"),
        pytest.param(lambda entry: entry | {"grid": ["8", None]}, id="grid of other things"),
        pytest.param(lambda entry: entry | {"xxh3": "0"}, id="checksum"),
        pytest.param(lambda entry: entry | {"key": entry["key"] | {"stride": 4}}, id="another key"),
        pytest.param(lambda entry: {"key": entry["key"], "grid": entry["grid"]}, id="no checksum"),
    ],
)
def test_a_damaged_description_is_computed_again(store, images, backbone, direct, text):
    get(store, images, backbone)
    path = entry_of(store, 8) / "entry.json"
    written = text if isinstance(text, str) else json.dumps(text(json.loads(path.read_text())))
    path.write_bytes(written.encode("utf-8", "surrogateescape"))
    found = get(FeatureStore(store.root), images, backbone)
    assert same(found, direct)
    assert found.grids[8] == (8, 8)


@pytest.mark.parametrize("name", ["features.npy", "entry.json"])
def test_half_of_an_entry_is_computed_again(store, images, backbone, direct, name):
    get(store, images, backbone)
    (entry_of(store, 8) / name).unlink()
    assert same(get(FeatureStore(store.root), images, backbone), direct)
    assert len(store.entries()) == 2


def test_a_file_is_read_for_its_checksum_once_per_process(store, images, backbone, monkeypatch):
    get(store, images, backbone)
    sums: list[Path] = []
    checksum = feature_store._checksum
    monkeypatch.setattr(feature_store, "_checksum", lambda path: sums.append(path) or checksum(path))
    other = FeatureStore(store.root)
    for _ in range(3):
        get(other, images, backbone)
    assert len(sums) == 2


# --- limits


def aged(store: FeatureStore) -> list[Entry]:
    """The entries, each last used an hour after the one before, by folder name."""
    for hour, entry in enumerate(sorted(store.entries(), key=lambda entry: entry.folder.name)):
        moment = time.time() - 1e6 + 3600 * hour
        os.utime(entry.folder / "entry.json", (moment, moment))
    return store.entries()


def test_least_recently_used_goes_first(store, tiny_mvtec, backbone):
    for count in (4, 5, 6):
        get(store, random_images(tiny_mvtec, count=count), backbone)
    entries = aged(store)
    assert [entry.folder.name for entry in entries] == sorted(entry.folder.name for entry in entries)
    total = sum(entry.size_bytes for entry in entries)
    freed = store.evict(max_bytes=total - 1)
    assert freed == entries[0].size_bytes
    assert store.entries() == entries[1:]
    assert store.evict(max_bytes=total - freed) == 0
    assert store.evict(max_bytes=0) == total - freed
    assert store.entries() == store.leftovers() == []


def test_use_makes_an_entry_recent(store, tiny_mvtec, backbone):
    sets = [random_images(tiny_mvtec, count=count) for count in (4, 5)]
    for image_set in sets:
        get(store, image_set, backbone)
    aged(store)
    get(FeatureStore(store.root), sets[0], backbone)
    recent = {entry.folder.name for entry in store.entries()[-2:]}
    sha256 = backbone.identity.sha256
    assert recent == {FeatureKey(sets[0].digest, SIZE, sha256, stride, "cpu").folder for stride in STRIDES}


def test_what_is_to_be_kept_is_kept(store, tiny_mvtec, backbone):
    for count in (4, 5):
        get(store, random_images(tiny_mvtec, count=count), backbone)
    oldest = aged(store)[0]
    store.evict(keep={oldest.folder.name}, max_bytes=0)
    assert [entry.folder for entry in store.entries()] == [oldest.folder]


def test_the_limit_never_takes_what_was_asked_for(tmp_path, tiny_mvtec, images, backbone, direct):
    store = FeatureStore(tmp_path / "features", max_bytes=1)
    get(store, random_images(tiny_mvtec, count=4), backbone)
    assert len(store.entries()) == 2
    assert same(get(store, images, backbone), direct)
    assert len(store.entries()) == 2  # the former two had to go


def test_readers_keep_what_is_evicted(store, images, backbone, direct):
    found = get(store, images, backbone)
    store.evict(max_bytes=0)
    assert store.entries() == []
    assert same(found, direct)


# --- a disk that is full, a folder that cannot be


def test_a_full_disk_is_told_and_leaves_nothing(store, images, backbone, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError) as caught:
            get(store, images, backbone)
    message = str(caught.value)
    assert "the disk is full" in message
    assert str(store.root) in message
    assert "\n" not in message
    assert store.entries() == store.leftovers() == []
    assert {path.name for path in store.root.iterdir()} == {"locks"}
    assert len(get(store, images, backbone)) == 10


def test_a_file_in_place_of_the_store(tmp_path, images, backbone):
    (tmp_path / "features").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        get(FeatureStore(tmp_path / "features"), images, backbone)


def test_an_image_that_cannot_be_read_is_named_and_leaves_nothing(store, own_widgets, backbone):
    images = random_images(own_widgets)
    bad = images.samples[7].file
    bad.write_bytes(b"no image")
    with pytest.raises(InputError, match=f"{bad.name}: not a readable image"):
        get(store, images, backbone)
    assert store.entries() == store.leftovers() == []


def test_a_missing_image_is_named(store, own_widgets, backbone):
    images = random_images(own_widgets)
    assert images.digest
    images.samples[7].file.unlink()
    with pytest.raises(InputError, match=f"{images.samples[7].file.name}: no such file"):
        get(store, images, backbone)
    assert store.leftovers() == []


# --- several processes


def _worker(root: Path, data: Path, ready: Any, go: Any, results: Any, die_after: int | None) -> None:
    """Ask for the features in a process of its own; may die, as a killed process does, in the middle of computing."""

    def after(calls: int) -> None:
        if die_after is not None and calls == die_after:
            os._exit(9)
        time.sleep(0.05)  # so that the two overlap

    feature_store.CHUNK_BYTES = 1
    torch.set_num_threads(1)
    backbone = Counting(build_backbone(NAME, STRIDES), after)
    images = random_images(data)
    ready.release()
    go.wait()
    found = get(FeatureStore(root), images, backbone)
    results.put((backbone.calls, float(found.maps[8].double().sum())))


@pytest.fixture(scope="module")
def spawn() -> Any:
    return multiprocessing.get_context("spawn")


def start(spawn: Any, store: FeatureStore, data: Path, *, die_after: tuple[int | None, ...]) -> tuple[list[Any], Any]:
    ready, go, results = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
    workers = [
        spawn.Process(target=_worker, args=(store.root, data, ready, go, results, limit), daemon=True)
        for limit in die_after
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert ready.acquire(timeout=120)
    go.set()
    return workers, results


@pytest.mark.slow
def test_two_processes_at_the_same_time_compute_once(spawn, store, tiny_mvtec, direct):
    workers, results = start(spawn, store, tiny_mvtec, die_after=(None, None))
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(calls for calls, _ in found) == [0, BATCHES]
    assert {total for _, total in found} == {float(direct.maps[8].double().sum())}
    assert store.leftovers() == []


@pytest.mark.kill
def test_a_process_killed_while_it_computes_harms_nobody(spawn, store, tiny_mvtec, images, backbone, direct):
    workers, _ = start(spawn, store, tiny_mvtec, die_after=(2,))
    workers[0].join()
    assert workers[0].exitcode == 9
    assert store.entries() == []
    assert len(store.leftovers()) == len(STRIDES)
    counting = Counting(backbone)
    assert same(get(store, images, counting), direct)
    assert counting.calls == BATCHES
    assert store.leftovers() == []
