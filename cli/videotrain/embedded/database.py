"""The object store's file: one SQLite database that survives the death of the process at any instruction.

The write-ahead log with synchronous=NORMAL keeps every committed transaction through a killed process, and a consistent
older state through a power cut; nothing here needs an fsync per status write.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from videotrain_api.schema import Json

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
  kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  sequence INTEGER NOT NULL, body TEXT NOT NULL, applied TEXT NOT NULL,
  PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_VERSION = 1
DATABASE_FILE = "cluster.db"
"""Its name in a working directory."""


class Key(NamedTuple):
    """Where an object lives; cluster-scoped objects have an empty namespace."""

    kind: str
    namespace: str
    name: str


@dataclass
class Row:
    """A stored object, and what the store has to know of it besides."""

    sequence: int
    """Rises with every creation: the order of age."""
    body: Json
    applied: dict[str, Json] = field(default_factory=dict)
    """What each field manager applied last."""


class StoreError(Exception):
    """The database cannot be used."""


class Database:
    """Reads all objects at start and writes changes in transactions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._check_version()
        self._connection.executescript(_SCHEMA)

    def _check_version(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StoreError(
                f"{self._path} was written in format {version}, this videotrain reads {_VERSION}: "
                "use the version that made it, or another --workdir"
            )
        self._connection.execute(f"PRAGMA user_version={_VERSION}")

    def load(self) -> tuple[dict[Key, Row], int]:
        """All objects, oldest first, and the last resourceVersion given out."""
        rows = self._connection.execute("SELECT value FROM counters WHERE name = 'resourceVersion'").fetchone()
        return dict(_rows(self._connection)), rows[0] if rows else 0

    def commit(self, changed: Mapping[Key, Row | None], resource_version: int) -> None:
        """Write objects (None deletes) and the counter, all or nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for key, row in changed.items():
                self._write(key, row)
            self._connection.execute("REPLACE INTO counters VALUES ('resourceVersion', ?)", (resource_version,))
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _write(self, key: Key, row: Row | None) -> None:
        if row is None:
            self._connection.execute("DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key)
            return
        values = (*key, row.sequence, json.dumps(row.body), json.dumps(row.applied))
        self._connection.execute("REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        """Fold the log into the file and close it."""
        self._connection.close()


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[Key, Row]]:
    cursor: Iterable[tuple[str, str, str, int, str, str]] = connection.execute(
        "SELECT kind, namespace, name, sequence, body, applied FROM objects ORDER BY sequence"
    )
    for kind, namespace, name, sequence, body, applied in cursor:
        yield Key(kind, namespace, name), Row(sequence, json.loads(body), json.loads(applied))


def read_objects(path: Path, kind: str) -> list[Json]:
    """Objects of one kind, oldest first, read beside a store that may be running.

    Raises:
        FileNotFoundError: there is no database.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        return [row.body for key, row in _rows(connection) if key.kind == kind]
    finally:
        connection.close()
