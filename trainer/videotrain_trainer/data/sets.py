"""From a stored data set to what a stage trains on: rows selected, clips assigned to buckets, the order planned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.config.text_classes import text_class
from videotrain_api.resource.stages import Bucket, ConditionKind, ParallelLayout, PromptStyle, TrainTask, Validation
from videotrain_api.schema import ApiModel
from videotrain_api.storage import layout
from videotrain_trainer.checksums import read_checked, unsealed_json
from videotrain_trainer.data.buckets import (
    aspect_names,
    assign,
    bucket_name,
    frame_stride,
    keeps,
    nearest_aspect,
    row_name,
    uniform,
)
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, kept_clips, read_table, select, uids_hash
from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore


class EncodedSetInfo(ApiModel):
    """set.json: how the samples of an encoded set were made, so that a stage that needs others says so."""

    version: int = 1
    samples: int
    manifest_hash: str
    """manifest.uids_hash of the set."""
    rows: list[str]
    """Names of the bucket rows that were encoded."""
    prompts: list[PromptStyle]
    """Prompt styles with text features."""
    latent_channels: int
    spatial_compression: int
    """Pixels per latent row and column."""
    context_dim: int
    pooled_dim: int
    text_encoder: str
    trim_padding: bool = False
    """Whether pad tokens were left out of the text features."""
    references: list[ConditionKind] = Field(default_factory=list)
    """v2v kinds whose frames were encoded by themselves."""
    autoencoder_weights: str


def set_info_uri(prefix: str) -> str:
    """URI of the EncodedSetInfo of an encoded set."""
    return f"{prefix}/set.json"


def null_text_uri(prefix: str) -> str:
    """Where the features of the empty caption lie: `context` (its tokens, width) and `pooled`."""
    return f"{prefix}/null_text.safetensors"


@dataclass(frozen=True)
class TrainingSet:
    """Samples of one stage, grouped into buckets, and their order."""

    uri: str
    """Prefix of the stored set."""
    table: Any
    """pyarrow.Table of the manifest."""
    members: tuple[tuple[int, ...], ...]
    """For every bucket of the plan, row numbers of the table; an order's index counts in here."""
    plan: OrderPlan
    degrees: tuple[int, ...]
    """For every bucket of the plan, ranks that share a sample."""

    def row(self, bucket: int, index: int) -> dict[str, Any]:
        """Manifest row of element `index` of a bucket."""
        return self.manifest_row(self.members[bucket][index])

    def manifest_row(self, number: int) -> dict[str, Any]:
        """Row of the table."""
        return {name: self.table.column(name)[number].as_py() for name in self.table.column_names}


@dataclass(frozen=True)
class LatentSet(TrainingSet):
    """Encoded samples of a train stage."""

    prompt_style: PromptStyle
    context_length: int
    """Text features are padded with zeros to so many tokens, the longest that the encoder allows."""
    attend_padding: bool
    """All of them, or only to the length class of the caption."""
    latent_channels: int
    held_out: tuple[int, ...] = ()
    """Row numbers of the table that validation uses and training does not."""


@dataclass(frozen=True)
class ClipSet(TrainingSet):
    """Curated clips of an autoencoder stage."""

    shapes: dict[str, tuple[int, int]]
    """(height, width) in pixels by bucket name."""
    frames: int
    """Frames of a sample."""


def open_latents(store: ObjectStore, config: StageConfig) -> LatentSet:
    """The samples of a train stage and their order.

    Raises:
        DataError: the set is missing, lacks what the stage needs, or nothing is left after selection.
    """
    task, uri = config.stage.train, config.paths.latents
    if task is None or uri is None:
        raise DataError(f"stage {config.stage.name!r}: paths.latents is not set or the stage does not train")
    info = read_set_info(store, uri)
    _check_info(info, config, task)
    table = read_table(store, layout.latent_manifest(uri), LATENT_SCHEMA)
    chosen = select(table, task.select)
    groups, held_out = _hold_out(chosen, _train_groups(chosen, task, config), task.validation)
    if not groups:
        raise DataError(_nothing_left(config, table, chosen, info))
    if task.validation and not held_out:
        raise DataError(
            f"{uri}: none of the stage's clips falls into the held-out share; raise train.validation.share from "
            f"{task.validation.share} or leave train.validation out"
        )
    return LatentSet(
        uri=uri,
        table=chosen,
        members=tuple(tuple(rows) for _, rows in groups.values()),
        plan=_plan(chosen, groups, config.seed, task.parallel),
        degrees=_degrees(groups, task.parallel),
        prompt_style=task.prompt_style,
        context_length=config.text_encoder.max_tokens,
        attend_padding=task.attend_padding,
        latent_channels=info.latent_channels,
        held_out=held_out,
    )


