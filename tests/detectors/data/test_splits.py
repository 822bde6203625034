"""Split protocols: deterministic, disjoint, and refused where they cannot be honest."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detectors.data import copies
from detectors.data.mvtec import read_mvtec
from detectors.data.painting.recipe import CELLS
from detectors.data.samples import GOOD, Dataset, ImageSet, Sample
from detectors.data.splits import ENOUGH_LABELLED, MIN_NORMALS_V1, Splits, make_splits, stable_order
from detectors.data.synthetic_defects import DEFECT_KINDS
from detectors.errors import InputError

SIZE = (32, 48)


def samples(folder: str, kind: str, count: int) -> list[Sample]:
    """Samples without files: dividing them reads nothing."""
    keys = [f"{folder}/{kind}/{index:03}.png" for index in range(count)]
    return [Sample(key=key, file=Path("data") / key, defect_type=kind) for key in keys]


def make_dataset(train: int = 30, **test: int) -> Dataset:
    labelled = [sample for kind, count in test.items() for sample in samples("test", kind, count)]
    return Dataset(
        name="folder",
        category="widget",
        root=Path("data"),
        train=tuple(samples("train", GOOD, train)),
        test=tuple(labelled),
    )


def keys(image_set: ImageSet | None) -> list[str]:
    assert image_set is not None
    return [sample.key for sample in image_set.samples]


# --- holdout


def test_holdout_is_even_and_odd_ranks_within_each_type():
    dataset = make_dataset(good=7, dent=4, scratch=5)
    splits = make_splits(dataset, protocol="holdout", image_size=SIZE)
    assert splits.counts == {
        "train": {GOOD: 30},
        "validation": {GOOD: 4, "dent": 2, "scratch": 3},
        "test": {GOOD: 3, "dent": 2, "scratch": 2},
    }
    for kind, count in {"good": 7, "dent": 4, "scratch": 5}.items():
        names = [f"{index:03}.png" for index in range(count)]
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{kind}/{name}".encode()).hexdigest())
        prefix = f"test/{kind}/"
        assert [key for key in keys(splits.validation) if key.startswith(prefix)] == sorted(
            prefix + name for name in ranked[0::2]
        )
        assert [key for key in keys(splits.test) if key.startswith(prefix)] == sorted(
            prefix + name for name in ranked[1::2]
        )


def test_holdout_does_not_depend_on_order_seed_or_place():
    dataset = make_dataset(good=9, dent=9)
    expected = make_splits(dataset, protocol="holdout", image_size=SIZE)
    shuffled = list(dataset.test)
    random.Random(1).shuffle(shuffled)
    moved = [replace(sample, file=Path("elsewhere") / sample.key) for sample in shuffled]
    other = make_splits(replace(dataset, test=tuple(moved)), protocol="holdout", image_size=SIZE, seed=5)
    assert keys(other.validation) == keys(expected.validation)
    assert keys(other.test) == keys(expected.test)


@pytest.mark.parametrize(
    ("test", "lacking", "part"),
    [
        ({}, "labelled", "validation"),
        ({"good": 4}, "defective", "validation"),
        ({"dent": 4}, "good", "validation"),
        ({"good": 4, "dent": 1}, "defective", "test"),
        ({"good": 4, "dent": 1, "scratch": 1}, "defective", "test"),
        ({"good": 1, "dent": 4}, "good", "test"),
    ],
)
def test_holdout_is_refused_without_both_labels_in_both_parts(test, lacking, part):
    with pytest.raises(
        InputError, match=f"widget: no {lacking} images are left for {part}.*protocol synthetic"
    ) as error:
        make_splits(make_dataset(**test), protocol="holdout", image_size=SIZE)
    assert "\n" not in str(error.value)


def test_ties_in_the_order_are_broken_by_the_key():
    twins = [
        Sample(key=f"scratch/{day}/000.png", file=Path(day), defect_type="scratch") for day in ("tuesday", "monday")
    ]
    assert [sample.key for sample in stable_order(twins)] == ["scratch/monday/000.png", "scratch/tuesday/000.png"]


def test_few_labelled_images_are_all_validated_and_none_is_kept_for_test():
    dataset = make_dataset(good=40, dent=39)
    few = make_splits(dataset, protocol="holdout", image_size=SIZE, nested_below=ENOUGH_LABELLED)
    assert not few.nested  # 20 + 20 are validated
    dataset = make_dataset(good=39, dent=38)
    few = make_splits(dataset, protocol="holdout", image_size=SIZE, nested_below=ENOUGH_LABELLED)
    assert few.nested
    assert few.counts == {"train": {GOOD: 30}, "validation": {GOOD: 39, "dent": 38}}
    assert keys(few.validation) == keys(few.test)
    assert few.test.name == "test"
    assert few.unseen is few.validation  # detectors are fitted to train alone
    halves = make_splits(dataset, protocol="holdout", image_size=SIZE)
    assert not halves.nested
    assert halves.counts["test"] == {GOOD: 19, "dent": 19}
    assert [image_set.name for image_set in few.sets] == ["train", "validation"]


def test_two_of_each_label_are_enough_where_all_are_validated():
    splits = make_splits(make_dataset(good=2, dent=1, scratch=1), protocol="holdout", image_size=SIZE, nested_below=40)
    assert splits.counts["validation"] == {GOOD: 2, "dent": 1, "scratch": 1}


@pytest.mark.parametrize(
    ("test", "there"),
    [({"good": 4, "dent": 1}, "is 1 defective"), ({"dent": 4}, "are no good"), ({}, "are no labelled")],
)
def test_one_image_of_a_label_cannot_be_left_out(test, there):
    with pytest.raises(InputError, match=f"at least two labelled images of each kind.*there {there}"):
        make_splits(make_dataset(**test), protocol="holdout", image_size=SIZE, nested_below=40)


# --- paper


def test_paper_scores_everything_and_searches_nothing():
    dataset = make_dataset(good=3, dent=4)
    splits = make_splits(dataset, protocol="paper", image_size=SIZE)
    assert splits.validation is None
    assert splits.counts == {"train": {GOOD: 30}, "test": {GOOD: 3, "dent": 4}}
    assert set(splits.test.samples) == set(dataset.test)
    with pytest.raises(InputError, match="protocol paper has no validation set"):
        splits.search_sets  # noqa: B018


@pytest.mark.parametrize("test", [{}, {"good": 3}, {"dent": 3}])
def test_paper_is_refused_where_nothing_can_be_ranked(test):
    with pytest.raises(InputError, match="are left for test"):
        make_splits(make_dataset(**test), protocol="paper", image_size=SIZE)


# --- synthetic


def test_synthetic_holds_out_a_fifth_and_paints_every_second():
    dataset = make_dataset(train=103, good=5, dent=5)
    splits = make_splits(dataset, protocol="synthetic", recipes=1, image_size=SIZE)
    assert len(splits.train) == 83
    assert splits.counts["train"] == {GOOD: 83}
    for part in (splits.validation, splits.test):
        assert part is not None
        assert len(part) == 10
        assert part.labels.sum() == 5
        kinds = Counter(kind for kind in part.defect_types if kind != GOOD)
        assert kinds == {"synthetic_cutpaste": 2, "synthetic_scar": 2, "synthetic_perlin": 1}
        for sample in part.samples:
            assert sample.mask_file is None
            if sample.label:
                assert sample.recipe is not None
                assert sample.defect_type == f"synthetic_{sample.recipe.kind}"
                assert sample.key.endswith(f"#{sample.recipe.kind}")
            else:
                assert sample.recipe is None
    labelled = {sample.file for sample in dataset.test}
    assert not labelled & {sample.file for part in splits.sets for sample in part.samples}


def test_synthetic_seed_changes_the_defects_only():
    dataset = make_dataset(train=60)
    first, again, other = (
        make_splits(dataset, protocol="synthetic", recipes=1, image_size=SIZE, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    for name in ("train", "validation", "test"):
        assert keys(getattr(first, name)) == keys(getattr(other, name))
    recipes = [
        {sample.key: sample.recipe for sample in splits.test.samples if sample.recipe} for splits in (first, other)
    ]
    assert recipes[0].keys() == recipes[1].keys()
    assert all(recipes[0][key] != recipes[1][key] for key in recipes[0])
    assert len({recipe.seed for recipe in recipes[0].values()}) == len(recipes[0])


def test_synthetic_needs_enough_normals():
    smallest = make_splits(make_dataset(train=MIN_NORMALS_V1), protocol="synthetic", recipes=1, image_size=SIZE)
    assert [len(part) for part in smallest.sets] == [6, 2, 2]
    assert [int(part.labels.sum()) for part in smallest.sets] == [0, 1, 1]
    with pytest.raises(InputError, match="at least 10 good training images, there are 9"):
        make_splits(make_dataset(train=MIN_NORMALS_V1 - 1), protocol="synthetic", recipes=1, image_size=SIZE)


def test_synthetic_images_load_with_exact_masks(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for index in range(12):
        path = tmp_path / "widget" / "train" / "good" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.asarray(Image.fromarray(base).resize((96, 64))).astype(int) + rng.integers(-3, 4, (64, 96, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    splits = make_splits(read_mvtec(tmp_path, "widget"), protocol="synthetic", recipes=1, image_size=SIZE)
    _, validation = splits.search_sets
    assert validation.has_masks
    masks = validation.masks()
    assert masks is not None
    assert masks.shape == (len(validation), *SIZE)
    assert masks.any(axis=(1, 2)).tolist() == validation.labels.astype(bool).tolist()
    assert tuple(validation.images().shape) == (len(validation), 3, *SIZE)


# --- copies


def drawn(folder: Path, train: int = 30, **test: int) -> Dataset:
    """A data set with files, no two alike."""
    dataset = make_dataset(train=train, **test)
    rng = np.random.default_rng(0)

    def saved(sample: Sample) -> Sample:
        file = folder / sample.key
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).save(file)
        return replace(sample, file=file)

    return replace(dataset, root=folder, train=tuple(map(saved, dataset.train)), test=tuple(map(saved, dataset.test)))


def copied(sample: Sample, name: str, kind: str | None = None) -> Sample:
    """The same pixels in another file, a BMP where the image is a PNG."""
    kind = kind or sample.defect_type
    folder = sample.file.parents[1] / kind
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(sample.file) as image:
        image.convert("RGB").save(folder / f"{name}.bmp")
    part = sample.key.split("/")[0]
    return Sample(key=f"{part}/{kind}/{name}.bmp", file=folder / f"{name}.bmp", defect_type=kind)


def sides(splits: Splits, members: list[Sample]) -> set[str]:
    files = {sample.file for sample in members}
    return {part.name for part in splits.sets for sample in part.samples if sample.file in files}


def test_synthetic_keeps_copies_on_one_side(tmp_path):
    dataset = drawn(tmp_path, train=30)
    families = [[sample, copied(sample, f"{index} again"), copied(sample, f"{index} once more")]
                for index, sample in enumerate(dataset.train)]  # fmt: skip
    splits = make_splits(
        replace(dataset, train=tuple(sample for family in families for sample in family)),
        protocol="synthetic",
        recipes=1,
        image_size=SIZE,
    )
    assert [sides(splits, family) for family in families if len(sides(splits, family)) > 1] == []
    assert [len(part) for part in splits.sets] == [72, 9, 9]
    assert [int(part.labels.sum()) for part in splits.sets] == [0, 3, 3]
    assert splits.copies == 60


def test_synthetic_counts_copies_once(tmp_path):
    dataset = drawn(tmp_path, train=MIN_NORMALS_V1 - 1)
    again = [copied(dataset.train[0], f"copy {index}") for index in range(20)]
    with pytest.raises(InputError, match=r"there are 9 without copies \(29 with them\); add some"):
        make_splits(replace(dataset, train=(*dataset.train, *again)), protocol="synthetic", recipes=1, image_size=SIZE)


def test_holdout_keeps_copies_in_one_half(tmp_path):
    dataset = drawn(tmp_path, good=10, dent=10, scratch=6)
    families = [[sample, copied(sample, f"{index} again")] for index, sample in enumerate(dataset.test)]
    of_two_types = [families[12][0], copied(families[12][0], "both", kind="scratch")]
    labelled = [*(sample for family in families for sample in family), of_two_types[1]]
    splits = make_splits(replace(dataset, test=tuple(labelled)), protocol="holdout", image_size=SIZE)
    assert all(len(sides(splits, family)) == 1 for family in [*families, of_two_types])
    assert sum(len(part) for part in splits.sets) == 30 + len(labelled)
    assert splits.counts["validation"][GOOD] == splits.counts["test"][GOOD] == 10
    assert splits.notes == ()


def test_holdout_leaves_a_training_image_that_is_labelled_too_out_of_train_and_says_so(tmp_path):
    dataset = drawn(tmp_path, good=6, dent=6)
    twins = [copied(sample, f"twin {index}") for index, sample in enumerate(dataset.test[:5])]
    twins = [replace(twin, key=f"train/good/twin {index}.bmp", defect_type=GOOD) for index, twin in enumerate(twins)]
    plain = make_splits(dataset, protocol="holdout", image_size=SIZE)
    splits = make_splits(replace(dataset, train=(*twins, *dataset.train)), protocol="holdout", image_size=SIZE)
    assert splits.digest == plain.digest
    (note,) = splits.notes
    assert "left out of train, having the pixels of a labelled image: 5 of 35 images" in note
    assert "train/good/twin 0.bmp (test/good/000.png), train/good/twin 1.bmp (test/good/001.png)" in note
    assert note.endswith("and 2 more")


def test_holdout_is_refused_where_every_training_image_is_labelled_too(tmp_path):
    dataset = drawn(tmp_path, good=6, dent=6)
    twins = tuple(replace(sample, key=f"train/{sample.key}") for sample in dataset.test[:6])
    with pytest.raises(
        InputError, match=r"widget: every good training image is also a labelled one.*test/good/000.png"
    ):
        make_splits(replace(dataset, train=twins), protocol="holdout", image_size=SIZE)


def test_paper_changes_nothing_and_says_what_is_trained_and_tested_on(tmp_path):
    dataset = drawn(tmp_path, good=4, dent=4)
    twin = replace(copied(dataset.test[1], "twin"), key="train/good/twin.bmp")
    splits = make_splits(replace(dataset, train=(*dataset.train, twin)), protocol="paper", image_size=SIZE)
    assert splits.counts == {"train": {GOOD: 31}, "test": {GOOD: 4, "dent": 4}}
    (note,) = splits.notes
    assert "both trained and tested on" in note
    assert "1 of 8 labelled images, test/good/001.png (train/good/twin.bmp)" in note
    assert make_splits(dataset, protocol="paper", image_size=SIZE).notes == ()


@pytest.mark.parametrize("protocol", ["holdout", "paper", "synthetic"])
def test_without_copies_files_or_none_are_divided_alike(tmp_path, protocol):
    """What is divided without copies is what was divided before copies were looked for: by the names alone."""
    with_files = make_splits(drawn(tmp_path, good=9, dent=8), protocol=protocol, image_size=SIZE)
    by_names = make_splits(make_dataset(good=9, dent=8), protocol=protocol, image_size=SIZE)
    assert [keys(part) for part in with_files.sets] == [keys(part) for part in by_names.sets]
    assert (with_files.notes, with_files.copies) == ((), 0)


def test_files_are_decoded_once(tmp_path, monkeypatch):
    dataset = drawn(tmp_path, good=6, dent=6)
    known: dict[str, str] = {}
    first = make_splits(dataset, protocol="holdout", image_size=SIZE, cache=known)
    monkeypatch.setattr(copies, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    assert make_splits(dataset, protocol="holdout", image_size=SIZE, cache=known) == first


# --- synthetic, second version of recipes


def painted(image_set: ImageSet | None) -> list[Sample]:
    assert image_set is not None
    return [sample for sample in image_set.samples if sample.label]


def good_files(image_set: ImageSet | None) -> set[Path]:
    assert image_set is not None
    return {sample.file for sample in image_set.samples if not sample.label}


@pytest.mark.parametrize(("train", "held_out"), [(100, 30), (103, 30), (320, 64)])
def test_of_many_normals_a_fifth_is_held_out_and_every_one_painted_several_times(train, held_out):
    splits = make_splits(make_dataset(train=train, good=5, dent=5), protocol="synthetic", image_size=(256, 256))
    assert splits.folds == 0
    assert splits.unseen is splits.validation
    tested = train // 10
    assert [len(good_files(part)) for part in splits.sets] == [train - held_out - tested, held_out, tested]
    for part, least in ((splits.validation, 200), (splits.test, len(CELLS))):
        assert len(painted(part)) >= least
        assert {sample.file for sample in painted(part)} == good_files(part)
        assert len(set(Counter(sample.file for sample in painted(part)).values())) == 1
        cells = Counter(cell for cell in part.painted.cells if cell)
        assert set(cells) == {f"{kind}/{size}-{('faint', 'full')[opacity]}" for kind, size, opacity in CELLS}
        assert max(cells.values()) - min(cells.values()) <= 1
    assert len(set(keys(splits.validation))) == len(splits.validation)


@pytest.mark.parametrize("train", [4, 5, 9, 16, 60, 99])
def test_few_normals_are_held_out_in_turns(train):
    splits = make_splits(make_dataset(train=train), protocol="synthetic", image_size=(256, 256))
    tested = max(1, train // 10)
    assert splits.folds == min(5, train - tested)
    assert splits.unseen is None
    assert good_files(splits.train) == good_files(splits.validation)
    assert len(good_files(splits.test)) == tested
    assert not good_files(splits.test) & good_files(splits.train)
    turns = {sample.file: sample.fold for sample in splits.train.samples}
    assert set(turns.values()) == set(range(1, splits.folds + 1))
    assert all(turns[sample.file] == sample.fold for sample in splits.validation.samples)
    assert max(Counter(turns.values()).values()) - min(Counter(turns.values()).values()) <= 1
    assert len(painted(splits.validation)) >= 200
    assert len(painted(splits.test)) >= len(CELLS)


def test_copies_stay_together_in_any_turn(tmp_path):
    dataset = drawn(tmp_path, train=30)
    families = [[sample, copied(sample, f"{index} again")] for index, sample in enumerate(dataset.train)]
    every = replace(dataset, train=tuple(sample for family in families for sample in family))
    splits = make_splits(every, protocol="synthetic", image_size=SIZE)
    turns = {sample.file: sample.fold for sample in (*splits.train.samples, *splits.test.samples)}
    assert all(len({turns[sample.file] for sample in family}) == 1 for family in families)
    assert {sample.file for sample in painted(splits.test)} < {sample.file for sample in splits.test.samples}


def test_another_seed_paints_otherwise_and_holds_out_the_same():
    first, other = (
        make_splits(make_dataset(train=120), protocol="synthetic", image_size=SIZE, seed=seed) for seed in (0, 1)
    )
    for one, two in zip(first.sets, other.sets, strict=True):
        assert good_files(one) == good_files(two)
    recipes = [{sample.recipe for sample in painted(part.validation)} for part in (first, other)]
    assert not recipes[0] & recipes[1]


def test_only_some_masks_of_many_painted_images_are_painted_again():
    splits = make_splits(make_dataset(train=320), protocol="synthetic", image_size=(256, 256))
    chosen = splits.validation.with_pixels
    labels = splits.validation.labels[list(chosen)]
    assert ((labels == 1).sum(), (labels == 0).sum()) == (64, 64)
    assert list(chosen) == sorted(set(chosen))
    kinds = {splits.validation.samples[index].recipe.kind for index in chosen if splits.validation.labels[index]}
    assert len(kinds) == 9


# --- all protocols


@settings(max_examples=60, deadline=None)
@given(
    protocol=st.sampled_from(["holdout", "paper", "synthetic"]),
    train=st.integers(10, 60),
    good=st.integers(2, 12),
    dent=st.integers(2, 12),
    scratch=st.integers(1, 12),
)
def test_parts_are_disjoint_and_lose_nothing(protocol, train, good, dent, scratch):
    dataset = make_dataset(train=train, good=good, dent=dent, scratch=scratch)
    splits = make_splits(dataset, protocol=protocol, recipes=1, image_size=SIZE)
    files = [sample.file for part in splits.sets for sample in part.samples]
    assert len(files) == len(set(files))
    used = dataset.train if protocol == "synthetic" else (*dataset.train, *dataset.test)
    assert set(files) == {sample.file for sample in used}
    assert not splits.train.labels.any()
    for part in splits.sets:
        assert part.image_size == SIZE
        assert keys(part) == sorted(keys(part))
    for part in splits.sets[1:]:
        assert 0 < part.labels.sum() < len(part)


def test_parts_that_share_an_image_are_impossible():
    normals = tuple(samples("train", GOOD, 3))
    train = ImageSet("train", normals)
    with pytest.raises(ValueError, match=r"is in train and in test"):
        Splits(protocol="paper", train=train, validation=None, test=ImageSet("test", normals[2:]))
    painted = replace(normals[0], key="train/good/000.png#scar")
    with pytest.raises(ValueError, match=r"is in train and in test"):
        Splits(protocol="paper", train=train, validation=None, test=ImageSet("test", (painted,)))


def test_unknown_protocol_and_impossible_size():
    with pytest.raises(InputError, match="'kfold' is unknown; choose one of holdout, paper, synthetic"):
        make_splits(make_dataset(good=2, dent=2), protocol="kfold", image_size=SIZE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1 pixel"):
        make_splits(make_dataset(good=2, dent=2), protocol="paper", image_size=(0, 32))


def test_digest_follows_protocol_content_and_seed_not_the_place(tmp_path):
    def build(place: Path) -> Dataset:
        for index, kind in enumerate(["train/good"] * 12 + ["test/good"] * 4 + ["test/dent"] * 4):
            path = place / "widget" / kind / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), index).save(path)
        return read_mvtec(place, "widget")

    def digest(dataset: Dataset, protocol, seed: int = 0) -> str:
        return make_splits(dataset, protocol=protocol, image_size=SIZE, seed=seed).digest

    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    assert digest(first, "holdout") == digest(second, "holdout")
    assert digest(first, "holdout", seed=1) == digest(first, "holdout")
    digests = [
        digest(first, "holdout"),
        digest(first, "paper"),
        digest(first, "synthetic"),
        digest(first, "synthetic", 1),
    ]
    assert len(set(digests)) == 4
    paper = make_splits(first, protocol="paper", image_size=SIZE)
    assert replace(paper, protocol="holdout").digest != paper.digest
    Image.new("L", (16, 16), 200).save(second.test[0].file)
    assert digest(second, "holdout") != digest(first, "holdout")


# --- real images


@pytest.mark.real_images
def test_holdout_of_the_real_screws(real_data):
    dataset = read_mvtec(real_data / "MVTecAD", "screw")
    splits = make_splits(dataset, protocol="holdout", image_size=(256, 256))
    train, validation = splits.search_sets
    assert train.counts == {GOOD: 320}
    assert validation.counts == {
        GOOD: 21,
        "manipulated_front": 12,
        "scratch_head": 12,
        "scratch_neck": 13,
        "thread_side": 12,
        "thread_top": 12,
    }
    assert len(splits.test) == 160 - len(validation)
    contents = [
        {hashlib.sha256(sample.file.read_bytes()).hexdigest() for sample in part.samples} for part in splits.sets
    ]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 480
    assert len(splits.digest) == 64


@pytest.mark.real_images
@pytest.mark.parametrize(("place", "category"), [("VisA", "macaroni1"), ("carpet_tiles", "carpet")])
def test_holdout_halves_the_other_real_sets(real_data, place, category):
    splits = make_splits(read_mvtec(real_data / place, category), protocol="holdout", image_size=(256, 256))
    assert [len(part) for part in splits.sets] == [160, 40, 40]
    assert all(part.labels.sum() == 20 for part in splits.sets[1:])


@pytest.mark.real_images
def test_synthetic_defects_on_the_real_screws(real_data):
    dataset = read_mvtec(real_data / "MVTecAD", "screw")
    splits = make_splits(dataset, protocol="synthetic", recipes=1, image_size=(128, 128))
    assert [len(part) for part in splits.sets] == [256, 32, 32]
    assert {kind.removeprefix("synthetic_") for kind in splits.test.defect_types} == {GOOD, *DEFECT_KINDS}
    index = int(np.argmax(splits.test.labels))
    rgb, mask = splits.test.load(index)
    assert rgb.shape == (128, 128, 3)
    assert mask is not None
    assert 0 < mask.mean() < 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_very_few_normals_nothing_is_held_out(count):
    splits = make_splits(make_dataset(train=count), protocol="synthetic", image_size=SIZE)
    assert len(splits.train) == count
    assert (splits.keeps_test, splits.in_sample, splits.nested, splits.folds) == (False, True, False, 0)
    assert splits.unseen is None  # whatever is fitted has seen them
    assert splits.validation is not None
    assert splits.validation.counts[GOOD] == count
    assert len(splits.validation) - count >= 4
    assert [image_set.name for image_set in splits.sets] == ["train", "validation"]
    assert keys(splits.test) == keys(splits.validation)
    assert not make_splits(make_dataset(train=4), protocol="synthetic", image_size=SIZE).in_sample
