"""What an encode stage makes: pure arithmetic from clip rows and bucket rows to samples and shards.

A unit is one shard, cut from its bucket's samples in order of uid, so shards do not depend on how many ranks write.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from videotrain_api.config.aspect import shapes
from videotrain_api.resource.stages import Bucket
from videotrain_trainer.data.buckets import (
    Window,
    aspect_names,
    bucket_name,
    fits_area,
    frame_stride,
    nearest_aspect,
    row_name,
    windows,
)

ENCODING_VERSION = 3
"""Rises when the same clip would give another sample."""
BYTES_PER_VALUE = 2


@dataclass(frozen=True)
class Sample:
    """One window of a clip in the shape of its bucket."""

    uid: str
    clip: Mapping[str, Any]
    """Row of the clip manifest."""
    row: str
    """Name of the bucket row that asked for it."""
    bucket: str
    window: Window
    shape: tuple[int, int]
    """(height, width), pixels."""

    @property
    def fps(self) -> float:
        """Frame rate of the window."""
        return frame_stride(self.clip["fps"])[1]

    @property
    def rate_and_motion(self) -> tuple[float | None, float | None]:
        """What the text tells about them: nothing for a picture."""
        return (None, None) if self.window.frames == 1 else (self.fps, self.clip["motion"])


@dataclass(frozen=True)
class ShardPlan:
    """Samples of one shard."""

    bucket: str
    number: int
    """Place among the bucket's shards."""
    samples: tuple[Sample, ...]

    def name(self, *made_from: str) -> str:
        """Hash of all that the shard's bytes depend on, `made_from` being weights and encoders."""
        digest = hashlib.sha256("\0".join([str(ENCODING_VERSION), self.bucket, *made_from]).encode())
        for sample in self.samples:
            digest.update(f"{sample.uid} {sample.clip['crc32c']} {sample.clip['caption']}\n".encode())
        return digest.hexdigest()[:32]


def plan_samples(clips: Sequence[Mapping[str, Any]], rows: Sequence[Bucket], grid: int, step: int) -> list[Sample]:
    """All samples: for every clip and row that it fits, its windows. Sorted by bucket and uid.

    Args:
        clips: kept rows of the clip manifest.
        rows: bucket rows of the stages to come.
        grid: pixels to whose multiples sides are rounded.
        step: the autoencoder's temporal compression.
    """
    found = [sample for row in rows for clip in clips for sample in _samples(clip, row, grid, step)]
    return sorted(found, key=lambda sample: (sample.bucket, sample.uid))


def why_nothing(clips: Sequence[Mapping[str, Any]], rows: Sequence[Bucket]) -> str:
    """Counts of the reasons for which clips fit no row, for the error message."""
    reasons = Counter(
        f"too small for {row.resolution}"
        if not fits_area(clip["height"], clip["width"], row.resolution)
        else f"too short for {row_name(row)}"
        for row in rows
        for clip in clips
    )
    return ", ".join(f"{count} times {reason}" for reason, count in sorted(reasons.items()))


def plan_shards(samples: Sequence[Sample], sample_bytes: int, shard_bytes: int) -> list[ShardPlan]:
    """Cut each bucket's samples into shards of about `shard_bytes`.

    Args:
        samples: as `plan_samples` sorts them.
        sample_bytes: bytes per sample beside its latents (text features, headers).
        shard_bytes: target size.
    """
    shards: list[ShardPlan] = []
    for bucket in dict.fromkeys(sample.bucket for sample in samples):
        members = [sample for sample in samples if sample.bucket == bucket]
        window, (height, width) = members[0].window, members[0].shape
        # A quarter of the pixels' own bytes bounds the latents of both autoencoders from above (16 of 4x8x8 or 128 of
        # 4x32x32 values per pixel block), so shards come out below their target rather than above.
        latents = (window.frames + 8) * height * width * BYTES_PER_VALUE // 16
        each = max(1, shard_bytes // (latents + sample_bytes))
        cuts = range(0, len(members), each)
        shards += [ShardPlan(bucket, n, tuple(members[at : at + each])) for n, at in enumerate(cuts)]
    return shards


def _samples(clip: Mapping[str, Any], row: Bucket, grid: int, step: int) -> list[Sample]:
    if not fits_area(clip["height"], clip["width"], row.resolution):
        return []
    aspect = nearest_aspect(clip["height"], clip["width"], aspect_names(row, grid))
    shape = shapes(row.resolution, grid, row.aspect_ratios)[aspect]
    return [
        Sample(
            uid=_sample_uid(clip["uid"], row, window),
            clip=clip,
            row=row_name(row),
            bucket=bucket_name(row.resolution, window.frames, aspect),
            window=window,
            shape=shape,
        )
        for window in windows(clip["frames"], clip["fps"], row, step)
    ]


def _sample_uid(clip: str, row: Bucket, window: Window) -> str:
    """Clip, row and first frame; rows with the same frames but other shapes must not collide, hence the row's hash."""
    tag = hashlib.sha256(row_name(row).encode()).hexdigest()[:4]
    return f"{clip}.{tag}.{window.frames}f{window.start}"
