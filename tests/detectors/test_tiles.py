"""Images cut into tiles, and detectors that look at them: seams, single tiles, storage, export and memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.backbones.pyramid import build_backbone
from detectors.base import FitContext, Head
from detectors.data.images import Size
from detectors.detector import Detector
from detectors.errors import InputError
from detectors.heads.padim.head import Padim
from detectors.heads.patchcore.head import Patchcore
from detectors.heads.spade.head import Spade
from detectors.runtime.artifact import Artifact, load_artifact, model_size_mb, save_artifact
from detectors.runtime.description import parse_description
from detectors.testing.contract import random_images
from detectors.tiles import TileGrid, Tiles
from tests.helpers import ROOT

BACKBONE, STRIDES = "resnet18@random", [8, 16]
HEADS = {
    "patchcore": lambda: Patchcore(coreset_ratio=0.2),
    "windows": lambda: Patchcore(coreset_ratio=0.2, window=1),
    "padim": lambda: Padim(n_features=12),
    "spade": lambda: Spade(n_neighbors=3),
    "retrieval": lambda: Spade(n_neighbors=3, image_score="retrieval"),
}


def detector(head: Head, size: Size, tiles: Tiles | None, *, sigma: float = 2.0) -> Detector:
    return Detector(build_backbone(BACKBONE, STRIDES), head, image_size=size, smoothing_sigma=sigma, tiles=tiles)


# --- cutting and joining


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    side=st.integers(32, 120),
    share=st.floats(0, 0.5),
)
def test_tiles_cover_the_image_overlap_enough_and_join_to_what_was_cut(size, side, share):
    overlap = int(share * side)
    grid = TileGrid(size, Tiles(side, overlap))
    covered = torch.zeros(size)
    for row, column in grid.corners:
        assert 0 <= row <= size[0] - grid.size[0]
        assert 0 <= column <= size[1] - grid.size[1]
        covered[row : row + grid.size[0], column : column + grid.size[1]] += 1
    assert bool((covered >= 1).all())
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in grid.corners})
        assert all(second - first <= grid.size[axis] - overlap for first, second in itertools.pairwise(starts))
        # No more than needed: one tile less would overlap too little.
        if len(starts) > 1:
            assert (len(starts) - 1) * (grid.size[axis] - overlap) < size[axis] - overlap
    image = torch.rand(2, 3, *size)
    tiles = grid.cut(image)
    assert tiles.shape == (2 * len(grid), 3, *grid.size)
    joined = grid.join(tiles[: len(grid), 0])
    torch.testing.assert_close(joined, image[0, 0], rtol=1e-5, atol=1e-6)


def test_a_map_has_no_step_where_a_tile_ends():
    grid = TileGrid((64, 160), Tiles(64, 32))
    assert len(grid) == 4
    maps = torch.arange(4.0)[:, None, None].expand(4, 64, 64)
    joined = grid.join(maps)
    assert torch.equal(joined[0], joined[-1])
    steps = joined[0].diff()
    assert float(steps.min()) >= 0
    # From one tile's value to the next through what both cover.
    assert float(steps.max()) < 1 / 32 + 1e-5
    assert (joined[0, 0], joined[0, -1]) == (0.0, 3.0)


@pytest.mark.parametrize(("side", "overlap"), [(31, 0), (2049, 0), (64, 33), (64, -1)])
def test_tiles_out_of_range_are_refused(side, overlap):
    with pytest.raises(InputError, match="tiles: "):
        Tiles(side, overlap)


def test_more_tiles_than_anybody_needs_are_refused():
    assert len(TileGrid((2048, 2048), Tiles(32))) == 4096
    with pytest.raises(InputError, match="5184 tiles of an image of 2080 x 2080 pixels are too many"):
        TileGrid((2080, 2080), Tiles(32, 3))


# --- detectors


@pytest.mark.parametrize("name", HEADS)
def test_one_tile_as_large_as_the_image_gives_the_scores_of_the_whole(name):
    size = (64, 96)
    train, test = random_images(6, size, seed=1), random_images(3, size, seed=2)
    whole = detector(HEADS[name](), size, None).fit(train)(test)
    tiled = detector(HEADS[name](), size, Tiles(96, 32)).fit(train)(test)
    assert torch.equal(tiled.scores, whole.scores)
    assert torch.equal(tiled.maps, whole.maps)


@pytest.mark.parametrize("name", HEADS)
def test_tiles_are_scored_as_images_of_their_size_are(name):
    """Each tile by itself, by a head that learned from all of them, or from its place alone."""
    size, tiles = (64, 112), Tiles(64, 16)
    grid = TileGrid(size, tiles)
    assert len(grid) == 2
    train, test = random_images(6, size, seed=1), random_images(3, size, seed=2)
    found = detector(HEADS[name](), size, tiles).fit(train)(test)
    by_hand: list[Tensor] = []
    for place in range(2):
        cut = grid.cut(train)
        if name in ("padim", "windows"):
            cut = cut[place::2]
        alone = detector(HEADS[name](), grid.size, None).fit(cut)(grid.cut(test)[place::2])
        by_hand.append(alone.scores)
        if place == 0:
            torch.testing.assert_close(found.maps[:, :, :48], alone.maps[:, :, :48], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.scores, torch.stack(by_hand).amax(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_stored_features_give_the_scores_of_images(name):
    size, tiles = (64, 112), Tiles(64, 16)
    one = detector(HEADS[name](), size, tiles)
    train, test = one.extract(random_images(6, size, seed=1)), random_images(3, size, seed=2)
    assert (len(train), train.tiles) == (6, 2)
    one.fit_features(train, FitContext())
    found, patches = one.score_patches(one.extract(test))
    assert patches.shape == (3, 2, 8, 8)
    direct = one(test)
    torch.testing.assert_close(found.scores, direct.scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.maps, direct.maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.maps_of(patches), found.maps)
    taken = one.score_features(one.extract(test).take([2, 0]))
    torch.testing.assert_close(taken.scores, found.scores[[2, 0]], rtol=1e-5, atol=1e-5)
    assert one(test[:0]).maps.shape == (0, *size)


def test_features_of_other_tiles_are_refused():
    one = detector(Patchcore(), (64, 112), Tiles(64, 16)).fit(random_images(4, (64, 112)))
    other = detector(Patchcore(), (64, 160), Tiles(64, 0))
    with pytest.raises(InputError, match="features of 3 tiles, but the detector looks at 2"):
        one.score_features(other.extract(random_images(1, (64, 160))))


def textured(count: int, size: Size, *, seed: int) -> Tensor:
    """Gray with a fine grain that differs from image to image."""
    generator = torch.Generator().manual_seed(seed)
    return (128 + 8 * torch.randn(count, 1, *size, generator=generator)).clamp(0, 255).byte().expand(-1, 3, -1, -1)


@pytest.mark.parametrize("name", ["patchcore", "padim"])
def test_a_defect_on_a_seam_scores_as_one_in_the_middle_of_a_tile(name):
    size, tiles = (96, 256), Tiles(96, 32)
    grid = TileGrid(size, tiles)
    columns = sorted({column for _, column in grid.corners})
    one = detector(HEADS[name](), size, tiles).fit(textured(40, size, seed=1))
    plain = textured(1, size, seed=2)
    scores: dict[str, float] = {}
    places = {"middle": columns[1] + 48, "first seam": columns[1], "its other side": columns[0] + 96}
    for place, centre in places.items():
        image = plain.clone()
        image[:, :, 40:56, centre - 8 : centre + 8] = 255
        found = one(image)
        scores[place] = float(found.scores)
        peak = int(found.maps[0].flatten().argmax())
        assert abs(peak % size[1] - centre) <= 12
    assert float(one(plain).scores) < 0.5 * scores["middle"]
    # PaDiM's Gaussians differ from position to position, in whole images too.
    for place in places:
        assert scores[place] == pytest.approx(scores["middle"], rel=0.1 if name == "patchcore" else 0.15)


# --- storage and export


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_detector_cuts_as_before(name, tmp_path):
    size, tiles = (64, 112), Tiles(64, 16)
    one = detector(HEADS[name](), size, tiles).fit(random_images(6, size, seed=1))
    folder = save_artifact(Artifact(one), tmp_path / "detector")
    again = load_artifact(folder).detector
    assert again.tiles == tiles
    assert model_size_mb(again) == model_size_mb(one)
    test = random_images(3, size, seed=2)
    expected, found = one(test), again(test)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.maps, expected.maps)
    assert ("padim" in name or name == "windows") == any("head1." in key for key in _tensor_names(folder))


def _tensor_names(folder: Path) -> list[str]:
    import safetensors

    with safetensors.safe_open(folder / "detector.safetensors", framework="pt") as file:
        return list(file.keys())


def test_a_detector_of_whole_images_is_described_as_before(tmp_path):
    folder = save_artifact(
        Artifact(detector(Patchcore(), (64, 64), None).fit(random_images(3, (64, 64)))), tmp_path / "d"
    )
    described = json.loads((folder / "detector.json").read_text())
    assert "tiles" not in described
    described["tiles"] = {"side": 64, "overlap": 40}
    from detectors.runtime.description import DIGEST, Description, digest_of

    described[DIGEST] = digest_of(described)
    with pytest.raises(InputError, match="an overlap of 40 pixels is out of range"):
        parse_description(json.dumps(described), place=folder, kind=Description)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("name", ["patchcore", "padim", "windows"])
def test_an_export_of_tiles_scores_as_the_detector(name, format, tmp_path):
    pytest.importorskip(format if format == "openvino" else "onnxruntime", reason="the extra `export` is not installed")
    from detectors.runtime.export import export_detector
    from detectors.runtime.exported import load_exported

    size = (64, 112)
    one = detector(HEADS[name](), size, Tiles(64, 16)).fit(random_images(6, size, seed=1))
    target = tmp_path / ("model.onnx" if format == "onnx" else "model")
    found = export_detector(Artifact(one), target, format, images=random_images(3, size, seed=2))
    assert found.relative < 1e-4
    again = load_exported(target)
    assert again.description.tiles_together == (name != "patchcore")
    prediction = again.predict(random_images(2, size, seed=3))
    assert prediction.maps.shape == (2, *size)
    torch.testing.assert_close(prediction.scores, one(random_images(2, size, seed=3)).scores, rtol=1e-4, atol=1e-4)


def test_more_heads_than_tiles_may_have_are_refused():
    with pytest.raises(InputError, match="padim learns each tile by itself here, and 1024 are too many"):
        detector(HEADS["padim"](), (1024, 1024), Tiles(32))
    assert len(detector(HEADS["patchcore"](), (1024, 1024), Tiles(32)).heads) == 1


@pytest.mark.slow
def test_memory_is_bounded_by_tiles_and_not_by_the_image(tmp_path):
    """8,000 x 2,000 pixels in a process of less than 4 GB, on the bundled backbone."""
    script = """
import resource, torch
from detectors.backbones.pyramid import build_backbone
from detectors.detector import Detector
from detectors.heads.patchcore.head import Patchcore
from detectors.tiles import Tiles
size = (2000, 8000)
torch.manual_seed(0)
head = Patchcore(coreset_ratio=0.001, neighbourhood=0)
one = Detector(build_backbone("tf_efficientnet_lite0", [8, 16]), head, image_size=size, tiles=Tiles(512, 64))
one.fit(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8))
found = one(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8))
assert found.maps.shape == (1, *size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 4e9
