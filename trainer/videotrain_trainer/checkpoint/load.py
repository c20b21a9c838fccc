"""Loading: the newest checkpoint that is whole, in any world, by ranged reads of what each rank needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import google_crc32c
import torch
from pydantic import ValidationError
from torch import Tensor

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointFile, CheckpointManifest
from videotrain_trainer.checkpoint.catalog import DamagedCheckpointError, read_commit, withdraw
from videotrain_trainer.checkpoint.commit import index_name
from videotrain_trainer.checkpoint.fragments import (
    ELEMENT_BYTES,
    ByteRange,
    Copy,
    block_ranges,
    coverage_problems,
    plan_copies,
)
from videotrain_trainer.checkpoint.state import INDEX_VERSION, CheckpointIndex, StoredFile
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing
from videotrain_trainer.sharded_state import Piece, Quantity, ShardedState, pack, packed_length
from videotrain_trainer.storage import ObjectStore

REQUEST_BLOCKS = 64
"""Blocks of the longest ranged read: 64 MiB keep a connection busy and bound the memory of a read."""
READERS = 4
SHOWN = 5

Value = TypeVar("Value")
log = logging.getLogger(__name__)


class Peers(Protocol):
    """How the ranks of a world agree; all methods are collective."""

    @property
    def rank(self) -> int:
        """Rank of this process in the world."""

    def from_first(self, value: Value | None) -> Value:
        """The value that rank 0 has."""

    def first_problem(self, problem: str | None) -> str | None:
        """The problem of the lowest rank that has one."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint: its two documents, verified."""

    prefix: str
    """Of the checkpoint, not of the stage."""
    manifest: CheckpointManifest
    index: CheckpointIndex


@dataclass(frozen=True)
class Loaded:
    """What was found at the start of a generation."""

    manifest: CheckpointManifest | None
    """Of the checkpoint that was loaded; None if there is none."""
    skipped: list[str]
    """Newer checkpoints that were refused, with why."""


def load_newest(store: ObjectStore, prefix: str, complete: Sequence[int], state: ShardedState, peers: Peers) -> Loaded:
    """Fill `state` from the newest whole checkpoint of a stage. Collective.

    A damaged one is refused by all ranks if any rank finds damage in its part; its commit manifest is withdrawn.

    Args:
        store: object store.
        prefix: of the stage.
        complete: steps of the complete checkpoints, ascending, as rank 0 has listed them.
        state: share of this rank; not touched before its part of a checkpoint is read and verified.
        peers: the other ranks.

    Raises:
        DataError: there are complete checkpoints, but every one is damaged.
        ConfigError: the newest one is of another model.
    """
    skipped: list[str] = []
    for step in reversed(complete):
        found, problem = _open_together(store, prefix, step, peers)
        if found is not None:
            vectors, own = _try_read(store, found, state)
            problem = peers.first_problem(own)
            if problem is None and vectors is not None:
                _fill(state, vectors)
                return Loaded(found.manifest, skipped)
        skipped.append(_refuse(store, prefix, step, problem or "", peers))
    if skipped:
        raise DataError(
            f"{prefix}/checkpoints: every complete checkpoint is damaged; delete the folder to begin at step 1 again. "
            f"{'; '.join(skipped[:SHOWN])}"
        )
    return Loaded(None, [])


def _fill(state: ShardedState, vectors: dict[Quantity, Tensor]) -> None:
    for quantity in state.quantities:
        # A moving average that the checkpoint does not have begins at its weights.
        state.write(quantity, vectors[quantity if quantity in vectors else "master"])


def open_checkpoint(store: ObjectStore, prefix: str, step: int) -> StoredCheckpoint:
    """Read and check the documents of a checkpoint and the sizes of its files.

    Raises:
        DamagedCheckpointError: something is missing, cut off or does not fit its checksum.
    """
    manifest = read_commit(store, prefix, step)
    place = layout.checkpoint_prefix(prefix, step)
    sizes = {item.uri.removeprefix(f"{place}/"): item.size for item in store.list(place)}
    for file in manifest.files:
        if sizes.get(file.name) != file.bytes:
            raise DamagedCheckpointError(f"{file.name} has {sizes.get(file.name, 'no')} bytes instead of {file.bytes}")
    index = _read_index(store, place, manifest)
    problems = coverage_problems(index.shapes, [pack(file.pieces) for file in index.files])
    if problems:
        raise DamagedCheckpointError(f"the index does not hold every element once: {'; '.join(problems[:SHOWN])}")
    return StoredCheckpoint(place, manifest, index)


def read_vectors(
    store: ObjectStore, found: StoredCheckpoint, held: Sequence[Piece], quantities: Sequence[Quantity]
) -> dict[Quantity, Tensor]:
    """Packed float32 vectors of the pieces; quantities that the checkpoint lacks are left out.

    Raises:
        DamagedCheckpointError: bytes that were read do not fit their checksum.
    """
    wanted = [quantity for quantity in quantities if quantity in found.index.quantities]
    vectors = {quantity: torch.empty(packed_length(held), dtype=torch.float32) for quantity in wanted}
    copies = plan_copies(held, [pack(file.pieces) for file in found.index.files])
    jobs = []
    for number, file in enumerate(found.index.files):
        spans = _spans(file, [copy for copy in copies if copy.file == number], vectors)
        jobs += _jobs(file, spans, found.index.block_bytes)
    with ThreadPoolExecutor(READERS, thread_name_prefix="load") as pool:
        for done in [pool.submit(_fetch, store, found, *job) for job in jobs]:
            done.result()
    return vectors


