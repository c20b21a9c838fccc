"""Incremental reading of a record file that another process is appending to."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from videotrain_api.records import TRAINER_RECORD, TrainerRecord


class RecordError(Exception):
    """A complete line that is no record."""


class RecordTail:
    """Reads records-<generation>-<local rank>.jsonl as it grows.

    A line counts when its newline is there: what a writer had no time to finish is never parsed. A complete line that
    does not parse is an error of its own and is told, and the reading goes on behind it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self._line = 0

    def read(self) -> tuple[list[TrainerRecord], list[RecordError]]:
        """Records since the last call, and the lines that are none."""
        if not self._path.exists():
            return [], []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        records: list[TrainerRecord] = []
        errors: list[RecordError] = []
        for line in lines:
            self._line += 1
            try:
                records.append(TRAINER_RECORD.validate_json(line))
            except ValidationError as error:
                errors.append(RecordError(f"{self._path}, line {self._line}: {line[:200]!r} is no record: {error}"))
        return records, errors

    @property
    def torn(self) -> bytes:
        """An unfinished line at the end of the file."""
        return self._rest
