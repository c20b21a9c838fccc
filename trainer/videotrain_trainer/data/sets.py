"""From a stored data set to what a stage trains on: rows selected, clips assigned to buckets, the order planned."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from videotrain_api.config.aspect import shapes
from videotrain_api.config.stage_config import LatentReader, StageConfig
from videotrain_api.resource.stages import Bucket, ConditionKind, ParallelLayout, PromptStyle, TrainTask
from videotrain_api.resource.trainrun import Dataset
from videotrain_api.schema import ApiModel
from videotrain_api.storage import layout
from videotrain_trainer.checksums import read_checked, unsealed_json
from videotrain_trainer.data.buckets import aspect_names, bucket_name, frame_stride, nearest_aspect, row_name
from videotrain_trainer.data.checked_file import Column
from videotrain_trainer.data.index_writer import made_in_memory, read_catalogue, source_names, write_index
from videotrain_trainer.data.manifest import CLIP_SCHEMA, kept_clips, read_table
from videotrain_trainer.data.sample_index import (
    SampleIndex,
    index_in_memory,
    open_index,
    sample_digests,
)
from videotrain_trainer.data.sample_order import OrderBucket, OrderPhase, OrderPlan
from videotrain_trainer.data.stage_samples import Group, HeldOut, StageSamples, stage_samples
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.node_cache import NodeCache, locked
from videotrain_trainer.storage import ObjectStore

ONLY_SOURCE: Final = "data"
"""Name of the source of a dataset that names none, in an order that has to have one."""
log = logging.getLogger(__name__)


class EncodedSetInfo(ApiModel):
    """set.json: how the samples of an encoded set were made, so that a stage that needs others says so."""

    version: int = 1
    samples: int
    manifest_hash: str
    """manifest.uids_hash of the set."""
    rows: list[str]
    """Names of the bucket rows that were encoded."""
    sources: list[str] = Field(default_factory=list)
    """Names of the dataset.sources that its clips came from; with them the `source` of each begins."""
    readers: list[LatentReader] = Field(default_factory=list)
    """The stages that the set was made for: it has the samples that they take, and no others."""
    prompts: list[PromptStyle]
    """Prompt styles with text features."""
    captions: list[PromptStyle] = Field(default_factory=list)
    """Prompt styles with captions, for stages that encode them themselves."""
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
class TrainingSet(ABC):
    """Samples of one stage, grouped into buckets, and their order."""

    uri: str
    """Prefix of the stored set."""
    plan: OrderPlan
    degrees: tuple[int, ...]
    """For every bucket of the plan, ranks that share a sample."""

    @abstractmethod
    def uid(self, bucket: int, index: int) -> str:
        """Name of the sample that element `index` of a bucket of the plan is."""


@dataclass(frozen=True)
class LatentSet(TrainingSet):
    """Encoded samples of a train stage; `uri` is the first of several sets."""

    groups: tuple[tuple[Group, ...], ...]
    """For every bucket of the plan, its rows of sample indexes, those of one source behind those of another."""
    prompt_style: PromptStyle
    context_length: int
    """Text features are padded with zeros to so many tokens, the longest that the encoder allows."""
    attend_padding: bool
    """All of them, or only to the length class of the caption."""
    latent_channels: int
    held_out: tuple[HeldOut, ...] = ()
    """What validation uses and training does not."""

    def uid(self, bucket: int, index: int) -> str:
        """Name of a sample."""
        group, number = self.find(bucket, index)
        return group.bucket.uid(number)

    def find(self, bucket: int, index: int) -> tuple[Group, int]:
        """The group of a sample, and its row of the group's index."""
        for group in self.groups[bucket]:
            if index < group.size:
                return group, group.number(index)
            index -= group.size
        raise IndexError(f"bucket {self.plan.buckets[bucket].name}: {index} behind its last sample")


@dataclass(frozen=True)
class ClipSet(TrainingSet):
    """Curated clips of an autoencoder stage."""

    table: Any
    """pyarrow.Table of the manifest."""
    members: tuple[Column, ...]
    """For every bucket of the plan, row numbers of the table."""
    shapes: dict[str, tuple[int, int]]
    """(height, width) in pixels by bucket name."""
    frames: int
    """Frames of a sample."""

    def uid(self, bucket: int, index: int) -> str:
        """Name of a clip."""
        uid: str = self.table.column("uid")[self.members[bucket][index]].as_py()
        return uid

    def row(self, bucket: int, index: int) -> dict[str, Any]:
        """Manifest row of a clip."""
        number = self.members[bucket][index]
        return {name: self.table.column(name)[number].as_py() for name in self.table.column_names}


