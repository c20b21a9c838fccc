"""From what units of an encode stage left to an encoded set.

Ranks put tables of units together into parts, side by side; rank 0 streams the parts into the catalogue and writes the
index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videotrain_api.storage import layout
from videotrain_trainer.checksums import sealed_json, sealed_parquet_file
from videotrain_trainer.data.index_writer import CATALOGUE_SCHEMA, CLIP_ROWS, INDEXED, REPEATED, sortable, write_index
from videotrain_trainer.data.sets import EncodedSetInfo, null_text_uri, set_info_uri
from videotrain_trainer.engines.board import wait_for
from videotrain_trainer.engines.interface import Member, Tick, Unit, Used
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.engines.tables import FIRST, TableBoard, UnitTables, alone
from videotrain_trainer.errors import DataError
from videotrain_trainer.networks.weights import weights_bytes
from videotrain_trainer.storage import disk_full_is_clear
from videotrain_trainer.tasks.encode_clips import weights_uri
from videotrain_trainer.tasks.encode_plan import ClipUnits, why_nothing
from videotrain_trainer.tasks.encode_work import EncodeWork

EXPLAINED_CLIPS = 100_000
"""Of a set that gives nothing, so many clips are looked at to say why."""


class MergeWork:
    """Putting tables together: a part of the set is a unit.

    Args:
        work: that made the tables.
    """

    units_at_once: ClassVar[int] = 1
    gpus: ClassVar[int] = 0

    def __init__(self, work: EncodeWork) -> None:
        self._tables = work.tables
        self.parts = UnitTables(work.store, f"{work.config.paths.output}/parts")

    def open(self, _: Path) -> MergeWork:
        """As Work."""
        return self

    def do(self, unit: Unit, tick: Tick) -> dict[str, Any]:
        """One table of all units of a part."""
        made_from = unit.name.rsplit("-", 1)[0]
        names = [f"{made_from}-{number:08d}" for number in range(*unit.facts["units"])]
        tables = self._tables.read(names, lambda done, _: tick(done))
        return {FIRST: self.parts.keep(unit.name, pa.concat_tables(tables).sort_by("uid"))}

    def used(self) -> Used:
        """Nothing is measured."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


class Merge:
    """Makes the set of one stage of what its units left.

    Args:
        member: this process.
        work: that was done.
        units: of the stage, all of which have results.
    """

    def __init__(self, member: Member, work: EncodeWork, units: ClipUnits) -> None:
        self._member, self._store, self._work = member, work.store, work
        self._output = work.config.paths.output
        self._units, self._merging = units, MergeWork(work)

    def run(self) -> bool:
        """Merge side by side with all ranks; False if the world is asked to leave.

        Raises:
            DataError: there is not one sample, with the reasons.
        """
        parts, board = (alone(part) for part in self._units.parts()), self._merging.parts
        on = TableBoard(self._store, self._member, board)
        if not LocalRun(self._member, self._store, self._merging, parts, 1, on, "merge").run():
            return False
        if self._member.rank == 0:
            ends = [part.column("uid")[:: max(1, part.num_rows - 1)].to_pylist() for part in self._parts()]
            uids = [uid for part in ends for uid in part]
            if not uids:
                table = self._work.table
                looked = min(len(table), EXPLAINED_CLIPS)
                raise DataError(
                    f"{self._work.config.paths.clips}: none of {len(table)} clips fits a bucket of the train "
                    f"stages: {why_nothing(iter(table.clips(range(looked))), self._work.plan)}"
                )
            self._store.put(null_text_uri(self._output), weights_bytes(self._work.encoder.null_text()))
            self._publish(in_order=uids == sorted(uids))
        return wait_for(self._member, self._store, layout.latent_manifest(self._output))

    def _parts(self) -> Iterator[Any]:
        tell = self._member.reporter.phase
        names = [part.name for part in self._units.parts()]
        return self._merging.parts.read(names, lambda done, total: tell("merge", done, total))

    def _publish(self, in_order: bool) -> None:
        """Description and index first, the catalogue last: by it the other ranks know that the set is there."""
        scratch = self._member.scratch / "merge"
        with disk_full_is_clear(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        path = scratch / "manifest.parquet"
        info, shards = self._catalogue(path, self._parts() if in_order else self._sorted())
        self._store.put(set_info_uri(self._output), sealed_json(info.to_wire()))
        columns = [*INDEXED, CLIP_ROWS, *(["source"] if info.sources else [])]
        table = pq.read_table(path, columns=columns, read_dictionary=[*REPEATED, CLIP_ROWS])
        write_index(self._store, self._output, table, path.stat().st_size, info.sources)
        self._store.put(layout.latent_manifest(self._output), path)
        path.unlink()
        for found in self._store.list(f"{self._output}/shards"):
            if found.uri.removeprefix(f"{self._output}/") not in shards:  # of a unit that was begun more than once
                self._store.delete(found.uri)

    def _catalogue(self, path: Path, parts: Iterator[Any]) -> tuple[EncodedSetInfo, set[str]]:
        """Write the catalogue; what the set is, and the shards that it refers to."""
        config, digest, shards = self._work.config, hashlib.sha256(), set[str]()
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
            rows=sorted(self._work.plan.rows),
            sources=[source.name for source in config.dataset.sources],
            readers=config.latent_readers,
            prompts=self._work.plan.prompts,
            captions=self._work.plan.captions,
            latent_channels=config.autoencoder.latent_channels or 0,
            spatial_compression=config.autoencoder.spatial_compression,
            context_dim=config.text_encoder.context_dim,
            pooled_dim=config.text_encoder.pooled_dim,
            text_encoder=config.text_encoder.kind,
            trim_padding=config.text_encoder.trim_padding,
            references=self._work.plan.references if config.autoencoder.causal else [],
            autoencoder_weights=weights_uri(config),
        )
        return info, shards

    def _sorted(self) -> Iterator[Any]:
        """All parts as one: those of a curated set whose clips are not in order of uid, as others may have made it."""
        table = sortable(pa.concat_tables(self._parts()), ("uid", "clip", "caption", "source", "shard"))
        yield table.sort_by("uid").cast(CATALOGUE_SCHEMA)
