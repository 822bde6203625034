"""A folder of a person's own images in the place of a study: which study runs on it, and what that study is called."""

from __future__ import annotations

import hashlib
import re
import shlex
import unicodedata
from pathlib import Path

from detectors import catalog
from detectors.data.images import is_image
from detectors.data.mvtec import direct_images, has_mvtec_layout, is_good_name, subfolders
from detectors.errors import InputError
from studies.file import library

SEARCH_OF_A_FOLDER = "best"
"""The study file that ``study run FOLDER`` searches with."""
NAME_LENGTH = 64
"""Letters of a study's name."""
DIGEST_LENGTH = 6
MOST_NAMED = 5
"""Products that a message names."""


def names_a_folder(word: str) -> bool:
    """Whether a word in the place of a study is a folder; of a plain word, only where it is no study file and no detector."""
    if not Path(word).expanduser().is_dir():
        return False
    if library.is_path(word) or word in (".", ".."):
        return True
    return word not in library.config_names() and word not in catalog.names()


def study_name(folder: Path, *, detector: str = "") -> str:
    """The name of a study on a folder's images: ``parts``, or of one detector ``padim_parts``.

    Accents are taken off and blanks become ``_``. A name that loses letters otherwise (of another script, or beyond
    `NAME_LENGTH`) ends with a digest of the whole one, so that two folders do not become one study.
    """
    written = unicodedata.normalize("NFC", _name(folder))
    plain = "".join(one for one in unicodedata.normalize("NFKD", written) if not unicodedata.combining(one))
    name = _slug(plain, detector).lstrip("_.-") or "images"
    if plain.isascii() and len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256(written.encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{name[: NAME_LENGTH - 1 - DIGEST_LENGTH].rstrip('_.-')}-{digest}"


def former_study_name(folder: Path, *, detector: str) -> str:
    """What version 0.2 and before called the study of a detector on a folder's images."""
    return _slug(_name(folder), detector)[:NAME_LENGTH]


def products_in(folder: Path) -> list[Path]:
    """The folders of products in a folder that holds several, sorted; empty for a folder that is one product.

    Raises:
        InputError: it cannot be read.
    """
    folder = folder.expanduser()
    if not folder.is_dir() or has_mvtec_layout(folder) or direct_images(folder):
        return []
    below = subfolders(folder)
    if any(is_good_name(one.name) for one in below):
        return []
    return [
        one for one in below if has_mvtec_layout(one) or any(is_good_name(folder.name) for folder in subfolders(one))
    ]


def require_one_product(folder: Path, *, command: tuple[str, ...] = ("study", "run")) -> None:
    """Raise `InputError`, with the command for one product, for a folder that holds several.

    Args:
        command: what the folder is given to.
    """
    products = products_in(folder)
    if not products:
        return
    names = ", ".join(one.name for one in products[:MOST_NAMED]) + (", ..." if len(products) > MOST_NAMED else "")
    example = shlex.join([*command, str(products[0])])
    raise InputError(
        f"{folder}: a folder of {len(products)} product{'s' if len(products) > 1 else ''} ({names}), and a study of a folder is "
        f"over one; say which, for instance `{example}`"
    )


def require_folder_of_images(folder: Path) -> None:
    """Raise `InputError` for an image in the place of its folder; with the command for that."""
    if folder.expanduser().is_file() and is_image(folder):
        command = shlex.join(["study", "run", str(folder.parent)])
        raise InputError(f"{folder}: an image; a search needs the folder of all good ones: `{command}`")


def _name(folder: Path) -> str:
    """Of the folder itself, where it was given as ``.`` or ``parts/..``."""
    absolute = folder.expanduser().absolute()
    return absolute.resolve().name if ".." in absolute.parts else absolute.name


def _slug(name: str, detector: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{detector}_{name}" if detector else name)
