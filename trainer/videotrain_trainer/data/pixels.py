"""Pixels of curated clips: crops for encoding, and for the autoencoder stage random ones, the same in every world.

Shapes: B batch, C colour, T frames, H height, W width.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from videotrain_api.storage import layout
from videotrain_trainer.checksums import READINGS, read_again
from videotrain_trainer.data.buckets import Window, frame_stride
from videotrain_trainer.data.loader import HOST, MicroBatchLoader, SampleKey
from videotrain_trainer.data.sample_order import OrderState, sample_seed
from videotrain_trainer.data.sets import ClipSet
from videotrain_trainer.data.shards import DamagedSample
from videotrain_trainer.data.video import Frame, read_covering
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.files import replacing
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear

CACHE_SHARE = 0.25
"""Share of the disk's free space that decoded clips may take; beyond it clips are decoded every time."""


@dataclass(frozen=True, kw_only=True)
class PixelBatch:
    """One micro-batch of an autoencoder stage."""

    video_BCTHW: Tensor
    """float32 in [-1, 1]."""
    keys: tuple[SampleKey, ...]


class PixelLoader(MicroBatchLoader[tuple[Tensor, SampleKey], PixelBatch]):
    """Random windows and crops of curated clips.

    A clip is fetched, verified and decoded once per pod; its resized frames stay in the cache, so that later windows of
    it are a read of a few rows.

    Args:
        store: object store.
        clips: of the stage.
        state: of the order.
        micro_batches_of_rank: for every bucket, micro-batches that this process runs, ascending.
        cache: pod-local folder, shared by the pod's workers.
        device: where batches are wanted.
    """

    def __init__(
        self,
        store: ObjectStore,
        clips: ClipSet,
        state: OrderState,
        micro_batches_of_rank: Sequence[Sequence[int]],
        cache: Path,
        device: torch.device = HOST,
    ) -> None:
        self._store = store
        self._clips = clips
        self._cache = FrameCache(cache / "frames")
        super().__init__(clips, state, micro_batches_of_rank, threads=2, device=device)

    def _load(self, bucket: int, index: int, key: SampleKey) -> tuple[Tensor, SampleKey]:
        row = self._clips.row(bucket, index)
        target = self._clips.shapes[key.bucket]
        uri = layout.clip_file(self._clips.uri, row["uri"])
        name = f"{row['uid']}-{target[0]}x{target[1]}"
        frames = self._cache.get(name, lambda: read_covering(self._fetch(uri, row["crc32c"]), target))
        draw = random.Random(sample_seed(self._clips.plan.seed, key.bucket, key.position))
        stride, _ = frame_stride(row["fps"])
        last_start = len(frames) - (self._clips.frames - 1) * stride - 1
        window = Window(draw.randint(0, max(0, last_start)), self._clips.frames, stride)
        return crop_window(frames, window, target, (draw.random(), draw.random())), key

    def _fetch(self, uri: str, crc32c: int) -> bytes:
        def whole(source: ObjectStore) -> bytes:
            data = source.get(uri)
            if google_crc32c.value(data) == crc32c:
                return data
            raise DamagedSample(f"{uri}: the clip does not fit its checksum: crc32c should be {crc32c:08x}")

        try:
            return read_again(self._store, whole, (DamagedSample, ObjectMissing))
        except ObjectMissing as error:
            raise DamagedSample(f"{uri}: the clip is missing, as {READINGS} readings say") from error

    def _collate(self, samples: list[tuple[Tensor, SampleKey]]) -> PixelBatch:
        return PixelBatch(
            video_BCTHW=torch.stack([pixels for pixels, _ in samples]), keys=tuple(key for _, key in samples)
        )


def crop_window(frames: Frame, window: Window, target: tuple[int, int], offset: tuple[float, float]) -> Tensor:
    """A sample from covering frames.

    Args:
        frames: (T, H', W', 3) of `read_covering`.
        window: which frames.
        target: (height, width) of the crop.
        offset: where the crop lies vertically and horizontally, 0 to 1; (0.5, 0.5) is the centre.

    Returns:
        (C, T, H, W) float32 in [-1, 1].
    """
    rows, columns = target
    top = int((frames.shape[1] - rows) * offset[0])
    left = int((frames.shape[2] - columns) * offset[1])
    stop = window.start + window.frames * window.stride
    if stop - window.stride >= len(frames):
        raise DataError(f"{window} reaches beyond the {len(frames)} frames of the clip")
    cut = frames[window.start : stop : window.stride, top : top + rows, left : left + columns]
    video_THWC = torch.from_numpy(np.array(cut, order="C")).float()
    return video_THWC.permute(3, 0, 1, 2).contiguous() / 127.5 - 1.0


class FrameCache:
    """Decoded frames as .npy files, mapped into memory. Safe between threads and processes of a pod."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk_full_is_clear(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._budget = int(shutil.disk_usage(folder).free * CACHE_SHARE)
        self._lock = threading.Lock()

    def get(self, key: str, decode: Callable[[], Frame]) -> Frame:
        """Frames (T, H, W, 3) under a key, decoded if they are not there."""
        path = self._folder / f"{key}.npy"
        if not path.exists():
            frames = decode()
            if not self._keep(path, frames):
                return frames
        mapped: Frame = np.load(path, mmap_mode="r")
        return mapped

    def _keep(self, path: Path, frames: Frame) -> bool:
        with self._lock:
            if frames.nbytes > self._budget:
                return False
            self._budget -= frames.nbytes
        with disk_full_is_clear(path), replacing(path, shared=True) as partial, partial.open("wb") as file:
            np.save(file, frames)
        return True