def open_latents(store: ObjectStore, config: StageConfig, cache: NodeCache | None = None) -> LatentSet:
    """The samples of a train stage and their order.

    Args:
        store: object store.
        config: of the stage.
        cache: of this node, where the sample index is kept; in memory if None.

    Raises:
        DataError: the set is missing, lacks what the stage needs, or nothing is left after selection.
    """
    task, first = config.stage.train, config.paths.latents
    if task is None or first is None:
        raise DataError(f"stage {config.stage.name!r}: paths.latents is not set or the stage does not train")
    sources = order_sources(config)
    encoded = {source.name: source.uri for source in config.dataset.sources if source.form == "latents"}
    opened = [open_set(store, config, task, uri, cache)[1] for uri in encoded.values() or [first]]
    groups = [group for samples in opened for group in samples.groups]
    if not groups:
        raise DataError(f"dataset.sources: stage {config.stage.name!r} takes no sample of any of {', '.join(encoded)}")
    if sources and len(config.dataset.raw) < 2:
        named = zip(encoded or sources, opened, strict=True)
        groups = [replace(group, source=name) for name, samples in named for group in samples.groups]
    in_turn = zip_longest(*(samples.held_out for samples in opened))
    held_out = [sample for layer in in_turn for sample in layer if sample is not None]
    if task.validation and not held_out:
        raise DataError(
            f"{first}: none of the stage's clips falls into the held-out share; raise train.validation.share from "
            f"{task.validation.share} or leave train.validation out"
        )
    buckets = _buckets_of(groups, sources)
    digest = sum(group.digest for group in groups) % 2**64
    return LatentSet(
        uri=first,
        plan=_plan(order_buckets(buckets, sources), config, task.parallel, digest),
        degrees=tuple(task.parallel.degree_of(mine[0].row) for mine in buckets.values()),
        groups=tuple(map(tuple, buckets.values())),
        prompt_style=task.prompt_style,
        context_length=config.text_encoder.max_tokens,
        attend_padding=task.attend_padding,
        latent_channels=config.autoencoder.latent_channels or 0,
        held_out=tuple(held_out[: task.validation.max_samples] if task.validation else ()),
    )


def weighed_sources(dataset: Dataset) -> list[str]:
    """Names of the sources that samples are told apart by; none if there is only one."""
    return [source.name for source in dataset.sources] if len(dataset.sources) > 1 else []


def order_sources(config: StageConfig) -> list[str]:
    """Names of the sources of a stage's order. A stage that takes in appended sets has at least one."""
    named, task = weighed_sources(config.dataset), config.stage.train
    if named or task is None or task.appended_every_steps is None:
        return named
    return [source.name for source in config.dataset.sources] or [ONLY_SOURCE]


def open_set(
    store: ObjectStore, config: StageConfig, task: TrainTask, uri: str, cache: NodeCache | None
) -> tuple[SampleIndex, StageSamples]:
    """An encoded set, and what a stage takes of it; samples of several raw sources are told apart.

    Raises:
        DataError: it is missing, does not fit the stage, or is the only one and nothing of it is left.
    """
    info = read_set_info(store, uri)
    check_info(info, uri, config, task)
    index = sample_index(store, uri, cache)
    volume, longest = cache.volume if cache else None, config.text_encoder.max_tokens
    by_source = len(config.dataset.raw) > 1
    samples = stage_samples(index, task, config.seed, longest, volume, by_source)
    if not samples.groups and uri == config.paths.latents and len(config.dataset.encoded) < 2:
        raise DataError(_nothing_left(config, index, samples, info))
    index.fetch_ahead({group.bucket.info.bucket: group.bucket for group in samples.groups}.values())
    return index, samples


def _buckets_of(groups: Sequence[Group], sources: Sequence[str]) -> dict[str, list[Group]]:
    """Groups by the name of their bucket of the order, in order of sources; buckets sorted by name."""
    found: dict[str, list[Group]] = {}
    place = {source: number for number, source in enumerate(sources)}
    for group in sorted(groups, key=lambda group: (group.name, place.get(group.source or "", 0))):
        name, batch = group.name, group.row.batch_size
        if name in found and found[name][0].row.batch_size != batch:
            # Another set has samples of another batch size under this name.
            name = f"{name.partition(' x')[0]} x{batch}"
        found.setdefault(name, []).append(group)
    # A group that was renamed may have come before one of a source that stands before its own.
    return {name: sorted(found[name], key=lambda group: place.get(group.source or "", 0)) for name in sorted(found)}