def open_clips(store: ObjectStore, config: StageConfig) -> ClipSet:
    """The clips of an autoencoder stage and their order: one bucket per shape, square unless the row lists shapes.

    Raises:
        DataError: the set is missing or holds no clip of at least the row's shortest length.
    """
    task, uri = config.stage.autoencoder, config.paths.clips
    if task is None or uri is None:
        raise DataError(f"stage {config.stage.name!r}: paths.clips is not set or it is no autoencoder stage")
    table = kept_clips(read_table(store, layout.clip_manifest(uri), CLIP_SCHEMA))
    grid = config.autoencoder.spatial_compression
    row = task.bucket.model_copy(update={"aspect_ratios": task.bucket.aspect_ratios or ["1:1"]})
    groups = _clip_groups(table, row, grid)
    if not groups:
        longest = max((_usable_frames(clip) for clip in table.to_pylist()), default=0)
        raise DataError(
            f"{uri}: none of its {table.num_rows} clips has {row.frames} frames (the longest has {longest} at up to "
            f"24 fps); lower spec.stages[{config.stage.name}].autoencoder.bucket.frames"
        )
    return ClipSet(
        uri=uri,
        table=table,
        members=tuple(tuple(rows) for _, rows in groups.values()),
        plan=_plan(table, groups, config.seed, task.parallel),
        degrees=_degrees(groups, task.parallel),
        shapes=_clip_shapes(row, grid, groups),
        frames=row.frames,
    )


def read_set_info(store: ObjectStore, uri: str) -> EncodedSetInfo:
    """set.json of an encoded set.

    Raises:
        DataError: it is missing or not readable.
    """
    try:
        return read_checked(store, set_info_uri(uri), lambda data: EncodedSetInfo.model_validate(unsealed_json(data)))
    except ObjectMissing as error:
        raise DataError(f"{set_info_uri(uri)}: missing; no encode stage has finished there") from error


Groups = dict[str, tuple[Bucket, list[int]]]
"""Bucket name to the row of the bucket table that it belongs to, and numbers of the set's rows."""


def is_held_out(clip: str, share: float) -> bool:
    """Whether a clip is kept for validation: by its uid alone, so it is never trained on in any stage."""
    return uniform(0, "validation", clip) < share


def _hold_out(table: Any, groups: Groups, validation: Validation | None) -> tuple[Groups, tuple[int, ...]]:
    """Groups without the held-out clips, and the rows to validate on, taken from the buckets in turn."""
    if validation is None:
        return groups, ()
    clips = table.column("clip").to_pylist()
    kept: Groups = {}
    apart: list[list[int]] = []
    for name, (of_table, rows) in groups.items():
        mine = [row for row in rows if is_held_out(clips[row], validation.share)]
        rest = [row for row in rows if not is_held_out(clips[row], validation.share)]
        apart.append(mine)
        if rest:
            kept[name] = (of_table, rest)
    in_turn = [row for layer in zip_longest(*apart) for row in layer if row is not None]
    return kept, tuple(in_turn[: validation.max_samples])


def _train_groups(table: Any, task: TrainTask, config: StageConfig) -> Groups:
    clips = table.column("clip").to_pylist()
    encoded = table.column("row").to_pylist()
    buckets = _bucket_names(table, task, config.text_encoder.max_tokens)
    chosen = _chosen_rows(clips, encoded, task.buckets, config.seed)
    by_name = {row_name(row): row for row in task.buckets}
    groups: Groups = {}
    for number in _by_uid(table):
        if encoded[number] in chosen.get(clips[number], ()):
            row = by_name[encoded[number]]
            # Two rows may share a shape (a long clip's rest); they only share a bucket if they share a batch size.
            name = _distinct(groups, buckets[number], row)
            groups.setdefault(name, (row, []))[1].append(number)
    return dict(sorted(groups.items()))


def _bucket_names(table: Any, task: TrainTask, longest: int) -> list[str]:
    """What each sample's tensors are shaped by: size, frames and aspect, and the length class of text if it has one."""
    names: list[str] = table.column("bucket").to_pylist()
    if task.attend_padding:
        return names
    tokens = table.column("text_tokens").to_pylist()
    return [f"{name}/{text_class(count, longest)}t" for name, count in zip(names, tokens, strict=True)]


