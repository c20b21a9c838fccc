"""Samples that were read once, on the cache volume of a node: all its processes read them, within a budget of bytes.

<volume>/samples/<2 digits>/<hash>    a sample's bytes, written whole or not at all
<volume>/samples/used                 bytes of those in each folder, changed under the lock of `lock`
<volume>/samples/counted              who counted them last
<volume>/samples/stage-<hash>         empty; as old as the first process of a stage that opened the cache here

Each epoch takes every sample once, in an order of its own. A cache smaller than the set that made room for what comes
next would drop most samples before they are wanted again; so what the stage has read stays, and only what no process
has read since the stage began on this node gives way. A process that dies leaves whole samples and a count that may be
too high by those that it was writing; of each world one process of the node counts anew, folder by folder, while all of
them read and write.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from videotrain_trainer.data.shards import DamagedSample, Member, check_member
from videotrain_trainer.files import replacing
from videotrain_trainer.node_cache import locked

FOLDER: Final = "samples"
FOLDERS: Final = tuple(f"{number:02x}" for number in range(256))
"""Of samples, by the first digits of their names."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheCounts:
    """Of this process so far."""

    hits: int = 0
    misses: int = 0
    used_bytes: int = 0
    """Of all processes of the node, as they were when a sample was last kept."""


class SampleCache:
    """Safe to use from any thread, and by any number of processes of a node.

    Args:
        volume: the node's cache volume.
        budget: most bytes that samples take; each process of a node is given the same.
        stage: names the stage, the same for all its processes and generations.
        world: names the generation, the same for all its processes.
    """

    def __init__(self, volume: Path, budget: int, stage: str, world: str) -> None:
        self._folder, self._budget = volume / FOLDER, budget
        self._threads, self._counts = threading.Lock(), CacheCounts()
        self._full, self._began = False, 0.0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / "lock"):
                began = self._folder / f"stage-{sha256(stage.encode()).hexdigest()[:16]}"
                began.touch() if not began.exists() else None
                self._began = began.stat().st_mtime
                counted, mine = self._folder / "counted", f"{stage} {world}"
                counts = not counted.exists() or counted.read_text() != mine
                if counts:
                    counted.write_text(mine)
                self._add({})
        except (OSError, ValueError) as error:
            self._give_up(error)
            counts = False
        self._counting = threading.Thread(target=self._count, name="sample-cache", daemon=True) if counts else None
        if self._counting is not None:
            self._counting.start()

    def wait_counted(self) -> bool:
        """Return once this process has counted; False if another one does."""
        if self._counting is None:
            return False
        self._counting.join()
        return True

    def counts(self) -> CacheCounts:
        """So far."""
        with self._threads:
            return self._counts

    def get(self, uri: str, member: Member) -> bytes | None:
        """A sample, verified; None if it is not here. One that does not fit its checksum is removed."""
        path = self._path(uri, member)
        try:
            data = path.read_bytes()
            check_member(str(path), member, data)
            os.utime(path)
        except FileNotFoundError:
            data = None
        except (DamagedSample, OSError) as error:
            log.warning("read from the object store: %s", error)
            self._remove(path)
            data = None
        with self._threads:
            counts = self._counts
            hits, misses = counts.hits + (data is not None), counts.misses + (data is None)
            self._counts = CacheCounts(hits, misses, counts.used_bytes)
        return data

    def put(self, uri: str, member: Member, data: bytes) -> None:
        """Keep a sample whose bytes were verified, where there is room or what is older than the stage makes some."""
        if self._full:
            return
        path = self._path(uri, member)
        try:
            with locked(self._folder / "lock"):
                if path.exists() or not self._make_room(len(data)):
                    return
                path.parent.mkdir(exist_ok=True)
                # Counted before it is there: whoever dies between leaves the count too high, not the disk too full.
                self._add({path.parent.name: len(data)})
                with replacing(path) as partial:
                    partial.write_bytes(data)
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A full or failing disk costs speed and nothing else."""
        log.warning("samples are no longer kept in %s: %s", self._folder, error)
        self._full = True

    def _path(self, uri: str, member: Member) -> Path:
        name = sha256(f"{uri} {member.offset} {member.length} {member.crc32c}".encode()).hexdigest()[:32]
        return self._folder / name[:2] / name

    def _count(self) -> None:
        """Correct what processes that died have left, with the lock for one folder at a time."""
        try:
            for folder in FOLDERS:
                with locked(self._folder / "lock"):
                    found = sum(size for _, size, _ in self._kept(folder))
                    wrong = found - self._used().get(folder, 0)
                    self._add({folder: wrong}) if wrong else None
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _kept(self, folder: str) -> list[tuple[float, int, Path]]:
        """When each sample of a folder was last used, and its size; parts that killed processes left are removed."""
        found = []
        for path in (self._folder / folder).glob("*"):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
        return found

    def _make_room(self, size: int) -> bool:
        used = sum(self._used().values())
        if used + size > self._budget:
            freed: dict[str, int] = {}
            # To nine tenths, so that not every sample looks through all of them.
            for last_used, bytes_of, path in sorted(kept for folder in FOLDERS for kept in self._kept(folder)):
                if last_used >= self._began or used + size <= 0.9 * self._budget:
                    break
                path.unlink(missing_ok=True)
                used -= bytes_of
                freed[path.parent.name] = freed.get(path.parent.name, 0) - bytes_of
            self._add(freed)
            self._full = used + size > self._budget
        return not self._full

    def _remove(self, path: Path) -> None:
        try:
            with locked(self._folder / "lock"):
                if path.exists():
                    self._add({path.parent.name: -path.stat().st_size})
                    path.unlink()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _used(self) -> dict[str, int]:
        """Bytes in each folder."""
        try:
            found = json.loads((self._folder / "used").read_text())
        except FileNotFoundError:
            return {}
        # An earlier version kept one number; whoever counts for this world tells it by folder anew.
        return found if isinstance(found, dict) else {}

    def _add(self, changes: Mapping[str, int]) -> None:
        used = self._used()
        for folder, change in changes.items():
            used[folder] = used.get(folder, 0) + change
        with replacing(self._folder / "used") as partial:
            partial.write_text(json.dumps(used))
        with self._threads:
            self._counts = CacheCounts(self._counts.hits, self._counts.misses, sum(used.values()))
