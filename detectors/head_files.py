"""Heads in a file of their own, which a person names as ``FILE.py:CLASS``; no package is needed.

A file's code is run only because a person named it: on the command line, in a study file, or in the environment variable
``STUDY_HEADS``. What was named once is kept by the sha256 of its text in the studies' home, and counts as named for whoever uses
that home. A saved detector says which text its head came from, and gets exactly that one from there, or an error. Nothing that an
artifact, a store or a registry says ever leads to another file.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import inspect
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import CodeType
from typing import TypeGuard

from detectors.base import Head
from detectors.errors import InputError
from detectors.head_texts import HeadCode, remember, text_of

REFERENCE = re.compile(r"(?P<file>.+\.py)(?::(?P<class_name>.*))?")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""A detector's name: it is a key of study files and a tag of MLflow."""


class _Known:
    """The heads made of the texts that persons named in this process. Entries are added, never changed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.heads: dict[tuple[str, str], type[Head]] = {}
        """By sha256 and class name."""
        self.codes: dict[type[Head], HeadCode] = {}
        self.latest: dict[str, type[Head]] = {}
        """By the detector's name: the text that was named last."""


_known = _Known()


def is_reference(text: str) -> bool:
    """Whether a detector is given as a file: ``FILE.py:CLASS`` or, with the class forgotten, ``FILE.py``."""
    return REFERENCE.fullmatch(text) is not None


def load_head(reference: str, *, base: Path | None = None, taken: Mapping[str, str] | None = None) -> type[Head]:
    """Run the file that a person named, and make its head known under the name that the class has.

    Args:
        reference: ``FILE.py:CLASS``.
        base: folder that a relative path starts from; None for the working folder.
        taken: names that are other detectors', and whose they are.

    Raises:
        InputError: no such file, an error in it, no such class, no `Head`, or a name that is taken.
    """
    path, class_name = _parse(reference, base or Path())
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: cannot be read ({reason}); give a detector as FILE.py:CLASS") from error
    code = HeadCode(path.name, class_name, sha256(text).hexdigest())
    head = _make(code, text, path, taken=taken or {})
    with _known.lock:
        _known.latest[head.name] = head
    return head


def named(name: str) -> type[Head] | None:
    """The head of this name whose file was named last in this process."""
    return _known.latest.get(name)


@contextmanager
def known_as(head: type[Head]) -> Iterator[None]:
    """Let a class be found by its name for a block, as if a package offered it: for tests of a head that is not installed yet."""
    with _known.lock:
        before = _known.latest.get(head.name)
        _known.latest[head.name] = head
    try:
        yield
    finally:
        with _known.lock:
            if before is None:
                del _known.latest[head.name]
            else:
                _known.latest[head.name] = before


def code_of(head: type[Head]) -> HeadCode | None:
    """Where a head comes from; None for one of a package."""
    return _known.codes.get(head)


def find_head(code: HeadCode) -> type[Head]:
    """The head of a study or a saved detector, made of the very text that this one names.

    Raises:
        InputError: nobody named that text here; the message says how to do so.
    """
    head = _make(code, text_of(code), Path(code.file), taken={})
    with _known.lock:
        _known.latest[head.name] = head
    return head


def _parse(reference: str, base: Path) -> tuple[Path, str]:
    """Absolute path and class name. Raises `InputError` where the class is missing."""
    match = REFERENCE.fullmatch(reference)
    if match is None or not (match["class_name"] or "").isidentifier():
        raise InputError(f"{reference}: give a detector of your own as FILE.py:CLASS, such as my_head.py:MyHead")
    return (base / Path(match["file"]).expanduser()).absolute(), match["class_name"]


class _Loader(importlib.abc.InspectLoader):
    """Runs a text that was read already: what is run is what was digested, and nothing is written beside the file."""

    def __init__(self, text: bytes, path: Path) -> None:
        self._text, self._path = text, path

    def get_source(self, fullname: str) -> str:
        """For `InspectLoader`."""
        return importlib.util.decode_source(self._text)

    def get_code(self, fullname: str) -> CodeType:
        """Compiled with the file's path, for tracebacks."""
        return self.source_to_code(self._text, str(self._path))


def _make(code: HeadCode, text: bytes, path: Path, *, taken: Mapping[str, str]) -> type[Head]:
    """The class of a text, which is run once per process. Nothing is known of a class that is refused."""
    key = (code.sha256, code.class_name)
    with _known.lock:
        head = _known.heads.get(key) or _checked(_run(code, text, path), code, path)
        if owner := taken.get(head.name):
            raise InputError(
                f"{path}: {code.class_name}.name is {head.name!r}, a detector of {owner}; give it another name"
            )
        remember(code, text)
        _known.heads[key], _known.codes[head] = head, code
        return head


def _module_name(code: HeadCode) -> str:
    return f"study_head_{code.sha256[:16]}"


def _run(code: HeadCode, text: bytes, path: Path) -> dict[str, object]:
    """The names that a text defines."""
    module_name = _module_name(code)
    if (module := sys.modules.get(module_name)) is not None:
        return vars(module)
    spec = importlib.util.spec_from_loader(module_name, _Loader(text, path), origin=str(path))
    if spec is None:
        raise InputError(f"{path}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    # Dataclasses and Lightning look a class's module up.
    sys.modules[module_name] = module
    try:
        _Loader(text, path).exec_module(module)
    except SyntaxError as error:
        del sys.modules[module_name]
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    except BaseException as error:
        del sys.modules[module_name]
        if not isinstance(error, Exception | SystemExit):
            raise
        first = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(f"{path}: cannot be loaded ({type(error).__name__}: {first}); mend it") from error
    return vars(module)


def _checked(defined: Mapping[str, object], code: HeadCode, path: Path) -> type[Head]:
    """A class that can be a detector's head. Raises `InputError` that says what is missing."""
    head, module_name = defined.get(code.class_name), _module_name(code)
    heads = sorted(
        name
        for name, value in defined.items()
        if isinstance(value, type) and issubclass(value, Head) and value.__module__ == module_name
    )
    hint = f"its heads: {', '.join(heads) or 'none'}"
    if head is None:
        raise InputError(f"{path}: has no class {code.class_name}; {hint}")
    if (problem := problem_of(head)) is not None:
        raise InputError(f"{path}: {code.class_name}{problem}{'' if is_head(head) else f'; {hint}'}")
    if not (is_head(head) and head.__module__ == module_name):
        raise InputError(f"{path}: {code.class_name} is imported there, not defined; {hint}")
    return head


def is_head(value: object) -> TypeGuard[type[Head]]:
    """Whether a value is a proper subclass of `Head`."""
    return isinstance(value, type) and issubclass(value, Head) and value is not Head


def problem_of(value: object) -> str | None:
    """What keeps a value from being a detector's head, as what follows its name in a message; None for a sound head."""
    if not is_head(value):
        return " is no subclass of detectors.base.Head"
    if missing := [name for name in ("name", "searchable") if not hasattr(value, name)]:
        return f" lacks the class attribute {missing[0]}"
    if inspect.isabstract(value):
        return f" lacks {', '.join(sorted(value.__abstractmethods__))}"
    if not (isinstance(value.name, str) and NAME.fullmatch(value.name)):
        return f".name {value.name!r} is no name; use letters, digits, _ and -"
    return None
