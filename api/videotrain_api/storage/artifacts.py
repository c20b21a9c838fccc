"""Small JSON documents in the object store that more than one part reads."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from videotrain_api.resource.pool import Money
from videotrain_api.resource.stages import ConditionKind
from videotrain_api.schema import ApiModel


class SourceIds(ApiModel):
    """Which samples of a step are of one source."""

    name: str
    epoch: int
    """Pass over the source's samples of the bucket in which the first of them lies, from 0."""
    places: list[int]
    """In the step's `ids`, ascending."""


class OrderLine(ApiModel):
    """One line of an order segment: the samples of one optimizer step, in micro-batch order."""

    step: int
    epoch: int
    """Pass over the bucket's clips in which the step's first sample lies, from 0; 0 where there are sources."""
    bucket: str
    ids: list[str]
    """Sample uids, micro-batch after micro-batch. Gathered from the ranks that trained on them, not recomputed."""
    sources: list[SourceIds] | None = None
    """Where the dataset has several sources: each sample is of one, and each source has passes of its own."""


class OrderSegment(ApiModel):
    """A range of steps whose order is stored in one object."""

    uri: str
    first_step: int
    last_step: int
    generation: int
    crc32c: str
    """Of the object, 8 hex digits."""


class CheckpointFile(ApiModel):
    """One object of a checkpoint."""

    name: str
    """Relative to the checkpoint's prefix."""
    bytes: int
    crc32c: str
    """Of the whole object, 8 hex digits."""


class SealedDocument(ApiModel):
    """A document that carries its own checksum."""

    crc32c: str = ""
    """Of the other fields, 8 hex digits; set where it is stored."""


class LatestCheckpoint(SealedDocument):
    """latest.json: the checkpoint that was completed last; tells that a listing without it is wrong."""

    step: int
    generation: int


class SuspectMark(SealedDocument):
    """suspect-<generation>-<rank>.json: what one process read of a checkpoint that did not fit."""

    generation: int
    rank: int
    node: str
    """Machine that read it."""
    at: datetime
    uri: str
    """Object that was read."""
    start: int
    stop: int
    """Bytes from `start` to before `stop`; 0 and 0 for the whole object."""
    found: str
    """Checksum or size of what was read, or `missing`; equal on two machines if what is stored is damaged."""
    problem: str
    """For people."""


class CheckpointManifest(SealedDocument):
    """commit.json: a checkpoint is complete if and only if this exists and every file fits it."""

    version: int = 1
    run: str
    stage: str
    config_hash: str
    generation: int
    step: int
    world_size: int
    """Worker processes that wrote it; any allowed world can read it."""
    captured_at: datetime
    committed_at: datetime
    files: list[CheckpointFile]
    data_cursor: dict[str, object]
    """State of the sample order."""
    order: list[OrderSegment]
    """All segments from step 1 to this step, in order: the samples that made it into these weights."""
    order_sha256: str
    """SHA-256 over the lines `<step> <id> <id> ...\\n` of steps 1 to this one; empty if one could not be read."""
    samples: int
    """Samples consumed up to this step."""
    source_samples: dict[str, int] = Field(default_factory=dict)
    """Of these, how many each source of the dataset gave; empty if samples are not told apart by source."""


class SampledVideo(ApiModel):
    """One video drawn by a sample stage."""

    number: int
    uri: str
    prompt: str
    condition: ConditionKind
    seed: int
    width: int
    height: int
    frames: int
    fps: int
    settings: dict[str, object]
    """All sampler settings."""
    reference_clip: str | None = None
    """URI of the training clip that gave prompt and first frame."""


class VideosIndex(ApiModel):
    """videos.json of a sample stage."""

    videos: list[SampledVideo] = Field(default_factory=list)


class MeasuredRows(ApiModel):
    """Measures of clips and videos, as an evaluate stage stores them."""

    inputs: str
    """Names the configuration, weights, clips and videos that they depend on; rows of others are measured again."""
    rows: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Measures by `clips/<uid>` and `videos/<number>`."""


class DroppedItem(ApiModel):
    """A raw video or clip that curation dropped."""

    source: str
    """File name of the raw video."""
    span: list[float] | None = None
    """Start and end in the raw video, seconds; null if the whole video was dropped."""
    reason: str
    """One word, such as unreadable, too-short, aspect, duplicate."""
    detail: str = ""
    """The measured value and the bound."""
    value: float | None = None
    """What was measured, where it is a number."""
    bound: float | None = None
    """What it should have been at least or at most."""


class CaptionReport(ApiModel):
    """Captions that a curate stage asked an endpoint for."""

    asked: int
    """Kept clips without a text of their own."""
    captioned: int
    """Of these, with a caption now."""
    missing: dict[str, int] = Field(default_factory=dict)
    """Clips without one, by reason."""
    tries: int = 0
    """Requests of the life of the stage that wrote this; the following are of it as well."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: Money = "0"
    """Of these tokens at the endpoint's prices."""


class DropReport(ApiModel):
    """drop-report.json of a curate stage."""

    videos: int
    """Raw videos seen."""
    clips: int
    """Clips kept."""
    dropped: list[DroppedItem] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict)
    """Dropped items by reason."""
    curate: dict[str, object] = Field(default_factory=dict)
    """The task whose bounds decided, as in the run's manifest."""
    captions: CaptionReport | None = None
    """If the task asks an endpoint for captions."""
