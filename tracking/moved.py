"""A home that was moved or copied: the absolute addresses in MLflow's database are changed to its present place."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

logger = logging.getLogger(__name__)

ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's database that contain ``file://`` addresses within the folder of the artifacts."""
PLACES = (("logged_model_tags", "tag_value"), ("model_version_tags", "value"))
"""Columns that contain plain paths within the home, such as the folder in which a detector was saved first."""


def follow_home(database: Path, artifacts: Path) -> list[Path]:
    """Change the addresses in a home's own MLflow database to the present place of the home.

    A home that was copied or moved would otherwise read and write the artifacts of its former place. Only experiments whose
    address is ``.../artifacts/<name of the experiment>`` are changed, for others were put elsewhere on purpose; and of these
    only the ones whose files are here, or whose home is gone. Another home that uses this database thus keeps its addresses.

    Args:
        database: SQLite file of the store; nothing happens if there is none, or if it is not in the folder of the home.
        artifacts: the folder ``artifacts`` of the home, where MLflow's files are now.

    Returns:
        The former folders ``artifacts`` of the home; empty if it was not moved.
    """
    database, artifacts = database.absolute(), artifacts.absolute()
    if database.parent != artifacts.parent or not database.is_file():
        return []
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        try:
            columns = _columns(connection, "experiments")
        except sqlite3.DatabaseError:  # no database: whoever opens the store says so
            return []
        if not columns:
            return []
        before = set()
        for name, location in connection.execute("SELECT name, artifact_location FROM experiments").fetchall():
            old = _root(name, location or "")
            if old is None or old == artifacts or (old.parent.exists() and not (artifacts / name).exists()):
                continue
            before.add(old)
            for table, column in ADDRESSES:
                _replace(connection, table, column, location, (artifacts / name).as_uri())
        for old in before:
            for table, column in PLACES:
                _replace(connection, table, column, str(old.parent), str(artifacts.parent))
    for old in sorted(before):
        logger.warning(
            "STUDY_HOME was moved from %s; MLflow's addresses were changed to %s", old.parent, artifacts.parent
        )
    return sorted(before)


def _root(experiment: str, location: str) -> Path | None:
    """The folder ``artifacts`` that contains an experiment's files; None if they are elsewhere."""
    root = location.removesuffix(f"/{quote(experiment)}")
    is_ours = location.startswith("file:///") and root != location and root.endswith("/artifacts")
    return Path(url2pathname(urlsplit(root).path)) if is_ours else None


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Replace the beginning of every value that is `old` or below it, if this version of MLflow has the table and column."""
    if column in _columns(connection, table):
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (names are ours)
            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )
