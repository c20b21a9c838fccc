"""Objects that all processes of a pod read: fetched once into the pod's cache volume, and read from there.

The first process that wants an object fetches it while the others wait for its lock; who dies with the lock gives it
up. A file is named by what the store says of the object, so a replaced object is another file. What is read is compared
with checksums that were computed as it came; a file that does not fit is passed over for the object itself.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

import google_crc32c

from videotrain_trainer.errors import DamagedObject, StorageUnavailable
from videotrain_trainer.files import replacing
from videotrain_trainer.storage import ObjectInfo, ObjectStore

BLOCK: Final = 1 << 20
"""Bytes that share a checksum."""
RANGE: Final = 64 * BLOCK
"""Bytes of a request."""
READERS: Final = 4
KEPT_FREE: Final = 1 << 30
"""Bytes of the volume that are left to others."""
FOLDER: Final = "objects"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeCache:
    """The cache volume of a pod, as one of its processes sees it.

    Args:
        volume: folder that all processes of the pod see, and no other pod.
        store: where objects come from.
    """

    volume: Path
    store: ObjectStore

    def file(self, uri: str) -> CachedFile | None:
        """An object as a file of the volume; None if that has no room for it.

        Raises:
            ObjectMissing: there is no such object.
            StorageUnavailable: it does not come whole.
        """
        return self.listed(self.store.stat(uri))

    def listed(self, found: ObjectInfo) -> CachedFile | None:
        """The same for an object of which is known what the store says of it, so that it is not asked."""
        name = sha256(f"{found.uri} {found.etag} {found.size}".encode()).hexdigest()[:32]
        path = self.volume / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not (path.exists() and path.stat().st_size == found.size and path.with_suffix(".crc").exists()):
                if not self._make_room(path, found.size):
                    told = (found.uri, found.size, self.volume)
                    log.warning("%s: no room for its %d bytes in %s; it is read from the store", *told)
                    return None
                self._fetch(found, path)
        os.utime(path)
        return CachedFile(path, json.loads(path.with_suffix(".crc").read_text()), self.store, found.uri)

    def _make_room(self, path: Path, size: int) -> bool:
        """Remove what was not used for longest, until there is room."""
        others = sorted(
            (other for other in path.parent.iterdir() if not other.suffix and other != path),
            key=lambda other: other.stat().st_mtime,
        )
        while shutil.disk_usage(self.volume).free < size + KEPT_FREE:
            if not others:
                return False
            gone = others.pop(0)
            log.info("%s makes room in the cache", gone)
            gone.with_suffix(".crc").unlink(missing_ok=True)
            gone.unlink(missing_ok=True)
        return True

    def _fetch(self, found: ObjectInfo, path: Path) -> None:
        with replacing(path) as partial, partial.open("wb") as file:
            file.truncate(found.size)

            def fetch(start: int) -> list[int]:
                length = min(RANGE, found.size - start)
                data = self.store.get_range(found.uri, start, length)
                if len(data) != length:
                    raise StorageUnavailable(
                        f"{found.uri}: of the {length} bytes from {start} on, which are stored, {len(data)} come"
                    )
                os.pwrite(file.fileno(), data, start)
                return [google_crc32c.value(data[low : low + BLOCK]) for low in range(0, length, BLOCK)]

            with ThreadPoolExecutor(READERS, thread_name_prefix="cache") as pool:
                blocks = [crc for found_blocks in pool.map(fetch, range(0, found.size, RANGE)) for crc in found_blocks]
        with replacing(path.with_suffix(".crc")) as partial:
            partial.write_text(json.dumps(blocks))


@dataclass(frozen=True)
class CachedFile:
    """Byte ranges of an object, from the cache volume; the object's own once something there did not fit."""

    path: Path
    blocks: list[int]
    """CRC-32C of each block."""
    store: ObjectStore
    uri: str
    direct: bool = False
    """Read the object itself."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.store.stat(self.uri).size if self.direct else self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer if it ends before.

        Raises:
            DamagedObject: what lies in the cache volume does not fit its checksum.
        """
        if not length:
            return b""
        if self.direct:
            return self.store.get_range(self.uri, offset, length)
        first, last = offset // BLOCK, min(-(-(offset + length) // BLOCK), len(self.blocks))
        with self.path.open("rb") as file:
            file.seek(first * BLOCK)
            data = file.read((last - first) * BLOCK)
        view = memoryview(data)
        for number in range(first, last):
            low = (number - first) * BLOCK
            if google_crc32c.value(bytes(view[low : low + BLOCK])) != self.blocks[number]:
                raise DamagedObject(f"{self.path}: block {number} of {self.uri} does not fit its checksum")
        return data[offset - first * BLOCK :][:length]

    def reconnected(self) -> Self:
        """The object itself: what the cache spoils, the store has whole."""
        return type(self)(self.path, self.blocks, self.store.reconnected(), self.uri, direct=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file of the volume; other processes and threads wait, and who dies gives it up."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
