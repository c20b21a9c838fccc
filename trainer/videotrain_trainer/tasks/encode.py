"""The encode stage: clips and captions to latents and text features in tar shards, with a catalogue and an index.

A unit is a range of clips, so a restarted stage of any world size goes on where it was. Its result is a table of its
samples; ranks put tables together into parts, and rank 0 makes the set of these.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from videotrain_api.config.stage_config import StageConfig
from videotrain_trainer.checksums import read_again
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.index_writer import CATALOGUE_SCHEMA, CLIP_ROWS
from videotrain_trainer.data.manifest import SCORES
from videotrain_trainer.data.shards import Member, ShardWriter
from videotrain_trainer.errors import ConfigError, ObjectMissing
from videotrain_trainer.networks.weights import Weights, open_weights
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.tasks.encode_clips import ClipEncoder, Encoded, weights_uri
from videotrain_trainer.tasks.encode_merge import Merge
from videotrain_trainer.tasks.encode_plan import ENCODING_VERSION, MOST_CLIPS, ClipUnits, EncodePlan, number_of
from videotrain_trainer.worker.shared_work import Tick, Unit, UnitRun
from videotrain_trainer.worker.stage_context import Outcome, StageContext


def run(context: StageContext) -> Outcome:
    """Encode the curated clips for all stages that read the set.

    Raises:
        DataError: the curated set is missing or damaged, or no clip fits a bucket.
    """
    config = context.config
    plan = _plan(config)
    store = ObjectStore.for_storage(config.storage)
    store.check()
    uri = weights_uri(config)
    if uri.endswith(".safetensors"):
        # A result that is not there is an input that is missing, not a wrong configuration.
        read_again(store, lambda source: source.stat(uri), (ObjectMissing,))
    weights = open_weights(uri, store=store)
    table = ClipTable(store, str(config.paths.clips))
    units = ClipUnits(len(table), _clips_of_unit(config, plan), _made_from(config, table, weights))
    board = UnitRun(context, store, units)
    encoder = ClipEncoder(config, plan, store, weights, context.world.device, context.cache)
    rank = EncodeRank(config, store, table, units, encoder, context.scratch / "encode")
    try:
        if not board.run(rank.encode, ahead=rank.announce):
            return "drained"
        return "completed" if Merge(context, store, board, units, plan).run(table, encoder) else "drained"
    finally:
        rank.close()


class EncodeRank:
    """Does the units of one process."""

    def __init__(
        self,
        config: StageConfig,
        store: ObjectStore,
        table: ClipTable,
        units: ClipUnits,
        encoder: ClipEncoder,
        scratch: Path,
    ) -> None:
        self._store, self._table, self._units, self._encoder = store, table, units, encoder
        self._output, self._scratch = config.paths.output, scratch
        assert config.stage.encode is not None
        self._shard_bytes = config.stage.encode.shard_bytes

    def announce(self, unit: Unit) -> None:
        """Begin to decode a unit's clips."""
        self._encoder.announce(self._table.clips(self._units.numbers(number_of(unit))))

    def encode(self, unit: Unit, tick: Tick) -> Any:
        """Encode and store a unit that was announced; returns its rows of the catalogue, a pyarrow.Table."""
        with disk_full_is_clear(self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        shard: list[Encoded] = []
        for encoded in self._encoder.samples(unit.weight, tick):
            shard.append(encoded)
            if sum(one.bytes for one in shard) >= self._shard_bytes:
                rows += self._store_shard(number_of(unit), shard)
                shard = []
        rows += self._store_shard(number_of(unit), shard)
        return pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["uid"])), schema=CATALOGUE_SCHEMA)

    def close(self) -> None:
        """End the decoders and remove temporary files."""
        self._encoder.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _store_shard(self, unit: int, encoded: list[Encoded]) -> list[dict[str, Any]]:
        if not encoded:
            return []
        path = self._scratch / "shard.tar"
        with ShardWriter(path) as writer:
            members = [writer.add(one.sample.uid, one.tensors) for one in encoded]
        name = f"shards/{writer.object_name('clips', unit)}"
        self._store.put(f"{self._output}/{name}", path)
        path.unlink()
        return [{**_row(one, member), "shard": name} for one, member in zip(encoded, members, strict=True)]


def _plan(config: StageConfig) -> EncodePlan:
    if config.stage.encode is None or config.paths.clips is None or config.paths.autoencoder_weights is None:
        raise ConfigError(
            f"stage {config.stage.name!r}: encode, paths.clips and paths.autoencoderWeights must be set; "
            "the stage needs a curated set and an autoencoder"
        )
    if not config.latent_readers:
        raise ConfigError(f"stage {config.stage.name!r}: latentReaders is empty; no later train stage reads it")
    grid = config.autoencoder.spatial_compression * (config.model.patch_size or 1)
    return EncodePlan(config.latent_readers, grid, config.autoencoder.temporal_compression)


def _clips_of_unit(config: StageConfig, plan: EncodePlan) -> int:
    """So many that they fill about a shard."""
    assert config.stage.encode is not None
    text = config.text_encoder
    text_bytes = text.max_tokens * text.context_dim * 2 * len(plan.prompts)
    return max(1, min(MOST_CLIPS, config.stage.encode.shard_bytes // plan.largest(text_bytes)))


def _made_from(config: StageConfig, table: ClipTable, weights: Weights) -> str:
    """Hash of all that samples and their places depend on."""
    digest = hashlib.sha256(table.identity.encode())
    for part in weights.contents():
        digest.update(part)
    assert config.stage.encode is not None
    recipe = [ENCODING_VERSION, config.autoencoder.to_wire(), config.text_encoder.to_wire(), config.seed]
    recipe += [[reader.to_wire() for reader in config.latent_readers], config.stage.encode.to_wire()]
    digest.update(json.dumps(recipe).encode())
    return digest.hexdigest()


def _row(encoded: Encoded, member: Member) -> dict[str, Any]:
    sample, (frames, height, width) = encoded.sample, encoded.tensors["latent"].shape[1:]
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
        "text_tokens": encoded.text_tokens,
        CLIP_ROWS: "\n".join(sample.clip_rows),
        **{name: sample.clip[name] for name in SCORES},
    }
