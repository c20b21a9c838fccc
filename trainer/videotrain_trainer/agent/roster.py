"""Reads the roster that the operator writes on the pod and decides whether it is news."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from videotrain_api.records import Roster


class RosterError(Exception):
    """The roster file holds something else."""


class RosterFile:
    """The Downward-API file with the roster annotation; the kubelet replaces it atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._generation = 0

    @property
    def generation(self) -> int | None:
        """Newest generation read so far."""
        return self._generation or None

    def newer(self) -> Roster | None:
        """The roster, if the file changed and its generation is higher than every one before.

        Raises:
            RosterError: the file is no roster; told once per change of the file.
        """
        text = self._changed_text()
        if text is None or not text.strip():
            return None
        try:
            roster = Roster.model_validate_json(text)
        except ValidationError as error:
            raise RosterError(f"roster {self._path}: {error}") from None
        if roster.generation <= self._generation:
            return None
        self._generation = roster.generation
        return roster

    def _changed_text(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                mark = (found.st_ino, found.st_mtime_ns, found.st_size)
                if mark == self._seen:
                    return None
                text = file.read()
        except FileNotFoundError:
            return None  # not yet written: the pod is older than its first roster
        self._seen = mark
        return text
