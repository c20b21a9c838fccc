"""The encode stage: clips and captions to latents and text features in tar shards, with a Parquet manifest.

A unit is one shard, so a restarted stage of any world size goes on where it was; rank 0 writes the manifest.

Shapes: B batch (1), C channels, T frames, H height, W width, L text tokens, D text width, P pooled width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import Any

import google_crc32c
import pyarrow as pa
import torch
from torch import Tensor

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.references import applicable, reference_frames, takes_head
from videotrain_api.resource.stages import PromptStyle
from videotrain_api.storage import layout
from videotrain_trainer.checksums import read_again, read_checked, sealed_json
from videotrain_trainer.data.index_writer import write_index
from videotrain_trainer.data.loader import REFERENCE
from videotrain_trainer.data.manifest import (
    CLIP_SCHEMA,
    LATENT_SCHEMA,
    SCORES,
    kept_clips,
    read_table,
    to_parquet,
    uids_hash,
)
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.prompts import caption_text
from videotrain_trainer.data.sets import EncodedSetInfo, null_text_uri, set_info_uri
from videotrain_trainer.data.shards import Member, ShardWriter
from videotrain_trainer.data.video import Frame, read_covering
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing
from videotrain_trainer.networks.build import load_autoencoder
from videotrain_trainer.networks.latents import encode_latents
from videotrain_trainer.networks.weights import Weights, autoencoder_uri, open_weights, weights_bytes
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.tasks.encode_plan import Sample, ShardPlan, plan_samples, plan_shards, why_nothing
from videotrain_trainer.text.encoders import TextEncoder, load_text_encoder
from videotrain_trainer.worker.shared_work import JSON, Tick, Unit, UnitRun
from videotrain_trainer.worker.stage_context import Outcome, StageContext

CENTRE = (0.5, 0.5)


def run(context: StageContext) -> Outcome:
    """Encode the curated clips for the buckets of all stages to come.

    Raises:
        DataError: the curated set is missing or damaged, or no clip fits a bucket.
    """
    config = context.config
    _check(config)
    store = ObjectStore.for_storage(config.storage)
    store.check()
    uri = _weights_uri(config)
    if uri.endswith(".safetensors"):
        # A result that is not there is an input that is missing, not a wrong configuration.
        read_again(store, lambda source: source.stat(uri), (ObjectMissing,))
    weights = open_weights(uri, store=store)
    shards = _plan(store, config)
    recipe = [config.autoencoder.to_wire(), config.text_encoder.to_wire(), config.encode_prompts]
    made_from = _made_from(weights, json.dumps([*recipe, config.encode_references]))
    plans = {shard.name(made_from): shard for shard in shards}
    board = UnitRun(context, store, [Unit(name, len(shard.samples)) for name, shard in plans.items()], JSON)
    encoder = _Encoder(context, store, weights)
    try:
        finished = board.run(lambda unit, tick: encoder.encode_shard(plans[unit.name], tick))
        if finished and context.world.rank == 0:
            store.put(null_text_uri(config.paths.output), weights_bytes(encoder.null_text()))
            _publish(store, config, list(board.results()))
    finally:
        encoder.close()
    return "completed" if finished and board.wait_for(layout.latent_manifest(config.paths.output)) else "drained"


class _Encoder:
    """Encodes the shards of one rank."""

    def __init__(self, context: StageContext, store: ObjectStore, weights: Weights) -> None:
        config, self._device = context.config, context.world.device
        self._config = config
        self._store = store
        self._scratch = context.scratch / "encode"
        # Full precision on the CPU, where bfloat16 is slower; the latents are stored in bfloat16 in any case.
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._autoencoder = load_autoencoder(config.autoencoder, weights)
        self._autoencoder.eval().requires_grad_(False).to(self._device, self._dtype)
        self._text: TextEncoder = load_text_encoder(config.text_encoder, store, context.cache, self._device)
        self._decoded: tuple[tuple[str, tuple[int, int]], Frame] | None = None

    def encode_shard(self, plan: ShardPlan, tick: Tick) -> dict[str, Any]:
        """Encode and store one shard; returns its manifest rows."""
        with disk_full_is_clear(self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
        path, rows = self._scratch / "shard.tar", []
        with ShardWriter(path) as writer:
            for number, sample in enumerate(plan.samples, start=1):
                tensors = self._tensors(sample)
                rows.append(_row(sample, writer.add(sample.uid, tensors), tensors, self._text_tokens(sample)))
                tick(number)
        name = f"shards/{writer.object_name(plan.bucket, plan.number)}"
        self._store.put(f"{self._config.paths.output}/{name}", path)
        path.unlink()
        return {"rows": [{**row, "shard": name} for row in rows]}

    def null_text(self) -> dict[str, Tensor]:
        """Features of the empty caption, for text dropout; so training needs no text encoder."""
        features = self._text.encode([""])
        return {"context": features.context_BLD[0, : features.lengths[0]].contiguous(), "pooled": features.pooled_BP[0]}

    def close(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    @torch.inference_mode()
    def _tensors(self, sample: Sample) -> dict[str, Tensor]:
        pixels_CTHW = crop_window(self._frames(sample), sample.window, sample.shape, CENTRE)
        x_BCTHW = pixels_CTHW[None].to(self._device, self._dtype)
        tensors = {
            "latent": self._latent(x_BCTHW, f"{sample.uid}/latent"),
            "cond_first": self._latent(x_BCTHW[:, :, :1], f"{sample.uid}/cond_first"),
            "cond_last": self._latent(x_BCTHW[:, :, -1:], f"{sample.uid}/cond_last"),
        }
        for style in self._config.encode_prompts:
            tensors |= self._text_features(sample, style)
        return tensors | self._video_references(x_BCTHW, sample.uid)

    def _video_references(self, x_BCTHW: Tensor, uid: str) -> dict[str, Tensor]:
        """Frames of the v2v kinds, encoded by themselves; an autoencoder that is not causal has them in the latent."""
        time, frames = self._config.autoencoder.time, x_BCTHW.shape[2]
        found = {}
        for kind in self._config.encode_references if time.causal else []:
            if applicable(kind, time.latent_frames(frames), causal=True):
                count = reference_frames(kind, time)
                part = x_BCTHW[:, :, :count] if takes_head(kind) else x_BCTHW[:, :, -count:]
                found[f"{REFERENCE}{kind}"] = self._latent(part, f"{uid}/{kind}")
        return found

    def _latent(self, x_BCTHW: Tensor, name: str) -> Tensor:
        config = self._config
        latent_CTHW = encode_latents(self._autoencoder, config.autoencoder.posterior, x_BCTHW, config.seed, name)[0]
        if not torch.isfinite(latent_CTHW).all():
            raise DataError(f"{_weights_uri(self._config)}: the autoencoder gives values that are not finite")
        return latent_CTHW.to("cpu", torch.bfloat16)

    def _text_tokens(self, sample: Sample) -> int:
        """Of the caption in the longest of its styles, padding not counted."""
        return max(self._text.count(_text_of(sample, style)) for style in self._config.encode_prompts)

    def _text_features(self, sample: Sample, style: PromptStyle) -> dict[str, Tensor]:
        features = self._text.encode([_text_of(sample, style)])
        context_LD = features.context_BLD[0, : features.lengths[0]]
        return {
            f"context.{style}": context_LD.to("cpu", torch.bfloat16),
            f"pooled.{style}": features.pooled_BP[0].to("cpu", torch.bfloat16),
        }

    def _frames(self, sample: Sample) -> Frame:
        """Covering frames of the sample's clip; the windows of a clip follow each other, so the last one is kept."""
        key = (str(sample.clip["uid"]), sample.shape)
        if self._decoded is None or self._decoded[0] != key:
            uri = f"{self._config.paths.clips}/{sample.clip['uri']}"

            def whole(data: bytes) -> bytes:
                if google_crc32c.value(data) != sample.clip["crc32c"]:
                    raise ValueError("the clip does not fit its checksum in the manifest")
                return data

            data = read_checked(self._store, uri, whole, remedy="curate again")
            self._decoded = key, read_covering(data, sample.shape)
        return self._decoded[1]