@dataclass(frozen=True)
class _Span:
    """Bytes of a file and the elements of a vector that they fill."""

    start: int
    stop: int
    target: Tensor


def _spans(file: StoredFile, copies: Sequence[Copy], vectors: dict[Quantity, Tensor]) -> list[_Span]:
    spans = []
    for quantity, values in vectors.items():
        for copy in copies:
            start = file.vectors[quantity] + copy.source * ELEMENT_BYTES
            target = values[copy.target : copy.target + copy.length]
            spans.append(_Span(start, start + copy.length * ELEMENT_BYTES, target))
    return sorted(spans, key=lambda span: span.start)


def _jobs(file: StoredFile, spans: list[_Span], block: int) -> list[tuple[StoredFile, ByteRange, list[_Span]]]:
    wanted = [ByteRange(span.start, span.stop) for span in spans]
    ranges = block_ranges(wanted, file.bytes, block, REQUEST_BLOCKS * block)
    return [
        (file, found, [span for span in spans if span.start < found.stop and span.stop > found.start])
        for found in ranges
    ]


def _fetch(
    store: ObjectStore, found: StoredCheckpoint, file: StoredFile, wanted: ByteRange, spans: list[_Span]
) -> None:
    data = _verified(store, found, file, wanted)
    for span in spans:
        low, high = max(span.start, wanted.start), min(span.stop, wanted.stop)
        values = torch.frombuffer(bytearray(data[low - wanted.start : high - wanted.start]), dtype=torch.float32)
        first = (low - span.start) // ELEMENT_BYTES
        span.target[first : first + len(values)] = values


def _verified(store: ObjectStore, found: StoredCheckpoint, file: StoredFile, wanted: ByteRange) -> bytes:
    data = store.get_range(f"{found.prefix}/{file.name}", wanted.start, wanted.stop - wanted.start)
    block = found.index.block_bytes
    for start in range(wanted.start, wanted.stop, block):
        piece = data[start - wanted.start : start - wanted.start + block]
        if google_crc32c.value(piece) != file.block_checksum(start // block):
            raise DamagedCheckpointError(
                f"{file.name}: bytes {start} to {start + len(piece)} do not fit their checksum"
            )
    return data


def _read_index(store: ObjectStore, place: str, manifest: CheckpointManifest) -> CheckpointIndex:
    listed = [file for file in manifest.files if file.name == index_name(manifest.generation)]
    if len(listed) != 1:
        raise DamagedCheckpointError("the commit manifest lists no index")
    data = store.get(f"{place}/{listed[0].name}")
    _check_whole(listed[0], data)
    try:
        index = CheckpointIndex.model_validate_json(data)
    except ValidationError as error:
        raise DamagedCheckpointError(f"{listed[0].name}: {error.errors()[0]['msg']}") from error
    if index.version != INDEX_VERSION:
        raise ConfigError(
            f"{place}: checkpoint format {index.version}, this trainer reads {INDEX_VERSION}; use the "
            "trainer image that wrote it"
        )
    return index


def _check_whole(file: CheckpointFile, data: bytes) -> None:
    if f"{google_crc32c.value(data):08x}" != file.crc32c:
        raise DamagedCheckpointError(f"{file.name} does not fit its checksum")


def _open_together(
    store: ObjectStore, prefix: str, step: int, peers: Peers
) -> tuple[StoredCheckpoint | None, str | None]:
    """Rank 0 reads the documents for all, which at a thousand ranks spares the store two thousand requests."""
    answer: tuple[StoredCheckpoint | None, str | None] | None = None
    if peers.rank == 0:
        try:
            answer = (open_checkpoint(store, prefix, step), None)
        except (DamagedCheckpointError, ObjectMissing) as error:
            answer = (None, str(error))
    return peers.from_first(answer)


def _try_read(
    store: ObjectStore, found: StoredCheckpoint, state: ShardedState
) -> tuple[dict[Quantity, Tensor] | None, str | None]:
    _check_model(found, state)
    try:
        return read_vectors(store, found, state.held, state.quantities), None
    except (DamagedCheckpointError, ObjectMissing) as error:
        return None, str(error)


def _check_model(found: StoredCheckpoint, state: ShardedState) -> None:
    stored = {name: tuple(shape) for name, shape in found.index.shapes.items()}
    expected = {name: tuple(shape) for name, shape in state.shapes.items()}
    if stored != expected:
        names = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
        shown = "; ".join(f"{name}: {stored.get(name)} stored, {expected.get(name)} here" for name in names[:SHOWN])
        raise ConfigError(
            f"{found.prefix}: {len(names)} parameters differ from the model of this run: {shown}. Give the run another "
            "name or change spec.model back"
        )


def _refuse(store: ObjectStore, prefix: str, step: int, problem: str, peers: Peers) -> str:
    reason = f"{layout.checkpoint_prefix(prefix, step)}: {problem}"
    if peers.rank == 0:
        log.error("checkpoint refused: %s", reason)
        withdraw(store, prefix, step, problem)
    return reason
