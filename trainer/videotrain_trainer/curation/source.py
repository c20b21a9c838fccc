"""The folder of raw videos: listing, fetching, content hashes and captions."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import xxhash

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.checksums import READINGS
from videotrain_trainer.curation.packaged import resolve_package
from videotrain_trainer.errors import DataError, DiskFull, StorageDenied, StorageUnavailable, TrainerError
from videotrain_trainer.files import local_path
from videotrain_trainer.storage import ObjectInfo, ObjectStore, disk_full_is_clear

EXTENSIONS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
BLOCK = 8 * 1024 * 1024
_MD5 = re.compile(r"[0-9a-f]{32}")
LISTINGS = 5
"""At most, until one has everything that those before it had."""


@dataclass(frozen=True)
class RawVideo:
    """A file that might be a video."""

    name: str
    """Path below the folder."""
    found: ObjectInfo
    """As it was listed."""

    @property
    def tag(self) -> str:
        """Changes when the file is replaced, and is the same on every node: an inode is not."""
        local = self.found.uri.startswith("file://")
        return self.found.modified.isoformat() if local else self.found.etag

    @property
    def stem(self) -> str:
        """File name without folder and extension."""
        return PurePosixPath(self.name).stem


class VideoFolder:
    """spec.dataset.videos.

    Args:
        uri: s3://, file:// or package:// URI of the folder.
        storage: endpoint and region for s3://.
        captions: captions by path below the folder, or by stem, for videos without a text file.

    Raises:
        DataError: the package of a package:// URI is not installed here.
    """

    def __init__(self, uri: str, storage: Storage, captions: Mapping[str, str]) -> None:
        self.uri = uri
        self._captions = captions
        root = resolve_package(uri).rstrip("/")
        self._local = root.startswith("file://")
        self._root = local_path(root).as_uri() if self._local else root
        self._store = ObjectStore.for_storage(storage)
        self._texts: dict[str, str] = {}

    def videos(self) -> list[RawVideo]:
        """All videos at any depth, by name.

        Raises:
            DataError: the folder is missing or holds no video.
            StorageUnavailable: of LISTINGS listings, none has everything that those before it had.
        """
        self._check_local()
        prefix = f"{self._root}/"
        with self._field_is_named():
            names = {found.uri.removeprefix(prefix): found for found in self._listed()}
        if self._local:
            names = {unquote(name): found for name, found in names.items()}
        self._texts = {_without_suffix(name): found.uri for name, found in names.items() if _text(name)}
        videos = [RawVideo(name, found) for name, found in sorted(names.items()) if _video(name)]
        if not videos:
            raise DataError(
                f"spec.dataset.videos: {self.uri} holds no video ({len(names)} other files), listed again; looked for "
                f"{', '.join(sorted(EXTENSIONS))}"
            )
        return videos

    def fetch(self, video: RawVideo, scratch: Path) -> Path:
        """A local copy as large as it was listed, or the file itself if it is local already.

        A store's entity tag is the MD5 of an object that was uploaded in one piece and not encrypted. A copy that
        does not fit one counts once another reading has given the same bytes.

        Raises:
            StorageUnavailable: it cannot be read, or only in part, or each time as something else.
        """
        if self._local:
            return local_path(video.found.uri)
        target = scratch / f"raw{PurePosixPath(video.name).suffix}"
        with self._field_is_named(), disk_full_is_clear(target):
            store, read = self._store, ""
            for _ in range(READINGS):
                store.fetch(video.found, target)
                with target.open("rb") as file:
                    before, read = read, hashlib.file_digest(file, "md5").hexdigest()
                if read in (before, video.found.etag) or not _MD5.fullmatch(video.found.etag):
                    return target
                store = self._store.reconnected()
            raise StorageUnavailable(f"{video.found.uri}: read {READINGS} times, and each reading gave other bytes")

    def caption(self, video: RawVideo) -> str:
        """The text file of the same stem, else what the run says of path or stem, else the words of the stem."""
        uri = self._texts.get(_without_suffix(video.name))
        if uri is not None:
            with self._field_is_named():
                text = self._store.get(uri).decode("utf-8", errors="replace")
            if text.strip():
                return " ".join(text.split())
        return self._captions.get(video.name) or self._captions.get(video.stem) or stem_words(video.stem)

    def _listed(self) -> list[ObjectInfo]:
        """A store may answer with an old listing, with a part of one or with something that reads as an empty one: a
        listing counts once it has everything that those before it had, and none but empty ones are an empty folder.
        """
        store, seen = self._store, set[str]()
        for number in range(1, LISTINGS + 1):
            found = store.list(self._root)
            uris = {item.uri for item in found}
            if number >= (2 if found else READINGS) and seen <= uris:
                return found
            seen |= uris
            store = self._store.reconnected()
        raise StorageUnavailable(
            f"{self.uri}: listed {LISTINGS} times, and each listing lacks objects of those before; objects are being "
            "deleted from the folder, or the object store gives old listings"
        )

    @contextmanager
    def _field_is_named(self) -> Iterator[None]:
        try:
            yield
        except DiskFull:
            raise
        except TrainerError as error:
            raise type(error)(f"spec.dataset.videos: {error}") from error

    def _check_local(self) -> None:
        """The object store takes a folder that is missing or may not be read for an empty one."""
        if not self._local:
            return
        root = local_path(self._root)
        if not root.exists():
            raise DataError(f"spec.dataset.videos: {self.uri} does not exist")
        if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
            raise StorageDenied(f"spec.dataset.videos: {self.uri} may not be read, or is not a folder")


def content_hash(path: Path) -> str:
    """32 hex digits of the file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def stem_words(stem: str) -> str:
    """`red-car_02` becomes `red car 02`."""
    return " ".join(re.split(r"[\s_.\-]+", stem)).strip() or stem


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _text(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() == ".txt"
