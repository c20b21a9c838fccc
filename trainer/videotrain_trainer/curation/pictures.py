"""Frames of clips that are in the store, for captions and for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import google_crc32c

from videotrain_api.storage import layout
from videotrain_trainer.checksums import READINGS, read_again
from videotrain_trainer.curation.scores.interface import spread
from videotrain_trainer.data.video import decode, even_size
from videotrain_trainer.errors import DamagedObject
from videotrain_trainer.storage import ObjectStore


def read_pictures(store: ObjectStore, prefix: str, row: Mapping[str, Any], number: int, side: int) -> list[bytes]:
    """JPEG files of frames that are spread over a clip.

    Args:
        store: object store.
        prefix: URI of the curated set.
        row: of its catalogue; with a file.
        number: of frames; a shorter clip gives fewer.
        side: longer side in pixels; never scaled up.

    Raises:
        DamagedObject: the file does not fit its checksum.
    """
    uri = layout.clip_file(prefix, row["uri"])

    def whole(source: ObjectStore) -> bytes:
        data = source.get(uri)
        if google_crc32c.value(data) == row["crc32c"]:
            return data
        raise DamagedObject(f"{uri}: does not fit its checksum {row['crc32c']:08x}, as {READINGS} readings say")

    wanted = set(spread(row["frames"], number))
    frames = decode(read_again(store, whole, (DamagedObject,)), even_size(row["height"], row["width"], side), "bgr24")
    chosen = [frame for at, (_, frame) in enumerate(frames) if at in wanted]
    return [bytes(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]) for frame in chosen]
