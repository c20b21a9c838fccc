"""What is evaluated: videos of a folder, clips of a curated set, or the latents of an encoded set with their clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from torch import Tensor

from videotrain_api.storage import layout
from videotrain_trainer.data.buckets import Window, frame_stride
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, kept_clips, read_table
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.sample_reader import SampleReader
from videotrain_trainer.data.sets import read_set_info, set_info_uri
from videotrain_trainer.data.shards import Member
from videotrain_trainer.data.video import Frame, decode, read_covering
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.storage import ObjectStore

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
CENTRE = (0.5, 0.5)


@dataclass(frozen=True)
class Item:
    """One video to reconstruct."""

    name: str
    pixels: Callable[[], Tensor]
    """Reads (3, T, H, W) float32 in [-1, 1]."""
    latent: Callable[[], Tensor] | None = None
    """Reads the stored (C, T', H', W'); None if the autoencoder encodes the pixels."""


def uri_of(source: str) -> str:
    """A path or URI as a URI without a slash at its end."""
    return (source if "://" in source else Path(source).resolve().as_uri()).rstrip("/")


def videos_below(store: ObjectStore, source: str) -> dict[str, str]:
    """URIs of the videos of a folder by their path below it.

    Raises:
        DataError: there is none.
    """
    folder = uri_of(source)
    found = {item.uri[len(folder) + 1 :]: item.uri for item in store.list(folder) if item.uri.endswith(ENDINGS)}
    if not found:
        raise DataError(f"{source}: no video ({', '.join(ENDINGS)}) in this folder")
    return found


def read_frames(store: ObjectStore, uri: str) -> Frame:
    """All frames of a video, (T, H, W, 3)."""
    return np.stack([frame for _, frame in decode(store.get(uri))])


def items_of(
    store: ObjectStore, source: str, clips: str | None, size: tuple[int, int], frames: int, limit: int | None
) -> list[Item]:
    """What a source holds.

    Args:
        store: object store.
        source: folder of videos, or prefix of a curated or an encoded set.
        clips: of an encoded set: the curated set that it was made from.
        size: (height, width) of the crops; an encoded set has sizes of its own.
        frames: of each clip; likewise.
        limit: the first so many; all if None.

    Raises:
        DataError: nothing is there.
        ConfigError: an encoded set without its clips.
    """
    uri = uri_of(source)
    if store.exists(set_info_uri(uri)):
        if clips is None:
            raise ConfigError(f"{source} is an encoded set: name the curated set it was made from with --clips")
        return _latents(store, uri, uri_of(clips))[:limit]
    if store.exists(layout.clip_manifest(uri)):
        rows = _long_clips(store, uri, frames, source).slice(0, limit).to_pylist()
        found = {row["uid"]: layout.clip_file(uri, row["uri"]) for row in rows}
    else:
        found = videos_below(store, source)
    return [clip_item(store, name, clip, size, frames) for name, clip in list(found.items())[:limit]]


def first_clips(store: ObjectStore, clips: str, frames: int, most: int) -> list[tuple[str, str]]:
    """Ids and URIs of the clips of a curated set that have so many frames: the first by id, at most so many.

    Raises:
        DataError: none has, or there is no such set.
    """
    long = _long_clips(store, clips, frames, clips)
    rows = long.take(pc.select_k_unstable(long, most, sort_keys=[("uid", "ascending")])).to_pylist()
    return [(row["uid"], layout.clip_file(clips, row["uri"])) for row in rows]


def _long_clips(store: ObjectStore, clips: str, frames: int, source: str) -> Any:
    """A pyarrow.Table with uid and uri of the kept clips that have so many frames; `source` names the set in errors."""
    table = ClipTable(store, clips).columns(["uid", "uri", "frames"])
    long = table.filter(pc.greater_equal(table["frames"], frames)).select(["uid", "uri"])
    if not len(long):
        raise DataError(f"{source}: none of {len(table)} clips has {frames} frames")
    return long


def clip_item(store: ObjectStore, name: str, uri: str, size: tuple[int, int], frames: int) -> Item:
    """The first frames of a clip, scaled to cover (height, width) and cropped in the middle."""

    def read() -> Tensor:
        video = read_covering(store.get(uri), size)
        if len(video) < frames:
            raise DataError(f"{uri}: has {len(video)} frames, {frames} are asked for; use fewer with --frames")
        return crop_window(video, Window(0, frames, 1), size, CENTRE)

    return Item(name, read)


def _latents(store: ObjectStore, uri: str, clips: str) -> list[Item]:
    table = read_table(store, layout.clip_manifest(clips), CLIP_SCHEMA)
    by_uid = {row["uid"]: row for row in kept_clips(table).to_pylist()}
    rows = read_table(store, layout.latent_manifest(uri), LATENT_SCHEMA).to_pylist()
    missing = [row["clip"] for row in rows if row["clip"] not in by_uid]
    if missing:
        raise DataError(f"{uri}: {len(missing)} of its clips are not in {clips}, such as {missing[0]}")
    unit = read_set_info(store, uri).spatial_compression
    reader = SampleReader(store)
    return [_latent_item(store, reader, uri, row, clips, by_uid[row["clip"]], unit) for row in rows]


def _latent_item(
    store: ObjectStore, reader: SampleReader, uri: str, row: dict[str, Any], clips: str, clip: dict[str, Any], unit: int
) -> Item:
    member = Member(name=row["uid"], offset=row["offset"], length=row["length"], crc32c=row["crc32c"])

    def latent() -> Tensor:
        return reader.tensors(f"{uri}/{row['shard']}", member)["latent"].float()

    def pixels() -> Tensor:
        size = (row["latent_height"] * unit, row["latent_width"] * unit)
        window = Window(row["start"], row["frames"], frame_stride(clip["fps"])[0])
        return crop_window(read_covering(store.get(layout.clip_file(clips, clip["uri"])), size), window, size, CENTRE)

    return Item(row["uid"], pixels, latent)
