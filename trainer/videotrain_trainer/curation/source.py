"""The folder of raw videos: listing, fetching, content hashes and captions."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import xxhash

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.checksums import READINGS
from videotrain_trainer.curation.packaged import resolve_package
from videotrain_trainer.data.video import PICTURES
from videotrain_trainer.errors import DataError, DiskFull, StorageDenied, StorageUnavailable, TrainerError
from videotrain_trainer.files import local_path
from videotrain_trainer.storage import ObjectInfo, ObjectStore, disk_full_is_clear, part_uri

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
EXTENSIONS = VIDEOS | PICTURES
TEXT_ENDINGS = (".txt", ".json")
TEXT_KEYS = ("text", "caption", "cap", "prompt")
"""Fields that hold a text, as published lists name them; the first one that is there counts."""
BLOCK = 8 * 1024 * 1024
_MD5 = re.compile(r"[0-9a-f]{32}")
LISTINGS = 5
"""At most, until one has everything that those before it had."""
LISTED = 1000
"""Objects that are listed at a time: an answer of S3."""


@dataclass(frozen=True)
class RawVideo:
    """A file that might be a video."""

    name: str
    """Path below the folder, behind the name of its source and a slash if there are several."""
    found: ObjectInfo
    """As it was listed."""
    text: ObjectInfo | None = None
    """The .txt or .json file of the same stem, if there is one."""
    caption: str = ""
    """What the run says of it, else the words of its stem: counts where there is no text, or an empty one."""
    source: str = ""
    """Name of its source; empty if there are not several."""
    offset: int | None = None
    """Where it begins in the object that `found` says, of which it is a part then; `found.size` is that of the part."""
    row: int | None = None
    """Of the Parquet file that `found` says, in which it lies then; `found.size` is about that of the row."""

    @property
    def tag(self) -> str:
        """Changes when the file or its text is replaced, and is the same on every node."""
        part = "" if self.offset is None else f" {self.offset}"
        part += "" if self.row is None else f" row {self.row}"
        return f"{tag_of(self.found)} {tag_of(self.text) if self.text else ''}{part}"

    @property
    def place(self) -> str | None:
        """URI by which its bytes are read where they lie; None where no range of bytes names them."""
        if self.row is not None:
            return None
        return self.found.uri if self.offset is None else part_uri(self.found.uri, self.offset, self.found.size)

    @property
    def is_part(self) -> bool:
        """Whether `found` holds more than this video."""
        return self.offset is not None or self.row is not None

    def fields(self) -> dict[str, Any]:
        """JSON values, for `from_fields`."""
        return asdict(self) | {"found": _fields(self.found), "text": self.text and _fields(self.text)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> RawVideo:
        """What `fields` gave."""
        text = fields["text"] and _info(fields["text"])
        return cls(**dict(fields) | {"found": _info(fields["found"]), "text": text})


class VideoFolder:
    """spec.dataset.videos, or the folder of one of spec.dataset.sources.

    Args:
        uri: s3://, file:// or package:// URI of the folder.
        storage: endpoint and region for s3://.
        source: name of the source, with which the names of its videos begin; none if empty.

    Raises:
        DataError: the package of a package:// URI is not installed here.
    """

    def __init__(self, uri: str, storage: Storage, source: str = "") -> None:
        self.uri, self.source = uri, source
        self._field = f"spec.dataset.sources[{source}]" if source else "spec.dataset.videos"
        root = resolve_package(uri, self._field).rstrip("/")
        self._local = root.startswith("file://")
        self._root = local_path(root).as_uri() if self._local else root
        self._store = ObjectStore.for_storage(storage)

    def videos(self, captions: Mapping[str, str]) -> Iterator[RawVideo]:
        """All videos at any depth, by name, each as soon as its listing is believed.

        Args:
            captions: captions by name, or by stem, for videos without a text file.

        Raises:
            DataError: the folder is missing or holds no video.
            StorageUnavailable: of LISTINGS listings, none has everything that those before it had.
        """
        self._check_local()
        videos = others = 0
        texts: dict[str, ObjectInfo] = {}
        held: deque[tuple[str, ObjectInfo]] = deque()
        with self._field_is_named():
            for window, ended in self._windows():
                for name, found in window:
                    others += not is_video(name)
                    if _text(name):
                        texts[_without_suffix(name)] = found
                    elif is_video(name):
                        held.append((name, found))
                # Whatever begins with a stem and a dot stands before the stem and a slash.
                while held and (ended or f"{_without_suffix(held[0][0])}/" <= window[-1][0]):
                    videos += 1
                    yield self._raw(*held.popleft(), texts, captions)
                wanted = {_without_suffix(name) for name, _ in held}
                last = window[-1][0] if window else ""
                texts = {stem: found for stem, found in texts.items() if stem in wanted or f"{stem}/" > last}
        if not videos:
            raise DataError(
                f"{self._field}: {self.uri} holds no video ({others} other files), listed again; looked for "
                f"{', '.join(sorted(EXTENSIONS))}"
            )

    def _raw(
        self, name: str, found: ObjectInfo, texts: Mapping[str, ObjectInfo], captions: Mapping[str, str]
    ) -> RawVideo:
        stem, full = PurePosixPath(name).stem, f"{self.source}/{name}" if self.source else name
        caption = captions.get(full) or captions.get(stem) or stem_words(stem)
        return RawVideo(full, found, texts.get(_without_suffix(name)), caption, self.source)

    def fetch(self, video: RawVideo, scratch: Path) -> Path:
        """A local copy as large as it was listed, or the file itself if it is local already.

        A store's entity tag is the MD5 of an object that was uploaded in one piece and not encrypted. A copy that
        does not fit one counts once another reading has given the same bytes.

        Raises:
            StorageUnavailable: it cannot be read, or only in part, or each time as something else.
        """
        if not video.is_part and video.found.uri.startswith("file://"):
            return local_path(video.found.uri)
        target = scratch / f"raw{PurePosixPath(video.name).suffix}"
        with self._field_is_named(), disk_full_is_clear(target):
            store, read = self._store, ""
            for _ in range(READINGS):
                self._copy(store, video, target)
                with target.open("rb") as file:
                    before, read = read, hashlib.file_digest(file, "md5").hexdigest()
                known = not video.is_part and not _MD5.fullmatch(video.found.etag)
                if read in (before, video.found.etag) or known:
                    return target
                store = self._store.reconnected()
            raise StorageUnavailable(f"{video.found.uri}: read {READINGS} times, and each reading gave other bytes")

    def _copy(self, store: ObjectStore, video: RawVideo, target: Path) -> None:
        """The object, or the part of it that the video is."""
        if video.offset is None:
            store.fetch(video.found, target)
            return
        with target.open("wb") as file:
            for at in range(0, video.found.size, BLOCK):
                size = min(BLOCK, video.found.size - at)
                file.write(store.get_range(video.found.uri, video.offset + at, size))

    def caption(self, video: RawVideo) -> str:
        """The file of the same stem with its text, else what the run says of path or stem, else the words of the stem.

        Raises:
            DataError: it is a .json file that is not JSON.
        """
        if video.text is not None:
            with self._field_is_named():
                text = text_in(self._store.get(video.text.uri), video.text.uri, needed=False)
            if text:
                return text
        return video.caption

    def _windows(self) -> Iterator[tuple[list[tuple[str, ObjectInfo]], bool]]:
        """Files by name, in windows of neighbours, and whether a window is the last one."""
        prefix, after, ended = f"{self._root}/", None, False
        while not ended:
            window, ended = self._believed(after)
            after = window[-1].uri if window else None
            names = [(found.uri.removeprefix(prefix), found) for found in window]
            yield (sorted((unquote(name), found) for name, found in names) if self._local else names), ended

    def _believed(self, after: str | None) -> tuple[list[ObjectInfo], bool]:
        """A window of the listing, and whether it is the last one.

        A store may answer with an old listing, with a part of one or with something that reads as an empty one: a
        window counts once it has everything that those before it had, and none but empty ones are an empty folder.
        """
        store, seen = self._store, set[str]()
        for number in range(1, LISTINGS + 1):
            found = self._window(store, after)
            uris, last = {item.uri for item in found}, found[-1].uri if len(found) == LISTED and not self._local else ""
            known = {uri for uri in seen if not last or uri <= last}
            if number >= (2 if found else READINGS) and known <= uris:
                return found, not last
            seen |= uris
            store = self._store.reconnected()
        raise StorageUnavailable(
            f"{self.uri}: listed {LISTINGS} times, and each listing lacks objects of those before; objects are being "
            "deleted from the folder, or the object store gives old listings"
        )

    def _window(self, store: ObjectStore, after: str | None) -> list[ObjectInfo]:
        if self._local:
            return store.list(self._root)  # a file system has no order to begin in
        found = store.list_some(self._root, after, LISTED)
        if any(one.uri >= other.uri for one, other in pairwise(found)):
            raise StorageUnavailable(f"{self.uri}: the object store does not list by name; give the run one that does")
        return found

    @contextmanager
    def _field_is_named(self) -> Iterator[None]:
        try:
            yield
        except DiskFull:
            raise
        except TrainerError as error:
            raise type(error)(f"{self._field}: {error}") from error

    def _check_local(self) -> None:
        """The object store takes a folder that is missing or may not be read for an empty one."""
        if not self._local:
            return
        root = local_path(self._root)
        if not root.exists():
            raise DataError(f"{self._field}: {self.uri} does not exist")
        if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
            raise StorageDenied(f"{self._field}: {self.uri} may not be read, or is not a folder")


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


def text_in(data: bytes, name: str, needed: bool = True) -> str:
    """The text of a .txt or .json file, its words parted by single spaces.

    Args:
        data: the file.
        name: of it, for its ending and for messages.
        needed: refuse a .json file whose fields hold no text; it may be there for something else.

    Raises:
        DataError: a .json file is not JSON, or has no text.
    """
    text = data.decode("utf-8", errors="replace")
    if not name.lower().endswith(".json"):
        return " ".join(text.split())
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: not JSON: {error}") from error
    if not needed and not (isinstance(fields, dict) and any(key in fields for key in TEXT_KEYS)):
        return ""
    return text_of(fields, name)


def text_of(fields: Any, where: str) -> str:
    """The text among the fields of a clip; of several texts the first one.

    Raises:
        DataError: there is none, or it is no text.
    """
    found = next((fields[key] for key in TEXT_KEYS if key in fields), None) if isinstance(fields, dict) else None
    if isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, str):
        raise DataError(f"{where}: no text; one of the fields {', '.join(TEXT_KEYS)} must hold it")
    return " ".join(found.split())


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _fields(found: ObjectInfo) -> dict[str, Any]:
    return asdict(found) | {"modified": found.modified.isoformat()}


def _info(fields: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(**dict(fields) | {"modified": datetime.fromisoformat(fields["modified"])})


def tag_of(found: ObjectInfo) -> str:
    """Changes when the file is replaced, and is the same on every node: an inode is not."""
    return found.modified.isoformat() if found.uri.startswith("file://") else found.etag


def is_video(name: str) -> bool:
    """Whether a file might be a video, by its name's ending."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _text(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in TEXT_ENDINGS
