"""What a person means by the words after ``study run``: a study, a folder of images, or a detector and a folder in any order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from detectors.errors import InputError

DEMO = "patchcore_screw"
"""The study file of ``study run --demo``."""
NOTHING = (
    "what is to be run? `study run DIR` finds a detector for a folder of your own images, `study run --demo` shows that on "
    "rendered ones, and `study run NAME` runs a study file"
)


def understood(words: Sequence[str], images: str | None, *, demo: bool) -> tuple[str, Path | None]:
    """The study and the folder of ``--images``, None where the study has images of its own or is a folder itself.

    Args:
        words: what was given without an option.
        images: what was given for ``--images``.

    Raises:
        InputError: it cannot be told what is meant; the message has the right command.
    """
    if images is not None and images.startswith("--"):
        raise InputError(missing_folder(words))
    if not words and images is None:
        if demo:
            return DEMO, None
        raise InputError(NOTHING)
    if not words:
        return _as_path(str(images)), None
    if len(words) > 1 and all(_is_image_file(word) for word in words):
        command = shlex.join(["study", "run", str(Path(words[0]).parent)])
        raise InputError(f"{len(words)} images; a search needs their folder: `{command}`")
    folders = [word for word in words if Path(word).expanduser().is_dir()]
    others = [word for word in words if word not in folders]
    if images is None and len(words) == 2 and len(folders) == len(others) == 1:
        return others[0], Path(folders[0])
    if len(words) > 1:
        command = shlex.join(["study", "run", words[0]])
        raise InputError(f"one study at a time: {', '.join(words)}; begin with `{command}`")
    if images is not None and folders == [words[0]] and "/" in words[0]:
        if Path(words[0]).absolute() != Path(images).absolute():
            command = shlex.join(["study", "run", words[0]])
            raise InputError(f"two folders of images, {words[0]} and {images}; give one: `{command}`")
        return words[0], None
    return words[0], None if images is None else Path(images)


def missing_folder(words: Sequence[str]) -> str:
    """What to say where ``--images`` has no value."""
    command = shlex.join(["study", "run", *words[:1], *(["--images"] if words else []), "DIR"])
    return f"--images: which folder? For instance `{command}`"


def _as_path(folder: str) -> str:
    """A folder as a word that is no study's name."""
    return folder if "/" in folder else f"./{folder}"


def _is_image_file(word: str) -> bool:
    from detectors.data.images import is_image  # numpy and Pillow: the help does not wait for them

    path = Path(word).expanduser()
    return path.is_file() and is_image(path)
