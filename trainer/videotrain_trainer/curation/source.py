"""The folder of raw videos: listing, fetching, content hashes and captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.curation.packaged import resolve_package
from videotrain_trainer.errors import DataError, StorageDenied, StorageUnavailable
from videotrain_trainer.storage import disk_full_is_clear, open_filesystem

EXTENSIONS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
BLOCK = 8 * 1024 * 1024


@dataclass(frozen=True)
class RawVideo:
    """A file that might be a video."""

    name: str
    """Path below the folder."""
    path: str
    """Path in the file system."""
    size: int
    """Bytes."""
    tag: str
    """Changes when the file is replaced."""

    @property
    def stem(self) -> str:
        """File name without folder and extension."""
        return PurePosixPath(self.name).stem


class VideoFolder:
    """spec.dataset.videos.

    Args:
        uri: s3://, file:// or package:// URI of the folder.
        storage: endpoint and region for s3://.
        captions: captions by stem for videos without a text file.

    Raises:
        DataError: the package of a package:// URI is not installed here.
    """

    def __init__(self, uri: str, storage: Storage, captions: Mapping[str, str]) -> None:
        self.uri = uri
        self._captions = captions
        self._system, self._root = open_filesystem(resolve_package(uri), storage)
        self._texts: dict[str, str] = {}

    def videos(self) -> list[RawVideo]:
        """All videos at any depth, by name.

        Raises:
            DataError: the folder is missing or holds no video.
        """
        with self._errors():
            found = self._system.find(self._root, detail=True)
        names = {str(PurePosixPath(path).relative_to(self._root)): row for path, row in found.items()}
        self._texts = {_without_suffix(name): row["name"] for name, row in names.items() if _text(name)}
        videos = [_raw(name, row) for name, row in sorted(names.items()) if _video(name)]
        if not videos:
            raise DataError(
                f"spec.dataset.videos: {self.uri} holds no video ({len(names)} other files); looked for "
                f"{', '.join(sorted(EXTENSIONS))}"
            )
        return videos

    def fetch(self, video: RawVideo, scratch: Path) -> Path:
        """A local copy, or the file itself if it is local already."""
        if "file" in self._system.protocol:
            return Path(video.path)
        target = scratch / f"raw{PurePosixPath(video.name).suffix}"
        with self._errors(), disk_full_is_clear(target):
            self._system.get_file(video.path, str(target))
        return target

    def caption(self, video: RawVideo) -> str:
        """The text file of the same stem, else the manifest's caption, else the words of the stem."""
        path = self._texts.get(_without_suffix(video.name))
        if path is not None:
            with self._errors():
                text = self._system.cat_file(path).decode("utf-8", errors="replace")
            if text.strip():
                return " ".join(text.split())
        return self._captions.get(video.stem) or stem_words(video.stem)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f"spec.dataset.videos: {self.uri} or a file in it does not exist: {error}") from error
        except (PermissionError, NotADirectoryError) as error:
            raise StorageDenied(f"spec.dataset.videos: {self.uri} may not be read: {error}") from error
        except (BotoCoreError, ClientError, ConnectionError) as error:
            raise StorageUnavailable(f"spec.dataset.videos: {self.uri} cannot be read: {error}") from error


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


def _raw(name: str, row: dict[str, Any]) -> RawVideo:
    tag = row.get("ETag") or row.get("mtime")
    return RawVideo(name=name, path=row["name"], size=int(row["size"]), tag=str(tag))