def _distinct(groups: Groups, name: str, row: Bucket) -> str:
    same = name not in groups or groups[name][0].batch_size == row.batch_size
    return name if same else f"{name} x{row.batch_size}"


def _chosen_rows(
    clips: Iterable[str], encoded: Iterable[str], rows: Sequence[Bucket], seed: int
) -> dict[str, set[str]]:
    """For every clip the rows that it is trained in: one for video, and the image rows whose draw it wins."""
    present: defaultdict[str, set[str]] = defaultdict(set)
    for clip, row in zip(clips, encoded, strict=True):
        present[clip].add(row)
    images = [row for row in rows if row.frames == 1]
    chosen: dict[str, set[str]] = {}
    for clip, names in present.items():
        video = assign(clip, names, rows, seed)
        chosen[clip] = {row_name(row) for row in images if row_name(row) in names and keeps(row, seed, clip)}
        chosen[clip] |= {row_name(video)} if video else set()
    return chosen


def _clip_groups(table: Any, row: Bucket, grid: int) -> Groups:
    names = aspect_names(row, grid)
    groups: Groups = {}
    clips = table.to_pylist()
    for number in _by_uid(table):
        clip = clips[number]
        if _usable_frames(clip) >= row.frames:
            name = bucket_name(row.resolution, row.frames, nearest_aspect(clip["height"], clip["width"], names))
            groups.setdefault(name, (row, []))[1].append(number)
    return dict(sorted(groups.items()))


def _clip_shapes(row: Bucket, grid: int, groups: Groups) -> dict[str, tuple[int, int]]:
    from videotrain_api.config.aspect import shapes

    table = shapes(row.resolution, grid, row.aspect_ratios)
    return {name: table[name.rsplit("/", 1)[1]] for name in groups}


def _usable_frames(clip: dict[str, Any]) -> int:
    return int(clip["frames"]) // frame_stride(clip["fps"])[0]


def _by_uid(table: Any) -> list[int]:
    return list(pc.sort_indices(table.column("uid")).to_pylist()) if table.num_rows else []


def _plan(table: Any, groups: Groups, seed: int, parallel: ParallelLayout) -> OrderPlan:
    used = sorted(number for _, rows in groups.values() for number in rows)
    uids = table.column("uid").take(pa.array(used, pa.int64())).to_pylist()
    order = tuple(
        OrderBucket(name, len(rows), row.batch_size, micro_batches=row.micro_batches)
        for name, (row, rows) in groups.items()
    )
    return OrderPlan(order, seed, parallel.micro_batches_per_step, uids_hash(uids))


def _degrees(groups: Groups, parallel: ParallelLayout) -> tuple[int, ...]:
    return tuple(parallel.degree_of(row) for row, _ in groups.values())


def _check_info(info: EncodedSetInfo, config: StageConfig, task: TrainTask) -> None:
    uri = config.paths.latents
    expected = {
        "latent_channels": (info.latent_channels, config.autoencoder.latent_channels),
        "spatial_compression": (info.spatial_compression, config.autoencoder.spatial_compression),
        "context_dim": (info.context_dim, config.text_encoder.context_dim),
        "pooled_dim": (info.pooled_dim, config.text_encoder.pooled_dim),
    }
    if config.text_encoder.kind == "t5-clip":
        expected["trim_padding"] = (info.trim_padding, config.text_encoder.trim_padding)
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise DataError(f"{uri}: was encoded with {name} {found}, this run has {wanted}; encode it again")
    videos = [kind for kind in task.conditioning.kinds if kind.startswith("v2v")]
    if config.autoencoder.causal and set(videos) - set(info.references):
        raise DataError(
            f"{uri}: has separately encoded frames for {info.references}, train.conditioning of stage "
            f"{config.stage.name!r} needs {videos}; encode it again in a run with this stage"
        )
    if task.prompt_style not in info.prompts:
        raise DataError(
            f"{uri}: has text features for prompt styles {list(info.prompts)}, stage {config.stage.name!r} needs "
            f"{task.prompt_style!r}; change train.motionScore and train.fpsInPrompt or encode it again"
        )


def _nothing_left(config: StageConfig, table: Any, chosen: Any, info: EncodedSetInfo) -> str:
    task = config.stage.train
    wanted = [row_name(row) for row in task.buckets] if task else []
    return (
        f"{config.paths.latents}: no sample is left for stage {config.stage.name!r}: {table.num_rows} encoded, "
        f"{chosen.num_rows} after train.select; the stage's buckets are {wanted}, the set was encoded for {info.rows}"
    )