def _check(config: StageConfig) -> None:
    if config.stage.encode is None or config.paths.clips is None or config.paths.autoencoder_weights is None:
        raise ConfigError(
            f"stage {config.stage.name!r}: encode, paths.clips and paths.autoencoderWeights must be set; "
            "the stage needs a curated set and an autoencoder"
        )
    if not config.encode_buckets or not config.encode_prompts:
        raise ConfigError(f"stage {config.stage.name!r}: encodeBuckets is empty; no later train stage reads it")


def _plan(store: ObjectStore, config: StageConfig) -> list[ShardPlan]:
    assert config.stage.encode is not None
    table = kept_clips(read_table(store, layout.clip_manifest(str(config.paths.clips)), CLIP_SCHEMA))
    clips = table.to_pylist()
    grid = config.autoencoder.spatial_compression * (config.model.patch_size or 1)
    samples = plan_samples(clips, config.encode_buckets, grid, config.autoencoder.temporal_compression)
    if not samples:
        raise DataError(
            f"{config.paths.clips}: none of {len(clips)} clips fits a bucket of the train stages: "
            f"{why_nothing(clips, config.encode_buckets)}"
        )
    text = config.text_encoder
    longest = max(len(sample.clip["caption"].encode()) for sample in samples) + 40
    tokens = min(text.max_tokens, longest) if text.kind == "bytes" or text.trim_padding else text.max_tokens
    per_style = tokens * text.context_dim * 2
    return plan_shards(samples, per_style * len(config.encode_prompts), config.stage.encode.shard_bytes)


