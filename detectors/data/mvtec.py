"""Reader of MVTec AD's folder layout, for any category: ``train/good``, ``test/<type>``, ``ground_truth/<type>``.

``good`` may be called otherwise, see `GOOD_FOLDERS`: data sets of this layout have ``ok`` there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from detectors.data.images import is_image
from detectors.data.samples import GOOD, Dataset, Sample
from detectors.errors import InputError

GOOD_FOLDERS = ("good", "ok", "normal")
"""Names, in any case and with ``_dir`` after them if you like, of a folder of images without defects."""
MASK_MARK = "_mask"
"""What a mask's file name has in addition to its image's, before the suffix."""

MaskIndex = dict[str, Path]
"""Masks of one type by their path in the type's folder, without suffix."""


def read_mvtec(root: Path, category: str, *, name: str = "mvtec") -> Dataset:
    """Read one category below `root`; a `root` that is the folder of `category` itself is taken as such.

    Keys are paths within the category's folder, samples are ordered by them. A mask is
    ``ground_truth/<type>/<stem>_mask.*`` or ``<stem>.*``; without one `Sample.mask_file` is None. A category without
    ``test`` has an empty test set.

    Raises:
        InputError: no such root or category, a category name that is a path, no good training images.
    """
    root = root.expanduser()
    if category in {"", ".", ".."} or any(mark in category for mark in "/\\\0"):
        raise InputError(f"category {category!r} is not a folder name; give the name alone, and its place as the root")
    require_folder(root, way_out=_way_out(name))
    if (root / category).is_dir():
        return read_category(root / category, category=category, name=name)
    if has_mvtec_layout(root) and root.resolve().name == category:
        return read_category(root, category=category, name=name)
    known = categories(root)
    if not known:
        raise InputError(f"{root}: no category in it (a folder with train/good); {_way_out(name)}")
    by_folded = {known_name.casefold(): known_name for known_name in known}
    close = [by_folded[match] for match in get_close_matches(category.casefold(), by_folded)]
    guess = f"; did you mean {' or '.join(close)}?" if close else ";"
    raise InputError(f"{root}: no category {category!r}{guess} There are: {', '.join(known)}")


def categories(root: Path) -> list[str]:
    """Names of the categories below `root`, sorted; the folder's own name where `root` is itself a category.

    Raises:
        InputError: `root` cannot be read.
    """
    root = root.expanduser()
    if has_mvtec_layout(root):
        return [root.resolve().name]
    return [folder.name for folder in subfolders(root) if has_mvtec_layout(folder)]


def require_folder(root: Path, *, way_out: str) -> None:
    """Raise `InputError`, ending with `way_out`, unless `root` is a folder."""
    try:
        if root.is_dir():
            return
        problem = "a file, not a folder" if root.exists() else "no such folder"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise InputError(f"{root}: {problem}; {way_out}")


def has_mvtec_layout(folder: Path) -> bool:
    """Whether `folder` is one category: it has ``train/good``, or another of `GOOD_FOLDERS` there."""
    return _normals(folder).is_dir()


def is_good_name(name: str) -> bool:
    """Whether a folder of this name holds images without defects."""
    return name.casefold().removesuffix("_dir") in GOOD_FOLDERS


def _normals(folder: Path) -> Path:
    """The folder of a category's good training images: ``train/good``, else one of another of `GOOD_FOLDERS`."""
    usual = folder / "train" / GOOD
    if usual.is_dir() or not usual.parent.is_dir():
        return usual
    return next((one for one in subfolders(usual.parent) if is_good_name(one.name)), usual)


def read_category(folder: Path, *, category: str, name: str) -> Dataset:
    """Read the category that lies in `folder`. Raises `InputError` where it has no good training images."""
    normals = _normals(folder)
    train = list(labelled(folder, normals)) if normals.is_dir() else []
    if not train:
        raise InputError(f"{folder}: no good training images; put images without defects into {normals}")
    test: list[Sample] = []
    if (folder / "test").is_dir():
        for kind in subfolders(folder / "test"):
            defect_type = GOOD if is_good_name(kind.name) else kind.name
            masks = index_masks(folder / "ground_truth" / kind.name)
            test.extend(labelled(folder, kind, defect_type=defect_type, masks=[masks]))
    return Dataset(name=name, category=category, root=folder, train=by_key(train), test=by_key(test))


