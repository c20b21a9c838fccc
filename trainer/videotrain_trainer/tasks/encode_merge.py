"""From what units of an encode stage left to an encoded set.

Ranks put tables of units together into parts, side by side; rank 0 streams the parts into the catalogue and writes the
index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videotrain_api.storage import layout
from videotrain_trainer.checksums import sealed_json, sealed_parquet_file
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.index_writer import CATALOGUE_SCHEMA, CLIP_ROWS, INDEXED, REPEATED, sortable, write_index
from videotrain_trainer.data.sets import EncodedSetInfo, null_text_uri, set_info_uri
from videotrain_trainer.errors import DataError
from videotrain_trainer.networks.weights import weights_bytes
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear
from videotrain_trainer.tasks.encode_clips import ClipEncoder, weights_uri
from videotrain_trainer.tasks.encode_plan import ClipUnits, EncodePlan, why_nothing
from videotrain_trainer.worker.shared_work import Unit, UnitRun
from videotrain_trainer.worker.stage_context import StageContext

PART_UNITS = 512
"""Units whose tables make a part."""
EXPLAINED_CLIPS = 100_000
"""Of a set that gives nothing, so many clips are looked at to say why."""


@dataclass(frozen=True)
class PartUnits(Sequence[Unit]):
    """The parts of a stage's units, as units of the merge."""

    units: ClipUnits

    def __len__(self) -> int:
        return -(-len(self.units) // PART_UNITS)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Unit(f"{self.units.made_from[:24]}-{number:08d}", len(self.numbers(number)))

    def numbers(self, number: int) -> range:
        """Units of a part."""
        return range(number * PART_UNITS, min((number + 1) * PART_UNITS, len(self.units)))


class Merge:
    """Makes the set of one stage of what its units left.

    Args:
        context: of the stage.
        store: object store.
        board: has the results of the units.
        units: of the stage, all of which have results.
        plan: by which they were made.
    """

    def __init__(
        self, context: StageContext, store: ObjectStore, board: UnitRun, units: ClipUnits, plan: EncodePlan
    ) -> None:
        self._context, self._store, self._board, self._plan = context, store, board, plan
        self._output = context.config.paths.output
        self._parts = PartUnits(units)
        self._merging = UnitRun(context, store, self._parts, merging=True)

    def run(self, table: ClipTable, encoder: ClipEncoder) -> bool:
        """Merge side by side with all ranks; False if the world is asked to leave.

        Raises:
            DataError: there is not one sample, with the reasons.
        """
        if not self._merging.run(lambda unit, _: self._part(int(unit.name.rsplit("-", 1)[1]))):
            return False
        if self._context.world.rank == 0:
            ends = [part.column("uid")[:: max(1, part.num_rows - 1)].to_pylist() for part in self._merging.results()]
            uids = [uid for part in ends for uid in part]
            if not uids:
                looked = min(len(table), EXPLAINED_CLIPS)
                raise DataError(
                    f"{self._context.config.paths.clips}: none of {len(table)} clips fits a bucket of the train "
                    f"stages: {why_nothing(iter(table.clips(range(looked))), self._plan)}"
                )
            self._store.put(null_text_uri(self._output), weights_bytes(encoder.null_text()))
            self._publish(in_order=uids == sorted(uids))
        return self._merging.wait_for(layout.latent_manifest(self._output))

    def _part(self, number: int) -> Any:
        """One table of all units of a part."""
        tables = self._board.results(self._parts.numbers(number))
        return pa.concat_tables(tables).sort_by("uid")

    def _publish(self, in_order: bool) -> None:
        """Description and index first, the catalogue last: by it the other ranks know that the set is there."""
        scratch = self._context.scratch / "merge"
        with disk_full_is_clear(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        path = scratch / "manifest.parquet"
        info, shards = self._catalogue(path, self._merging.results() if in_order else self._sorted())
        self._store.put(set_info_uri(self._output), sealed_json(info.to_wire()))
        table = pq.read_table(path, columns=[*INDEXED, CLIP_ROWS], read_dictionary=[*REPEATED, CLIP_ROWS])
        write_index(self._store, self._output, table, path.stat().st_size)
        self._store.put(layout.latent_manifest(self._output), path)
        path.unlink()
        for found in self._store.list(f"{self._output}/shards"):
            if found.uri.removeprefix(f"{self._output}/") not in shards:  # of a unit that was begun more than once
                self._store.delete(found.uri)

    def _catalogue(self, path: Path, parts: Iterator[Any]) -> tuple[EncodedSetInfo, set[str]]:
        """Write the catalogue; what the set is, and the shards that it refers to."""
        config, digest, shards = self._context.config, hashlib.sha256(), set[str]()
        samples = 0

        def noted() -> Iterator[Any]:
            nonlocal samples
            for part in parts:
                samples += part.num_rows
                shards.update(pc.unique(part.column("shard")).to_pylist())
                for uid in part.column("uid").to_pylist():
                    digest.update(uid.encode() + b"\n")
                yield part

        sealed_parquet_file(path, noted(), CATALOGUE_SCHEMA)
        info = EncodedSetInfo(
            samples=samples,
            manifest_hash=digest.hexdigest()[:16],
            rows=sorted(self._plan.rows),
            readers=config.latent_readers,
            prompts=self._plan.prompts,
            latent_channels=config.autoencoder.latent_channels or 0,
            spatial_compression=config.autoencoder.spatial_compression,
            context_dim=config.text_encoder.context_dim,
            pooled_dim=config.text_encoder.pooled_dim,
            text_encoder=config.text_encoder.kind,
            trim_padding=config.text_encoder.trim_padding,
            references=self._plan.references if config.autoencoder.causal else [],
            autoencoder_weights=weights_uri(config),
        )
        return info, shards

    def _sorted(self) -> Iterator[Any]:
        """All parts as one: those of a curated set whose clips are not in order of uid, as others may have made it."""
        table = sortable(pa.concat_tables(self._merging.results()), ("uid", "clip", "caption", "source", "shard"))
        yield table.sort_by("uid").cast(CATALOGUE_SCHEMA)
