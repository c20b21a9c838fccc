"""Encoding as units of work: a range of clips each, and what does them on one device."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import torch

from videotrain_api.config.stage_config import StageConfig
from videotrain_trainer.checksums import read_again
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.index_writer import CATALOGUE_SCHEMA, CLIP_ROWS
from videotrain_trainer.data.manifest import SCORES
from videotrain_trainer.data.shards import Member, ShardWriter
from videotrain_trainer.engines.interface import Interrupted, Tick, Unit, UnitRange, Used
from videotrain_trainer.engines.tables import FIRST, UnitTables, alone
from videotrain_trainer.errors import ConfigError, ObjectMissing
from videotrain_trainer.networks.weights import Weights, open_weights
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.tasks.encode_clips import Announced, ClipEncoder, Encoded, weights_uri
from videotrain_trainer.tasks.encode_plan import ENCODING_VERSION, MOST_CLIPS, ClipUnits, EncodePlan


class EncodeWork:
    """Encoding of ranges of clips. What it has opened is not pickled with it.

    Args:
        config: of the encode stage.
        cache: local folder; fetched weights of text encoders stay there.
        device: where its worker encodes; a process has one worker.

    Raises:
        ConfigError: the stage lacks an input.
    """

    units_at_once: ClassVar[int] = 2
    """The clips of one are decoded while another is encoded."""

    def __init__(self, config: StageConfig, cache: Path, device: torch.device) -> None:
        stage = config.stage
        if stage.encode is None or config.paths.clips is None or config.paths.autoencoder_weights is None:
            raise ConfigError(
                f"stage {stage.name!r}: encode, paths.clips and paths.autoencoderWeights must be set; "
                "the stage needs a curated set and an autoencoder"
            )
        if not config.latent_readers:
            raise ConfigError(f"stage {stage.name!r}: latentReaders is empty; no later train stage reads it")
        self.config, self._cache, self.device = config, cache, device
        self.engine, self.shard_bytes = stage.encode.engine, stage.encode.shard_bytes
        grid = config.autoencoder.spatial_compression * (config.model.patch_size or 1)
        self.plan = EncodePlan(config.latent_readers, grid, config.autoencoder.temporal_compression)

    def __reduce__(self) -> tuple[Any, ...]:
        """Whoever gets it has devices of its own."""
        return EncodeWork, (self.config, self._cache, torch.device(self.device.type))

    @property
    def gpus(self) -> int:
        """As Work."""
        return int(self.device.type == "cuda")

    @cached_property
    def store(self) -> ObjectStore:
        """Holds clips, weights and the set."""
        return ObjectStore.for_storage(self.config.storage)

    @cached_property
    def table(self) -> ClipTable:
        """The curated clips."""
        return ClipTable(self.store, str(self.config.paths.clips))

    @cached_property
    def tables(self) -> UnitTables:
        """Rows of the catalogue, by unit."""
        return UnitTables(self.store, f"{self.config.paths.output}/units")

    @cached_property
    def encoder(self) -> ClipEncoder:
        """Autoencoder and text encoder, on the device."""
        return ClipEncoder(self.config, self.plan, self.store, self._weights, self.device, self._cache)

    def open(self, scratch: Path) -> EncodeWorker:
        """As Work."""
        return EncodeWorker(self, scratch)

    def units(self) -> ClipUnits:
        """All units of the stage."""
        text = self.config.text_encoder
        text_bytes = text.max_tokens * text.context_dim * 2 * len(self.plan.prompts)
        each = max(1, min(MOST_CLIPS, self.shard_bytes // self.plan.largest(text_bytes)))  # about a shard
        return ClipUnits(len(self.table), each, self._made_from())

    @cached_property
    def _weights(self) -> Weights:
        uri = weights_uri(self.config)
        if uri.endswith(".safetensors"):
            # A result that is not there is an input that is missing, not a wrong configuration.
            read_again(self.store, lambda source: source.stat(uri), (ObjectMissing,))
        return open_weights(uri, store=self.store)

    def _made_from(self) -> str:
        """Hash of all that samples and their places depend on."""
        digest = hashlib.sha256(self.table.identity.encode())
        for part in self._weights.contents():
            digest.update(part)
        config, shards = self.config, {"shardBytes": self.shard_bytes}
        recipe = [ENCODING_VERSION, config.autoencoder.to_wire(), config.text_encoder.to_wire(), config.seed]
        recipe += [[reader.to_wire() for reader in config.latent_readers], shards]
        digest.update(json.dumps(recipe).encode())
        return digest.hexdigest()


def find_ranges(units: ClipUnits) -> Iterator[UnitRange]:
    """A range for each unit: what is in it takes minutes."""
    return (alone(unit) for unit in units)


class EncodeWorker:
    """Does units on one device, one after the other in the order in which they come; the next is decoded meanwhile.

    Args:
        work: of the stage.
        scratch: folder for temporary files.
    """

    def __init__(self, work: EncodeWork, scratch: Path) -> None:
        self._work, self._scratch, self._encoder = work, scratch, work.encoder
        self._stored_bytes = 0
        self._line = threading.Condition()
        self._announced = self._encoded = 0
        self._broken: BaseException | None = None
        """Ended a unit in the middle, so what is decoded next belongs to nobody."""

    def do(self, unit: Unit, tick: Tick) -> dict[str, Any]:
        """Encode a range of clips; shards and table are in the store when this returns."""
        with self._line:
            clips = self._encoder.announce(self._work.table.clips(range(*unit.facts["clips"])))
            place, self._announced = self._announced, self._announced + 1
            self._line.wait_for(lambda: self._broken is not None or self._encoded == place)
            if self._broken is not None:
                raise Interrupted from self._broken
        try:
            table = self._encode(unit, clips, tick)
        except BaseException as error:
            with self._line:
                self._broken = error
                self._line.notify_all()
            raise
        with self._line:
            self._encoded += 1
            self._line.notify_all()
        return {FIRST: self._work.tables.keep(unit.name, table)}

    def used(self) -> Used:
        """As Worker."""
        meter = self._encoder.meter
        return {
            "waited_us": int(meter.waited * 1e6),
            "busy_us": int(meter.busy * 1e6),
            "stored_bytes": self._stored_bytes,
        }

    def close(self) -> None:
        """End the decoders and remove temporary files."""
        self._encoder.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _encode(self, unit: Unit, clips: Announced, tick: Tick) -> Any:
        """Encode and store what was announced; its rows of the catalogue, a pyarrow.Table."""
        if self._work.device.index is not None:
            torch.cuda.set_device(self._work.device)  # each thread has its own
        with disk_full_is_clear(self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        shard: list[Encoded] = []
        for encoded in self._encoder.samples(clips, tick):
            shard.append(encoded)
            if sum(one.bytes for one in shard) >= self._work.shard_bytes:
                rows += self._store_shard(unit, shard)
                shard = []
        rows += self._store_shard(unit, shard)
        return pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["uid"])), schema=CATALOGUE_SCHEMA)

    def _store_shard(self, unit: Unit, encoded: list[Encoded]) -> list[dict[str, Any]]:
        if not encoded:
            return []
        path = self._scratch / "shard.tar"
        with ShardWriter(path) as writer:
            members = [writer.add(one.sample.uid, one.tensors) for one in encoded]
        self._stored_bytes += sum(member.length for member in members)
        name = f"shards/{writer.object_name('clips', unit.facts['number'])}"
        self._work.store.put(f"{self._work.config.paths.output}/{name}", path)
        path.unlink()
        return [{**_row(one, member), "shard": name} for one, member in zip(encoded, members, strict=True)]


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
