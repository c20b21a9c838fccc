"""The newest roster that came to this pod: sent by the operator, or in the mounted file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pydantic import ValidationError

from videotrain_api.records import Roster


class RosterError(Exception):
    """The roster file holds something else."""


class Rosters:
    """Takes rosters from the mounted file and from `offer`, and hands out those that are news.

    A kubelet replaces the file atomically, but may do so a minute or more after the operator wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._newest: Roster | None = None
        self._offered: Roster | None = None
        self._lock = threading.Lock()

    @property
    def generation(self) -> int | None:
        """Of the newest roster that was handed out."""
        return self._newest.generation if self._newest else None

    def offer(self, roster: Roster) -> None:
        """A roster that was sent; safe to call from any thread."""
        with self._lock:
            if self._offered is None or self._offered.order() < roster.order():
                self._offered = roster

    def newer(self) -> Roster | None:
        """The newest roster, if it is above every one before; see Roster.order.

        Raises:
            RosterError: the file is no roster; told once per change of the file. What was sent is handed out next time.
        """
        text = self._changed_text()
        try:
            read = Roster.model_validate_json(text) if text and text.strip() else None
        except ValidationError as error:
            raise RosterError(f"roster {self._path}: {error}") from None
        with self._lock:
            found = [roster for roster in (self._newest, self._offered, read) if roster is not None]
        newest = max(found, key=Roster.order, default=None)
        if newest is None or (self._newest is not None and newest.order() <= self._newest.order()):
            return None
        self._newest = newest
        return newest

    def _changed_text(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                mark = (found.st_ino, found.st_mtime_ns, found.st_size)
                if mark == self._seen:
                    return None
                text = file.read()
        except FileNotFoundError:
            return None  # the kubelet has not mounted it yet
        self._seen = mark
        return text