def labelled(root: Path, folder: Path, *, defect_type: str = GOOD, masks: Iterable[MaskIndex] = ()) -> Iterator[Sample]:
    """Samples of one type: the images below `folder`, with the first mask found in `masks` or beside the image."""
    images, beside = divide_masks(list_images(folder))
    sources = [*masks, index_masks(folder, beside)]
    for image in images:
        mask_file = None
        if defect_type != GOOD:
            stem = _stem(folder, image)
            candidates = (source.get(stem + mark) for source in sources for mark in (MASK_MARK, ""))
            mask_file = next((mask for mask in candidates if mask is not None), None)
        key = image.relative_to(root).as_posix()
        yield Sample(key=key, file=image, defect_type=defect_type, mask_file=mask_file)


def divide_masks(images: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Divide the images of one type into images and the masks that lie beside them as ``<stem>_mask.*``.

    The mark alone does not make a mask (the product may be one); but where one image has its mask beside it, every
    file with the mark is a mask.
    """
    images = list(images)
    stems = {str(path.with_suffix("")) for path in images}
    marked = [path for path in images if path.stem.endswith(MASK_MARK)]
    if not any(str(path.with_suffix("")).removesuffix(MASK_MARK) in stems for path in marked):
        return images, []
    return [path for path in images if path not in set(marked)], marked


def index_masks(folder: Path, images: Iterable[Path] | None = None) -> MaskIndex:
    """Masks below `folder` (all of its images unless given); the first in order where several share a stem."""
    if images is None:
        images = list_images(folder) if folder.is_dir() else ()
    index: MaskIndex = {}
    for path in images:
        index.setdefault(_stem(folder, path), path)
    return index


def list_images(folder: Path) -> list[Path]:
    """Images below `folder`, at any depth, ordered by path; hidden files and folders are left out.

    A link that leads nowhere is listed too, so that it is reported and not lost.

    Raises:
        InputError: a folder cannot be read, or a file name is not valid Unicode.
    """
    return sorted(_walk(folder, ()), key=lambda path: path.relative_to(folder).as_posix())


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in `folder`, ordered by name, without hidden ones. Raises `InputError` as `list_images` does."""
    return sorted((path for path in _entries(folder) if path.is_dir()), key=lambda path: path.name)


def direct_images(folder: Path) -> list[Path]:
    """Images directly in `folder`, ordered by name. Raises `InputError` as `list_images` does."""
    return sorted((path for path in _entries(folder) if _is_image_file(path)), key=lambda path: path.name)


def by_key(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """The samples ordered by their keys."""
    return tuple(sorted(samples, key=lambda sample: sample.key))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    # Links to folders are followed; one that leads back to a folder above would never end.
    here = folder.resolve()
    if here in above:
        return
    for path in _entries(folder):
        if path.is_dir():
            yield from _walk(path, (*above, here))
        elif _is_image_file(path):
            yield path


def _is_image_file(path: Path) -> bool:
    return is_image(path) and (path.is_file() or (path.is_symlink() and not path.exists()))


def _entries(folder: Path) -> list[Path]:
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in entries:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{folder}: the file name {path.name!a} is not valid Unicode; rename it") from None
    return entries


def _stem(folder: Path, path: Path) -> str:
    return PurePosixPath(path.relative_to(folder).as_posix()).with_suffix("").as_posix()


def _way_out(name: str) -> str:
    if name != "mvtec":
        return "set data.root to the folder that holds the categories"
    return (
        "get MVTec AD with `study data fetch mvtec`, let MVTEC_AD_ROOT name the folder of a copy you have, "
        "or try rendered images with `--demo`"
    )