def _weights_uri(config: StageConfig) -> str:
    return autoencoder_uri(config.autoencoder.kind, str(config.paths.autoencoder_weights))


def _made_from(weights: Weights, recipe: str) -> str:
    """Hash of the autoencoder's files and of how they are used, on which every latent depends."""
    digest = hashlib.sha256()
    for part in weights.contents():
        digest.update(part)
    digest.update(recipe.encode())
    return digest.hexdigest()


def _text_of(sample: Sample, style: PromptStyle) -> str:
    return caption_text(sample.clip["caption"], style, *sample.rate_and_motion)


def _row(sample: Sample, member: Member, tensors: dict[str, Tensor], text_tokens: int) -> dict[str, Any]:
    frames, height, width = tensors["latent"].shape[1:]
    return {
        "uid": sample.uid,
        "clip": sample.clip["uid"],
        "row": sample.row,
        "bucket": sample.bucket,
        "offset": member.offset,
        "length": member.length,
        "crc32c": member.crc32c,
        "latent_frames": frames,
        "latent_height": height,
        "latent_width": width,
        "frames": sample.window.frames,
        "start": sample.window.start,
        "fps": sample.fps,
        "caption": sample.clip["caption"],
        "source": sample.clip["source"],
        "text_tokens": text_tokens,
        **{name: sample.clip[name] for name in SCORES},
    }


def _publish(store: ObjectStore, config: StageConfig, results: list[dict[str, Any]]) -> None:
    """Description and index first, the catalogue last, by which the other ranks know that the set is there."""
    rows = [row for result in results for row in result["rows"]]
    info = EncodedSetInfo(
        samples=len(rows),
        manifest_hash=uids_hash(row["uid"] for row in rows),
        rows=sorted({row["row"] for row in rows}),
        prompts=config.encode_prompts,
        latent_channels=config.autoencoder.latent_channels or 0,
        spatial_compression=config.autoencoder.spatial_compression,
        context_dim=config.text_encoder.context_dim,
        pooled_dim=config.text_encoder.pooled_dim,
        text_encoder=config.text_encoder.kind,
        trim_padding=config.text_encoder.trim_padding,
        references=config.encode_references if config.autoencoder.causal else [],
        autoencoder_weights=_weights_uri(config),
    )
    store.put(set_info_uri(config.paths.output), sealed_json(info.to_wire()))
    catalogue = to_parquet(rows, LATENT_SCHEMA)
    write_index(store, config.paths.output, pa.Table.from_pylist(rows, LATENT_SCHEMA), len(catalogue))
    store.put(layout.latent_manifest(config.paths.output), catalogue)
