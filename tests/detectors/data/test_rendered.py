"""Rendered screws: the same image everywhere, masks that tell the truth, folders that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from detectors.data import rendered
from detectors.data.images import read_image, read_mask
from detectors.data.mvtec import read_mvtec
from detectors.data.rendered import DEFECT_KINDS, RenderSpec, render_dataset, render_screw
from detectors.errors import InputError

TINY = RenderSpec(size=64, train=3, test_good=2, per_defect=1)


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _dispatched() -> list[str]:
    """This processor's features beyond numpy's baseline, as NPY_DISABLE_CPU_FEATURES names them."""
    core = pytest.importorskip("numpy._core._multiarray_umath")
    return [feature for feature in core.__cpu_dispatch__ if core.__cpu_features__.get(feature)]


def _scene(seed: int) -> rendered.screw.Scene:
    return rendered.screw.draw_scene(rendered.image._generator(seed, "scene"), rendered.image._generator(seed, "metal"))


# --- one image


@pytest.mark.parametrize("defect", [None, *DEFECT_KINDS])
def test_same_arguments_give_the_same_image(defect: str | None):
    first, second = (render_screw(seed=5, size=96, defect=defect) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert first[0].shape == first[1].shape == (96, 96)
    assert first[0].dtype == np.uint8
    assert first[1].dtype == np.bool_
    assert first[1].any() == (defect is not None)


def test_pixels_do_not_depend_on_threads_process_or_vector_units():
    code = (
        "import hashlib; from detectors.data.rendered import render_screw\n"
        "for kind in (None, 'thread_top'):\n"
        "    image, mask = render_screw(seed=2**40 + 3, size=96, defect=kind)\n"
        "    print(hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest())"
    )
    outputs = set()
    for threads in ("1", "4"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads), "PYTHONHASHSEED": threads}
        if threads == "1":
            # As on an older processor: other code paths of sine, exponential and arc tangent.
            environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(_dispatched())
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    here = "".join(
        hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() + "\n"
        for image, mask in (render_screw(seed=2**40 + 3, size=96, defect=kind) for kind in (None, "thread_top"))
    )
    assert outputs == {here}


def test_seeds_and_kinds_differ():
    images = [render_screw(seed=seed, size=64, defect=kind)[0] for seed in range(3) for kind in (None, *DEFECT_KINDS)]
    assert len({image.tobytes() for image in images}) == len(images)


def test_image_is_a_dark_screw_on_a_bright_table():
    for seed in range(12):
        image = render_screw(seed=seed, size=128)[0].astype(float)
        table = np.median(image)
        assert 180 < table < 225
        screw = image < 0.7 * table
        assert 0.06 < screw.mean() < 0.16
        assert not screw[[0, -1]].any()
        assert not screw[:, [0, -1]].any()
        assert 70 < np.median(image[screw]) < 130
        largest = np.bincount(ndimage.label(screw)[0].ravel())[1:].max()
        assert largest > 0.97 * screw.sum()


def test_screws_point_all_around():
    angles = [_scene(seed).angle for seed in range(48)]
    quarters = np.bincount((np.degrees(angles) % 360 // 90).astype(int), minlength=4)
    assert quarters.min() >= 5


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_mask_is_just_what_the_defect_changed(kind: str):
    size = 128
    for seed in range(25):
        clean, flawed, mask = rendered.image._expose(seed, size, kind)
        assert flawed is not None
        change = np.abs(flawed - clean) * 255
        assert max(3, rendered.image.MIN_MASK_AREA * size**2 * 0.99) <= mask.sum() < 0.15 * size**2
        # Beyond the mask the image stays as it was, but for the faint edge of a shadow that moves with the tip.
        outside = ~ndimage.binary_dilation(mask, iterations=3)
        assert change[outside].max() < 10
        assert (change[outside] > rendered.image.VISIBLE_CHANGE).mean() < 1e-3
        if kind != "manipulated_front":
            assert (change[outside] <= rendered.image.VISIBLE_CHANGE).all()
        # Within the mask it is changed nearly everywhere: only pixels enclosed by changed ones may look alike.
        assert (change[mask] > 0.8 * rendered.image.VISIBLE_CHANGE).mean() > 0.6


@pytest.mark.parametrize("kind", DEFECT_KINDS)
def test_casting_only_the_rays_near_a_defect_is_enough(kind: str):
    for seed in range(6):
        scene = _scene(seed)
        camera = rendered.camera.Camera(scene, 96)
        damage = rendered.damage.draw_damage(kind, rendered.image._generator(seed, kind), 0.5)
        sound = rendered.camera.render(scene, rendered.damage.Damage(), camera)
        near = rendered.camera.render(scene, damage, camera, before=sound)
        everywhere = rendered.camera.render(scene, damage, camera)
        assert np.abs(near.cover - everywhere.cover).max() == 0
        assert np.abs(near.glow - everywhere.glow).max() < 1e-9


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("size", [64, 200])
def test_defects_are_visible_at_any_size(kind: str, size: int):
    for seed in range(1000, 1012):
        assert 3 <= render_screw(seed=seed, size=size, defect=kind)[1].sum() < 0.15 * size * size


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("scratch_head", -0.05, 0.17),
        ("scratch_neck", 0.05, 0.46),
        ("thread_side", 0.30, 0.90),
        ("thread_top", 0.30, 0.90),
        ("manipulated_front", 0.63, 0.90),
    ],
)
def test_defects_lie_on_their_part_of_the_screw(kind: str, low: float, high: float):
    size = 128
    for seed in range(8):
        scene = _scene(seed)
        mask = rendered.image._expose(seed, size, kind)[2]
        rows, columns = np.nonzero(mask)
        right, up = (columns + 0.5) / size - 0.5, 0.5 - (rows + 0.5) / size
        along, across = rendered.camera.Camera._turn(scene, right, up)
        assert low < along.mean() < high
        assert np.abs(across).max() < 0.16


def test_a_defect_leaves_pose_noise_and_table_alone():
    for kind in DEFECT_KINDS:
        good, _ = render_screw(seed=9, size=128)
        bad, mask = render_screw(seed=9, size=128, defect=kind)
        far = ~ndimage.binary_dilation(mask, iterations=25)
        assert np.abs(good.astype(int) - bad)[far].max() <= 2
        assert np.mean(good[far] == bad[far]) > 0.9


def test_severity_varies():
    for kind in DEFECT_KINDS:
        areas = [render_screw(seed=seed, size=96, defect=kind)[1].mean() for seed in range(16)]
        assert max(areas) > 2.5 * min(areas)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"seed": -1, "size": 64}, "seed -1"),
        ({"seed": 0.5, "size": 64}, "seed 0.5"),
        ({"seed": 0, "size": 63}, "64 to 2048"),
        ({"seed": 0, "size": 2049}, "64 to 2048"),
        ({"seed": 0, "size": 64, "defect": "rust"}, "scratch_head"),
    ],
)
def test_impossible_images_are_refused(arguments: dict, word: str):
    with pytest.raises(InputError, match=word):
        render_screw(**arguments)


# --- data set


@pytest.mark.parametrize("key", ["train", "test_good", "per_defect"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_spec_refuses_impossible_counts(key: str, value: object):
    with pytest.raises(InputError, match=key):
        RenderSpec(**{key: value})


@pytest.mark.parametrize("bad", [{"size": 32}, {"size": 4096}, {"size": "320"}, {"seed": -1}])
def test_spec_refuses_impossible_images(bad: dict):
    with pytest.raises(InputError, match="rendered screws"):
        RenderSpec(**bad)


def test_identity_knows_spec_and_renderer(monkeypatch: pytest.MonkeyPatch):
    first = RenderSpec().identity
    assert first == RenderSpec().identity
    changed = [replace(TINY, **{key: getattr(TINY, key) + 1}).identity for key in ("size", "train", "seed")]
    assert len({TINY.identity, first, *changed}) == 5
    monkeypatch.setattr(rendered.dataset, "RENDERER_VERSION", rendered.dataset.RENDERER_VERSION + 1)
    assert RenderSpec().identity != first


def test_data_set_has_the_layout_of_mvtec(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    folder = render_dataset(tmp_path, TINY, progress=lambda done, total: calls.append((done, total)))
    assert folder == tmp_path / "screw"
    assert calls == [(done, TINY.total) for done in range(1, TINY.total + 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["screw"]
    dataset = read_mvtec(tmp_path, "screw")
    assert len(dataset.train) == TINY.train
    assert len(dataset.test) == TINY.test_good + len(DEFECT_KINDS)
    assert dataset.defect_types == tuple(sorted(DEFECT_KINDS))
    for sample in dataset.test:
        image = read_image(sample.file)
        assert image.shape == (64, 64, 3)
        assert bool(sample.label) == (sample.mask_file is not None)
        if sample.mask_file:
            assert sample.mask_file.name == f"{sample.file.stem}_mask.png"
            assert read_mask(sample.mask_file, (64, 64)).any()
    assert "CC0" in (folder / "license.txt").read_text()
    record = json.loads((folder / "rendered.json").read_text())
    assert record["identity"] == TINY.identity
    assert RenderSpec(**record["spec"]) == TINY


def test_files_hold_what_was_rendered_and_no_image_twice(tmp_path: Path):
    folder = render_dataset(tmp_path, TINY)
    images = list(rendered.dataset._plan(TINY))
    for planned in images:
        image, mask = render_screw(seed=planned.seed, size=64, defect=planned.defect)
        assert np.array_equal(read_image(folder / planned.image)[:, :, 0], image)
        if planned.mask:
            assert np.array_equal(read_mask(folder / planned.mask, (64, 64)), mask)
    assert len({planned.seed for planned in images}) == TINY.total
    others = rendered.dataset._plan(replace(TINY, seed=1))
    assert not {planned.seed for planned in others} & {planned.seed for planned in images}


def test_more_images_leave_the_first_ones_alone():
    more = replace(TINY, train=9, test_good=5, per_defect=4)
    few, many = ({planned.image: planned.seed for planned in rendered.dataset._plan(spec)} for spec in (TINY, more))
    assert few.items() <= many.items()


def test_rendering_again_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = render_dataset(tmp_path, TINY)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(rendered.dataset, "render_screw", None)
    assert render_dataset(tmp_path, TINY) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_two_folders_are_alike(tmp_path: Path):
    assert _digest(render_dataset(tmp_path / "a", TINY)) == _digest(render_dataset(tmp_path / "b", TINY))


def test_another_rendering_is_kept(tmp_path: Path):
    before = _digest(render_dataset(tmp_path, TINY))
    with pytest.raises(InputError, match="delete it or choose another folder"):
        render_dataset(tmp_path, replace(TINY, seed=1))
    assert _digest(tmp_path / "screw") == before


def test_foreign_images_are_kept(tmp_path: Path):
    photograph = tmp_path / "screw" / "train" / "good" / "000.png"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"a photograph")
    with pytest.raises(InputError, match="choose another folder"):
        render_dataset(tmp_path, TINY)
    assert photograph.read_bytes() == b"a photograph"
    assert [path.name for path in tmp_path.iterdir()] == ["screw"]


@pytest.mark.parametrize("record", ["", "[]", "{}", "\x00"])
def test_unreadable_record_counts_as_foreign(tmp_path: Path, record: str):
    folder = render_dataset(tmp_path, TINY)
    (folder / "rendered.json").write_text(record)
    with pytest.raises(InputError, match=r"rendered\.json"):
        render_dataset(tmp_path, TINY)


def test_lost_files_are_noticed(tmp_path: Path):
    folder = render_dataset(tmp_path, TINY)
    (folder / "ground_truth" / "scratch_head" / "000_mask.png").unlink()
    with pytest.raises(InputError, match=r"1 of its files .* ground_truth/scratch_head/000_mask\.png; delete"):
        render_dataset(tmp_path, TINY)


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "screw").mkdir()
    render_dataset(tmp_path, TINY)
    assert len(read_mvtec(tmp_path, "screw").train) == TINY.train


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_interrupted_rendering_leaves_nothing(tmp_path: Path, error: BaseException):
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise error

    with pytest.raises(type(error)):
        render_dataset(tmp_path, TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []
    render_dataset(tmp_path, TINY)


def test_what_a_killed_rendering_left_goes_after_a_day(tmp_path: Path):
    old, young = tmp_path / ".screw-old.partial", tmp_path / ".screw-young.partial"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    render_dataset(tmp_path, TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".screw-young.partial", "screw"]


def test_folder_that_cannot_be_written_is_reported(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        render_dataset(file, TINY)


def test_renderings_at_the_same_time_make_one_data_set(tmp_path: Path):
    meet = threading.Barrier(3)
    found: list[Path | BaseException] = []

    def render() -> None:
        # All have begun before any of them ends.
        try:
            found.append(render_dataset(tmp_path, TINY, progress=lambda done, _: meet.wait(60) if done == 1 else None))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "screw"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["screw"]
    assert len(read_mvtec(tmp_path, "screw").test) == TINY.test_good + len(DEFECT_KINDS)
