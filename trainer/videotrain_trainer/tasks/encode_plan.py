"""What an encode stage makes of a clip, and how its clips are cut into units: pure arithmetic.

Only windows are made that a stage of the run takes. `stage_samples.needed_draws` and `buckets.keeps` say so, as they
do when that stage opens the set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from videotrain_api.config.aspect import shapes, side_of
from videotrain_api.config.stage_config import LatentReader
from videotrain_api.resource.stages import Bucket, ConditionKind, PromptStyle, TextForm
from videotrain_trainer.data.buckets import (
    Window,
    aspect_names,
    bucket_name,
    fits_area,
    frame_stride,
    keeps,
    nearest_aspect,
    row_name,
    windows,
    within,
)
from videotrain_trainer.data.stage_samples import needed_draws
from videotrain_trainer.data.video import Cut
from videotrain_trainer.engines.interface import Unit

ENCODING_VERSION = 4
"""Rises when the same clip would give other samples."""
MOST_CLIPS = 256
"""Clips of a unit at most: what a rank that is killed has done for nothing."""
PART_UNITS = 512
"""Units whose tables make a part."""
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
    styles: tuple[PromptStyle, ...]
    """Prompt styles of the stages that take it and read text features."""
    captions: tuple[PromptStyle, ...]
    """Those of the stages that encode its captions themselves."""
    clip_rows: tuple[str, ...]
    """Names of all rows that the clip fits, sorted: of these a stage chooses, whether they are encoded or not."""

    @property
    def fps(self) -> float:
        """Frame rate of the window."""
        return frame_stride(self.clip["fps"])[1]

    @property
    def rate_and_motion(self) -> tuple[float | None, float | None]:
        """What the text tells about them: nothing for a picture."""
        return (None, None) if self.window.frames == 1 else (self.fps, self.clip["motion"])

    @property
    def cut(self) -> Cut:
        """Its pixels in the clip's video."""
        start, stride = self.window.start, self.window.stride
        return Cut(range(start, start + self.window.frames * stride, stride), self.shape)


