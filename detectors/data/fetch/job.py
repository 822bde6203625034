"""One call of `fetch`: what it brings, where to, at what cost, and the names of what is in the making."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectors.data.fetch.sources import Source

Progress = Callable[[str, int, int], None]
"""Called with the step (``download``, ``verify``, ``extract``), bytes done and bytes in total (0 where unknown)."""


@dataclass(frozen=True)
class Limits:
    """What a download and an archive may cost; beyond it they are refused."""

    download_bytes: int = 30 * 10**9
    members: int = 200_000
    extracted_bytes: int = 60 * 10**9
    ratio: float = 200.0
    """Extracted bytes per byte of the archive (an archive below 1 MiB counts as 1 MiB)."""
    name_bytes: int = 255
    """Length of one folder's or file's name."""
    path_bytes: int = 1024
    attempts: int = 4
    """Connections in a row that bring less than 1 MiB before the download is given up."""
    backoff_seconds: float = 1.0
    """Pause after the first failed connection; it doubles up to 30 s."""
    connect_seconds: float = 10.0
    read_seconds: float = 60.0


@dataclass(frozen=True)
class Workplace:
    """Names of the files and folders in the making, all on the destination's own file system."""

    part: Path
    validator: Path
    archive: Path
    extracting: Path
    extracted: Path
    lock: Path

    @classmethod
    def beside(cls, target: Path, sha256: str) -> Workplace:
        # A mount point (a container's volume) is another file system than its parent; a rename does not cross it.
        mounted = target.is_dir() and target.stat().st_dev != target.parent.stat().st_dev
        folder = target if mounted else target.parent
        stem = f"{target.name}-{sha256[:12]}"
        return cls(
            part=folder / f"{stem}.part",
            validator=folder / f"{stem}.part.json",
            archive=folder / f"{stem}.archive",
            extracting=folder / f".{stem}.extracting",
            extracted=folder / f".{stem}.extracted",
            lock=folder / f".{stem}.lock",
        )

    def leftovers(self) -> list[Path]:
        """What an interrupted call left that is not part of its result."""
        return [path for path in (self.part, self.validator, self.extracting, self.extracted) if path.exists()]


@dataclass(frozen=True)
class Job:
    """One call of `fetch`, its defaults filled in."""

    source: Source
    url: str | None
    sha256: str
    target: Path
    place: Workplace
    report: Progress
    limits: Limits