def order_buckets(buckets: Mapping[str, Sequence[Group]], sources: Sequence[str]) -> tuple[OrderBucket, ...]:
    """Buckets of an order.

    Args:
        buckets: by name, with groups of one batch size each.
        sources: that samples are told apart by.
    """
    return tuple(
        OrderBucket(
            name,
            sum(group.size for group in mine),
            mine[0].row.batch_size,
            mine[0].row.micro_batches,
            tuple(sum(group.size for group in mine if group.source == source) for source in sources),
        )
        for name, mine in buckets.items()
    )


def sample_index(store: ObjectStore, uri: str, cache: NodeCache | None) -> SampleIndex:
    """The index of an encoded set, made from its catalogue if it has none: once per node, for the set may not be ours.

    Args:
        store: object store.
        uri: prefix of the set.
        cache: of this node; without one, what is made is held in memory.

    Raises:
        DataError: the set has neither index nor catalogue.
    """
    try:
        return open_index(store, uri, cache)
    except ObjectMissing:
        log.warning(
            "%s has no sample index: it is made of the catalogue, on every node, which takes a minute for some "
            "millions of samples; `videotrain-trainer index %s` writes it once and for all",
            uri,
            uri,
        )
    if cache is None:
        sources = read_set_info(store, uri).sources
        return index_in_memory(uri, *made_in_memory(read_catalogue(store, uri, sources), sources))
    try:
        found = store.stat(layout.latent_manifest(uri))
    except ObjectMissing as error:
        raise DataError(
            f"{uri}: neither {layout.sample_index(uri)} nor {layout.latent_manifest(uri)} is there"
        ) from error
    folder = cache.volume / "indexes" / sha256(f"{found.uri} {found.etag} {found.size}".encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not store.exists(layout.sample_index(folder.as_uri())):
            sources = read_set_info(store, uri).sources
            write_index(store, folder.as_uri(), read_catalogue(store, uri, sources), None, sources)
    return open_index(store, folder.as_uri(), None, samples=uri)


def open_clips(store: ObjectStore, config: StageConfig) -> ClipSet:
    """The clips of an autoencoder stage and their order: one bucket per shape, square unless the row lists shapes.

    Raises:
        DataError: the set is missing or holds no clip of at least the row's shortest length.
    """
    task, uri = config.stage.autoencoder, config.paths.clips
    if task is None or uri is None:
        raise DataError(f"stage {config.stage.name!r}: paths.clips is not set or it is no autoencoder stage")
    table = kept_clips(read_table(store, layout.clip_manifest(uri), CLIP_SCHEMA))
    row = task.bucket.model_copy(update={"aspect_ratios": task.bucket.aspect_ratios or ["1:1"]})
    members, frames = _clips_by_bucket(table, row, config.autoencoder.spatial_compression)
    if not members:
        raise DataError(
            f"{uri}: none of its {table.num_rows} clips has {row.frames} frames (the longest has "
            f"{int(frames.max(initial=0))} at up to 24 fps); lower "
            f"spec.stages[{config.stage.name}].autoencoder.bucket.frames"
        )
    members, parts = _by_source(table, members, weighed_sources(config.dataset))
    order = [
        OrderBucket(name, len(numbers), row.batch_size, row.micro_batches, parts[name])
        for name, numbers in members.items()
    ]
    used = table.column("uid").take(pa.array(np.sort(np.concatenate([*members.values()]))))
    digest = int(sample_digests(np.array([uid.encode() for uid in used.to_pylist()]), None, None).sum())
    table_of_shapes = shapes(row.resolution, config.autoencoder.spatial_compression, row.aspect_ratios)
    return ClipSet(
        uri=uri,
        table=table,
        members=tuple(members.values()),
        plan=_plan(order, config, task.parallel, digest),
        degrees=tuple(task.parallel.degree_of(row) for _ in members),
        shapes={name: table_of_shapes[name.rsplit("/", 1)[1]] for name in members},
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


def _clips_by_bucket(table: Any, row: Bucket, grid: int) -> tuple[dict[str, Column], Column]:
    """Row numbers of the clips of each bucket in order of uid, buckets by name; and frames of all clips, thinned."""
    names = aspect_names(row, grid)
    rates, of_rate = np.unique(table.column("fps").to_numpy(), return_inverse=True)
    strides = np.array([frame_stride(float(rate))[0] for rate in rates], np.int64)
    frames = table.column("frames").to_numpy() // strides[of_rate] if len(of_rate) else np.empty(0, np.int64)
    sizes = np.stack([table.column("height").to_numpy(), table.column("width").to_numpy()], axis=1)
    distinct, of_size = np.unique(sizes, axis=0, return_inverse=True)
    aspects = [nearest_aspect(int(height), int(width), names) for height, width in distinct]
    by_uid = pc.sort_indices(table.column("uid")).to_numpy() if table.num_rows else np.empty(0, np.int64)
    long_enough = by_uid[frames[by_uid] >= row.frames]
    found: dict[str, Column] = {}
    for aspect in sorted(set(aspects)):
        mine = long_enough[
            np.isin(of_size.reshape(-1)[long_enough], [n for n, name in enumerate(aspects) if name == aspect])
        ]
        if len(mine):
            found[bucket_name(row.resolution, row.frames, aspect)] = mine
    return dict(sorted(found.items())), frames


def _by_source(
    table: Any, members: dict[str, Column], sources: Sequence[str]
) -> tuple[dict[str, Column], dict[str, tuple[int, ...]]]:
    """Row numbers of the clips of each bucket by source, those of one in order of uid; and how many each has."""
    if not sources:
        return members, dict.fromkeys(members, ())
    names = source_names(table.column("source"), sources)
    places = pc.index_in(names, value_set=pa.array(sources, pa.large_string())).to_numpy()
    ordered = {name: mine[np.argsort(places[mine], kind="stable")] for name, mine in members.items()}
    counts = {name: np.bincount(places[mine], minlength=len(sources)).tolist() for name, mine in members.items()}
    return ordered, {name: tuple(of_bucket) for name, of_bucket in counts.items()}


def _plan(order: Sequence[OrderBucket], config: StageConfig, parallel: ParallelLayout, digest: int) -> OrderPlan:
    sources = order_sources(config)
    totals = [sum(bucket.parts[number] for bucket in order) for number in range(len(sources))]
    phases = _phases(config, totals) if sources else []
    for number, name in enumerate(sources):
        if not totals[number] and any(phase.weights[number] for phase in phases):
            raise DataError(
                f"spec.dataset.sources: stage {config.stage.name!r} finds no sample in source {name!r}, which has a "
                "weight; remove the source, give it weight 0 in train.sourceWeights, or loosen buckets and select"
            )
    return OrderPlan(
        tuple(order), config.seed, parallel.micro_batches_per_step, f"{digest:016x}", tuple(sources), tuple(phases)
    )


def _phases(config: StageConfig, totals: Sequence[int]) -> list[OrderPhase]:
    """Weights of the stage's sources; those without are as many as each has samples."""
    return [
        OrderPhase(
            tuple(
                float(total) if weight is None else weight for weight, total in zip(piece.weights, totals, strict=True)
            ),
            piece.until_step,
        )
        for piece in weight_pieces(config)
    ]


class WeightPiece(NamedTuple):
    """Weights for some steps."""

    weights: tuple[float | None, ...]
    """Of the sources of the stage's order; None for as many as it has samples."""
    until_step: int | None


def weight_pieces(config: StageConfig) -> list[WeightPiece]:
    """Weights of the sources of a stage's order: its own, else those of the sources."""
    sources, train = config.dataset.sources, config.stage.train
    if train and train.source_weights:
        return [
            WeightPiece(tuple(piece.weights[source.name] for source in sources), piece.until_step)
            for piece in train.source_weights
        ]
    return [WeightPiece(tuple(source.weight for source in sources) or (None,), None)]


def check_info(info: EncodedSetInfo, uri: str, config: StageConfig, task: TrainTask) -> None:
    """Refuse an encoded set that a stage cannot train on.

    Raises:
        DataError: it was made for another model, or lacks prompts or references that the stage needs.
    """
    raw = list(config.dataset.raw) if len(config.dataset.raw) > 1 else []
    if raw and info.sources != raw:
        raise DataError(f"{uri}: was made of sources {info.sources}, this run has {raw}; encode it again")
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
    what, styles = ("captions", info.captions) if task.text == "online" else ("text features", info.prompts)
    if task.prompt_style not in styles:
        raise DataError(
            f"{uri}: has text features for prompt styles {info.prompts} and captions for {info.captions}, stage "
            f"{config.stage.name!r} needs {what} for {task.prompt_style!r}; change train.text, train.motionScore and "
            "train.fpsInPrompt or encode it again"
        )


def _nothing_left(config: StageConfig, index: SampleIndex, samples: StageSamples, info: EncodedSetInfo) -> str:
    task = config.stage.train
    wanted = [row_name(row) for row in task.buckets] if task else []
    return (
        f"{config.paths.latents}: no sample is left for stage {config.stage.name!r}: {index.samples} encoded, "
        f"{samples.selected} after train.select; the stage's buckets are {wanted}, the set was encoded for {info.rows}"
    )
