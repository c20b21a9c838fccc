"""Results that are tables, one of each unit, which whoever does the unit stores: too large to pass through rank 0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from videotrain_trainer.checksums import read_checked, sealed_parquet, unsealed_parquet
from videotrain_trainer.engines.board import Board, OpenRange, Results, read_in_order
from videotrain_trainer.engines.interface import Member, Unit, UnitRange
from videotrain_trainer.errors import AlreadyExists, DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore

log = logging.getLogger(__name__)


class UnitTables:
    """The tables of units in the object store, `FOLDER/UNIT.parquet`; each is written once and last.

    Args:
        store: object store.
        folder: URI.
    """

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self.folder = folder
        self._store = store

    def keep(self, name: str, table: Any) -> bool:
        """Store the table of a unit, a pyarrow.Table; False if another process was first."""
        try:
            self._store.put_once(self._uri(name), sealed_parquet(table))
        except AlreadyExists:
            log.info("%s: done by another process meanwhile", self._uri(name))
            return False
        return True

    def names(self) -> set[str]:
        """Units that have one."""
        return {info.uri.rsplit("/", 1)[1].removesuffix(".parquet") for info in self._store.list(self.folder)}

    def has(self, name: str) -> bool:
        """Whether a unit has one."""
        return self._store.exists(self._uri(name))

    def read(self, names: Sequence[str], tell: Callable[[int, int], None]) -> Iterator[Any]:
        """Tables of units in this order; few are held at a time.

        Args:
            names: of the units.
            tell: told how many are read, and of how many.

        Raises:
            DataError: one is missing or damaged.
        """
        return read_in_order(self._read, names, tell)

    def _read(self, name: str) -> Any:
        uri = self._uri(name)
        try:
            return read_checked(self._store, uri, unsealed_parquet, remedy="delete it to have the unit redone")
        except ObjectMissing as error:
            raise DataError(f"{uri}: missing result of a unit; run the stage again to have it redone") from error

    def _uri(self, name: str) -> str:
        return f"{self.folder}/{name}.parquet"


FIRST = "first"
"""Key of a unit's result: whether its table was the first, as `UnitTables.keep` says."""


class TableBoard(Board):
    """A board of units that store tables, each a range of its own; their results are told and not kept.

    Args:
        store: object store.
        member: this process.
        tables: of the units.
    """

    page_ranges: ClassVar[int] = 256
    """As Board; these ranges are a few bytes each."""

    def __init__(self, store: ObjectStore, member: Member, tables: UnitTables) -> None:
        super().__init__(store, member)
        self._tables = tables
        self.folder = f"{self.folder}/{tables.folder.rsplit('/', 1)[1]}"

    def finished(self) -> set[str]:
        """As Board."""
        return {alone(Unit(name, 0)).name for name in self._tables.names()}

    def begun(self) -> set[str]:
        """None: a range has one unit."""
        return set()

    def open(self, number: int, units: UnitRange) -> OpenRange:
        """As Board; somebody may have done it since all were listed."""
        (unit,) = units.units
        return OpenRange(number, units, {unit.name: {FIRST: False}} if self._tables.has(unit.name) else {})

    def keep(self, held: OpenRange, results: Results) -> None:
        """Nothing: what is not done has no results."""

    def finish(self, held: OpenRange) -> bool:
        """As Board."""
        return all(result[FIRST] for result in held.results.values())


def alone(unit: Unit) -> UnitRange:
    """A range of one unit."""
    return UnitRange((unit,))
