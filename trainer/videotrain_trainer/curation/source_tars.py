"""Tar files of videos with their texts beside them, as WebDataset has them, listed by their headers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import PurePosixPath
from typing import Final

from videotrain_trainer.checksums import read_again
from videotrain_trainer.curation.source import (
    EXTENSIONS,
    TEXT_ENDINGS,
    VIDEOS,
    RawVideo,
    VideoFolder,
    is_video,
    text_in,
)
from videotrain_trainer.data.clip_table import RangedFile
from videotrain_trainer.engines.board import read_in_order
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.storage import ObjectInfo, ObjectStore

WHOLE_BYTES: Final = 4 * 1024**2
"""Tar files up to this size are listed by one request; as many are held at a time as are read at a time."""
HEADER_BYTES: Final = 16 * 1024
"""Read from a header on in larger ones: it has room for the texts that lie beside a video, and for their headers."""

MOST_TEXT_BYTES: Final = 1024**2
"""Of a text beside a video."""


class VideoShards(VideoFolder):
    """A folder of tar files in which what has one name but for its ending belongs together, as WebDataset has it."""

    def videos(self, captions: Mapping[str, str]) -> Iterator[RawVideo]:
        """All videos by name of their tar file, in its order; several tar files are listed at the same time.

        Raises:
            DataError: there is no tar file, one is damaged, or none has a video.
        """
        self._check_local()
        shards = videos = 0
        with self._field_is_named():
            for window, _ in self._windows():
                tars = [(name, found) for name, found in window if PurePosixPath(name).suffix.lower() == ".tar"]
                shards += len(tars)
                for inside in read_in_order(lambda tar: self._of_shard(*tar, captions), tars, lambda *_: None):
                    videos += len(inside)
                    yield from inside
        if not videos:
            raise DataError(
                f"{self._field}: {self.uri} holds no video ({shards} tar files), listed again; looked for members with "
                f"{', '.join(sorted(EXTENSIONS))}"
            )

    def _of_shard(self, name: str, found: ObjectInfo, captions: Mapping[str, str]) -> list[RawVideo]:
        def read(store: ObjectStore) -> list[RawVideo]:
            ahead = found.size if found.size <= WHOLE_BYTES else HEADER_BYTES
            file = io.BufferedReader(RangedFile(store, found.uri, found.size), max(1, ahead))
            videos: list[RawVideo] = []
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    members = ((part, _text(tar, part)) for part in tar)
                    for _, parts in groupby(members, lambda member: _key(member[0])):
                        videos += self._videos_of(name, found, dict(parts), captions)
            except (tarfile.TarError, OSError, EOFError) as error:
                raise DataError(f"{found.uri}: not a whole tar file: {error}") from error
            return videos

        return read_again(self._store, read, (DataError, ObjectMissing))

    def _videos_of(
        self, name: str, found: ObjectInfo, parts: Mapping[tarfile.TarInfo, bytes], captions: Mapping[str, str]
    ) -> Iterator[RawVideo]:
        """The videos among members of one key, each with the text that lies beside it.

        Pictures count where there is no video; beside one they are its thumbnails.
        """
        wanted = [part for part in parts if part.isfile() and is_video(part.name)]
        wanted = [part for part in wanted if _ending(part) in VIDEOS] or wanted
        endings = {_ending(part): part for part in parts if part.isfile()}
        beside = next((endings[ending] for ending in TEXT_ENDINGS if ending in endings), None)
        text = ""
        if wanted and beside is not None:
            if beside.size > MOST_TEXT_BYTES:
                raise DataError(
                    f"{found.uri}: {beside.name} has {beside.size} bytes; the text beside a video has at most "
                    f"{MOST_TEXT_BYTES}"
                )
            text = text_in(parts[beside], f"{found.uri}: {beside.name}")
        for part in wanted:
            video = self._raw(f"{name}/{part.name}", replace(found, size=part.size), {}, captions)
            yield replace(video, caption=text or video.caption, offset=part.offset_data)


def _text(tar: tarfile.TarFile, part: tarfile.TarInfo) -> bytes:
    """A member that may hold a text, read while its bytes are still there; empty for any other, and for a long one."""
    if not part.isfile() or _ending(part) not in TEXT_ENDINGS or part.size > MOST_TEXT_BYTES:
        return b""
    member = tar.extractfile(part)
    assert member is not None  # it is a file
    return member.read()


def _ending(part: tarfile.TarInfo) -> str:
    return PurePosixPath(part.name).suffix.lower()


def _key(part: tarfile.TarInfo) -> str:
    """What a member shares with those that belong to it: its path up to the first dot of its name."""
    path = PurePosixPath(part.name)
    return str(path.with_name(path.name.split(".")[0] or path.name))