@dataclass(frozen=True)
class EncodePlan:
    """What is made of clips.

    Args:
        readers: the stages that read the set.
        grid: pixels to whose multiples sides are rounded.
        step: the autoencoder's temporal compression.
    """

    readers: Sequence[LatentReader]
    grid: int
    step: int

    @cached_property
    def rows(self) -> dict[str, Bucket]:
        """Bucket rows of all readers by name, each size once."""
        return {row_name(row): row for reader in self.readers for row in reader.buckets}

    @cached_property
    def prompts(self) -> list[PromptStyle]:
        """Prompt styles of the readers of text features, each once, in their order."""
        return self._styles("stored")

    @cached_property
    def captions(self) -> list[PromptStyle]:
        """Those of the readers that encode captions themselves."""
        return self._styles("online")

    def _styles(self, text: TextForm) -> list[PromptStyle]:
        return list(dict.fromkeys(reader.prompt_style for reader in self.readers if reader.text == text))

    @cached_property
    def references(self) -> list[ConditionKind]:
        """The v2v kinds of all readers, each once, in their order."""
        return list(dict.fromkeys(kind for reader in self.readers for kind in reader.references))

    def fitting(self, clip: Mapping[str, Any]) -> dict[str, list[Window]]:
        """Windows that a clip has for each row that it fits."""
        found = {
            name: windows(clip["frames"], clip["fps"], row, self.step)
            for name, row in self.rows.items()
            if fits_area(clip["height"], clip["width"], row.resolution)
        }
        return {name: cuts for name, cuts in found.items() if cuts}

    def samples(self, clip: Mapping[str, Any]) -> list[Sample]:
        """The samples of a clip that some reader takes, in order of uid."""
        fits = self.fitting(clip)
        clip_rows = tuple(sorted(fits))
        taken: dict[str, set[tuple[TextForm, PromptStyle]]] = {}
        for reader in self.readers:
            if within(clip, reader.select):
                for name in fits:
                    if self._takes(reader, clip["uid"], name, clip_rows):
                        taken.setdefault(name, set()).add((reader.text, reader.prompt_style))
        found = [
            self._sample(clip, name, window, texts, clip_rows) for name, texts in taken.items() for window in fits[name]
        ]
        return sorted(found, key=lambda sample: sample.uid)

    def _takes(self, reader: LatentReader, clip: str, row: str, clip_rows: tuple[str, ...]) -> bool:
        key = (reader.stage, row, clip_rows)
        if key not in self._draws:  # there are few, however many clips
            self._draws[key] = needed_draws(row, clip_rows, reader.buckets)
        draws = self._draws[key]
        return draws is not None and all(keeps(of, reader.seed, clip) == wanted for of, wanted in draws)

    @cached_property
    def _draws(self) -> dict[tuple[str, str, tuple[str, ...]], list[tuple[Bucket, bool]] | None]:
        return {}

    def largest(self, text_bytes: int) -> int:
        """Bytes that a clip gives at most, about: to each reader its largest row of pictures and of video.

        Args:
            text_bytes: of a sample's text features.
        """
        rows = self.rows.values()
        # A quarter of the pixels' own bytes bounds the latents of both autoencoders from above (16 of 4x8x8 or 128 of
        # 4x32x32 values per pixel block), so shards come out below their target rather than above.
        sizes = [(row.frames + 8) * side_of(row.resolution) ** 2 * BYTES_PER_VALUE // 16 + text_bytes for row in rows]
        pictures = sum(size for row, size in zip(rows, sizes, strict=True) if row.frames == 1)
        videos = {side_of(row.resolution): 0 for row in rows if row.frames > 1}
        for row, size in zip(rows, sizes, strict=True):
            if row.frames > 1:
                videos[side_of(row.resolution)] = max(videos[side_of(row.resolution)], size)
        return pictures + sum(videos.values())

    def _sample(
        self,
        clip: Mapping[str, Any],
        name: str,
        window: Window,
        texts: Set[tuple[TextForm, PromptStyle]],
        clip_rows: tuple[str, ...],
    ) -> Sample:
        row = self.rows[name]
        aspect = nearest_aspect(clip["height"], clip["width"], aspect_names(row, self.grid))
        # Rows with the same frames but other shapes must not collide, hence the row's hash.
        tag = hashlib.sha256(name.encode()).hexdigest()[:4]
        return Sample(
            uid=f"{clip['uid']}.{tag}.{window.frames}f{window.start}",
            clip=clip,
            row=name,
            bucket=bucket_name(row.resolution, window.frames, aspect),
            window=window,
            shape=shapes(row.resolution, self.grid, row.aspect_ratios)[aspect],
            styles=tuple(style for style in self.prompts if ("stored", style) in texts),
            captions=tuple(style for style in self.captions if ("online", style) in texts),
            clip_rows=clip_rows,
        )


@dataclass(frozen=True)
class ClipUnits:
    """The units of an encode stage: so many neighbouring clips of the manifest each, and no list of them anywhere."""

    clips: int
    each: int
    """Clips of a unit; the last one may have fewer."""
    made_from: str
    """Hash of all that samples depend on: clips, weights, encoders and readers."""

    def __len__(self) -> int:
        return -(-self.clips // self.each)

    def __iter__(self) -> Iterator[Unit]:
        for number in range(len(self)):
            clips = [number * self.each, min((number + 1) * self.each, self.clips)]
            yield Unit(self.name(number), clips[1] - clips[0], {"number": number, "clips": clips})

    def name(self, number: int) -> str:
        """Of a unit, and of the part of the set that has this number."""
        return f"{self.made_from[:24]}-{number:08d}"

    def parts(self) -> list[Unit]:
        """Of PART_UNITS units each, whose tables are put together."""
        starts = range(0, len(self), PART_UNITS)
        cuts = [[start, min(start + PART_UNITS, len(self))] for start in starts]
        return [Unit(self.name(number), cut[1] - cut[0], {"units": cut}) for number, cut in enumerate(cuts)]


def why_nothing(clips: Iterator[Mapping[str, Any]], plan: EncodePlan) -> str:
    """Counts of the reasons for which clips give no sample, for the error message."""
    reasons: Counter[str] = Counter()
    for clip in clips:
        fits = plan.fitting(clip)
        for name, row in plan.rows.items():
            if name not in fits:
                small = not fits_area(clip["height"], clip["width"], row.resolution)
                reasons[f"too small for {row.resolution}" if small else f"too short for {name}"] += 1
        chosen = [reader for reader in plan.readers if within(clip, reader.select)]
        if fits and not chosen:
            reasons["outside train.select of every stage"] += 1
        elif fits:
            reasons["left out by keepProbability of every stage"] += 1
    return ", ".join(f"{count} times {reason}" for reason, count in sorted(reasons.items()))
