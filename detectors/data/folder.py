"""Reader of a person's own images: ``good/`` and, where there are any, a folder per defect type with its masks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from detectors.data.copies import PixelDigests, Progress, content_groups
from detectors.data.images import IMAGE_SUFFIXES
from detectors.data.mvtec import (
    GOOD_FOLDERS,
    MaskIndex,
    by_key,
    categories,
    direct_images,
    divide_masks,
    has_mvtec_layout,
    index_masks,
    is_good_name,
    labelled,
    list_images,
    read_category,
    require_folder,
    subfolders,
)
from detectors.data.samples import Dataset, Sample
from detectors.data.splits import grouped, stable_order
from detectors.errors import InputError

MASK_FOLDERS = ("masks", "mask", "ground_truth")
"""Names, in any case and with ``_dir`` after them if you like, of a folder of masks; never a type of defect."""
DEFECT_FOLDERS = ("ng", "nok", "ko", "bad", "defect", "defects", "defective", "abnormal", "anomaly", "anomalous")
"""Names, in any case and with ``_dir`` after them if you like, of a folder whose folders are types of defects."""


def read_folder(
    root: Path, *, category: str | None = None, cache: PixelDigests | None = None, progress: Progress | None = None
) -> Dataset:
    """Read a folder of images in the first of these layouts that fits:

    1. MVTec AD's: ``train/good``, ``test/<type>``, ``ground_truth/<type>``;
    2. ``good/`` (or ``ok``, ``normal``) and any other folders, each a type of defect, at any depth. A mask is
       ``masks/<type>/<stem>.*`` (or ``mask``, ``ground_truth``; with ``_mask`` after the stem if you like; without
       ``<type>`` where there is only one) or lies beside its image as ``<stem>_mask.*``. Types may lie together in a folder
       such as ``NG/`` or ``defective/`` without images of its own;
    3. images directly in the folder: all are good.

    Where there are defects, a fifth of the good images (at least two, at most half; chosen by `stable_order`) joins
    them in the test set; without defects all images are for training. Copies, which are images with the same decoded
    pixels, stay together and count once.

    Args:
        cache: pixels of files that are known already; see `content_groups`.
        progress: called while other files are decoded.

    Raises:
        InputError: no such folder, no good image, defects without good images.
    """
    root = root.expanduser()
    require_folder(root, way_out="name the folder that holds your images")
    category = category or root.resolve().name or "images"
    if has_mvtec_layout(root):
        return read_category(root, category=category, name="folder")
    good, defective = _find_samples(root)
    if not defective:
        return Dataset(name="folder", category=category, root=root, train=by_key(good))
    ranked = stable_order(good)
    order = grouped(ranked, dict(zip(ranked, content_groups(ranked, cache, progress=progress), strict=True)))
    n_test = min(max(2, len(order) // 5), len(order) // 2)
    return Dataset(
        name="folder",
        category=category,
        root=root,
        train=by_key(sample for group in order[n_test:] for sample in group),
        test=by_key([*(sample for group in order[:n_test] for sample in group), *defective]),
    )


def _find_samples(root: Path) -> tuple[list[Sample], list[Sample]]:
    """Good and defective samples of layout 2 or 3."""
    folders = [folder for folder in subfolders(root) if not is_mask_folder(folder)]
    good_folders = [folder for folder in folders if is_good_name(folder.name)]
    types = [one for folder in folders if folder not in good_folders for one in _types_in(folder)]
    good = [sample for folder in good_folders for sample in labelled(root, folder)]
    if not good and (types or good_folders):
        raise _no_good_folder(root, types)
    if not good:
        images, _ = divide_masks(direct_images(root))
        good = [Sample(key=image.name, file=image) for image in images]
    if not good:
        raise InputError(f"{root}: no images in it (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    defective: list[Sample] = []
    for folder in types:
        masks = _masks_of(root, folder, only_type=len(types) == 1)
        defective.extend(labelled(root, folder, defect_type=folder.name, masks=masks))
    return good, defective


def _types_in(folder: Path) -> list[Path]:
    """The folder as a type of defect, or the folders in it where it is one of `DEFECT_FOLDERS`; those with images."""
    below = subfolders(folder) if _is_called(folder, DEFECT_FOLDERS) and not direct_images(folder) else []
    return [one for one in below or [folder] if list_images(one)]


def _masks_of(root: Path, defect_type: Path, *, only_type: bool) -> list[MaskIndex]:
    """The masks of a type's folder: in a folder of masks under its name, or under the same path as its own."""
    indices = []
    for folder in subfolders(root):
        if not is_mask_folder(folder):
            continue
        places = dict.fromkeys((folder / defect_type.name, folder / defect_type.relative_to(root)))
        if any(place.is_dir() for place in places):
            indices += [index_masks(place) for place in places if place.is_dir()]
        elif only_type:
            indices.append(index_masks(folder, direct_images(folder)))
    return indices


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder holds masks, by its name."""
    return _is_called(folder, MASK_FOLDERS)


def _is_called(folder: Path, names: Collection[str]) -> bool:
    return folder.name.casefold().removesuffix("_dir") in names


def _no_good_folder(root: Path, types: list[Path]) -> InputError:
    products = categories(root)
    if products:
        choice = ", ".join(str(root / name) for name in products)
        return InputError(f"{root}: a folder of products, not of images; name one product: {choice}")
    there = f", only {', '.join(folder.name for folder in types)}" if types else ""
    return InputError(
        f"{root}: no good images{there}; put images without defects into {root / GOOD_FOLDERS[0]} "
        f"({' and '.join(GOOD_FOLDERS[1:])} will do as names too)"
    )
