"""Loading: the newest checkpoint that is whole, in any world, by ranged reads of what each rank needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Protocol, TypeVar

import google_crc32c
import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest
from videotrain_trainer.checkpoint.catalog import all_refused, find_steps, read_commit, withdraw
from videotrain_trainer.checkpoint.commit import index_name
from videotrain_trainer.checkpoint.damage import MISSING, DamagedCheckpointError, read_again
from videotrain_trainer.checkpoint.fragments import (
    ELEMENT_BYTES,
    ByteRange,
    Copy,
    StoredPieces,
    block_ranges,
    coverage_problems,
)
from videotrain_trainer.checkpoint.state import INDEX_VERSION, CheckpointIndex, Member, StoredFile
from videotrain_trainer.checkpoint.witnesses import leave_mark, marked_elsewhere
from videotrain_trainer.checksums import READINGS, checksum
from videotrain_trainer.errors import ConfigError, ObjectMissing, PeerLost
from videotrain_trainer.sharded_state import Piece, Quantity, ShardedState, in_parts, pack, packed_length
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.linux import give_back_memory

REQUEST_BLOCKS = 8
"""Blocks of the longest ranged read: 8 MiB keep a connection busy and bound the memory of a read."""
READERS = 4
PART_ELEMENTS = 1 << 24
"""Elements that are read at once: 64 MiB, which bounds the memory of a start. At its edges a part reads up to a block
of each vector that another part reads again: 3 %."""
SHOWN = 5

Value = TypeVar("Value")
log = logging.getLogger(__name__)


class Peers(Protocol):
    """How the ranks of a world agree; all methods are collective."""

    @property
    def rank(self) -> int:
        """Rank of this process in the world."""

    def from_first(self, kind: TypeAdapter[Value], value: Value | None) -> Value:
        """The value that rank 0 has."""

    def to_first(self, kind: TypeAdapter[Value], value: Value) -> list[Value]:
        """On rank 0 the values of all ranks, by rank; empty elsewhere."""

    def wait_for_first(self) -> None:
        """Return once rank 0 has come here."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint: its two documents, verified."""

    prefix: str
    """Of the checkpoint, not of the stage."""
    manifest: CheckpointManifest
    index: CheckpointIndex

    @cached_property
    def pieces(self) -> StoredPieces:
        """What lies in the vectors of its files."""
        return StoredPieces(pack(file.pieces) for file in self.index.files)


@dataclass(frozen=True)
class Loaded:
    """What was found at the start of a generation."""

    manifest: CheckpointManifest | None
    """Of the checkpoint that was loaded; None if there is none."""
    skipped: list[str]
    """Newer checkpoints that were refused, with why."""


def load_newest(
    store: ObjectStore, member: Member, complete: Sequence[int], state: ShardedState, peers: Peers, saved_step: int = 0
) -> Loaded:
    """Fill `state` from the newest checkpoint of a stage. Collective.

    A checkpoint is passed over, for the one before, only if two machines read the same damage in it: of this world, or
    of an earlier generation that left its mark. What one machine reads otherwise than another is that machine's fault.

    Args:
        store: object store.
        member: this process.
        complete: steps of the complete checkpoints, ascending, as rank 0 has listed them.
        state: share of this rank; its values count once this has returned.
        peers: the other ranks.
        saved_step: known to be saved; see `find_steps`.

    Raises:
        DamagedCheckpointError: this process cannot read the newest one whole, and no other machine agrees.
        PeerLost: another process cannot.
        DataError: there were complete checkpoints, and all were refused.
        ConfigError: the newest one is of another model, run or stage.
    """
    skipped: list[str] = []
    remaining = list(complete)
    nodes = peers.to_first(_NODE, member.node)
    while remaining:
        step = remaining.pop()
        opened = _open_together(store, member, step, peers, saved_step)
        if opened.listed is not None:
            remaining = list(opened.listed)
            continue
        damage = opened.damage if opened.found is None else _try_read(store, opened.found, state)
        met = _agree(nodes, damage, peers)
        if opened.found is not None and met is None:
            return Loaded(opened.found.manifest, skipped)
        assert met is not None, "rank 0 has heard of the damage of this rank"
        skipped.append(_refuse_together(store, member, step, opened.found, met, damage, peers))
    if skipped:
        raise all_refused(member.prefix, skipped)
    return Loaded(None, [])


def open_checkpoint(
    store: ObjectStore, prefix: str, step: int, owner: tuple[str, str] | None = None
) -> StoredCheckpoint:
    """Read and check the documents of a checkpoint and the sizes of its files, by one reading of each.

    Raises:
        ObjectMissing: it has no commit manifest.
        DamagedCheckpointError: something else is missing, cut off or does not fit its checksum.
        ConfigError: another run or stage than `owner` wrote it.
    """
    manifest = read_commit(store, prefix, step, owner)
    place = layout.checkpoint_prefix(prefix, step)
    sizes = {item.uri.removeprefix(f"{place}/"): item.size for item in store.list(place)}
    for file in manifest.files:
        size = sizes.get(file.name)
        if size != file.bytes:
            found = MISSING if size is None else f"{size} bytes"
            raise DamagedCheckpointError(f"{place}/{file.name}", found, f"{found} instead of {file.bytes} bytes")
    index = _read_index(store, place, manifest)
    problems = coverage_problems(index.shapes, [pack(file.pieces) for file in index.files])
    if problems:
        uri = f"{place}/{index_name(manifest.generation)}"
        raise DamagedCheckpointError(
            uri, problems[0], f"does not hold every element once: {'; '.join(problems[:SHOWN])}"
        )
    return StoredCheckpoint(place, manifest, index)


def read_vectors(
    store: ObjectStore, found: StoredCheckpoint, held: Sequence[Piece], quantities: Sequence[Quantity]
) -> dict[Quantity, Tensor]:
    """Packed float32 vectors of the pieces; quantities that the checkpoint lacks are left out.

    Raises:
        DamagedCheckpointError: bytes do not fit their checksum in any of READINGS readings.
    """
    wanted = [quantity for quantity in quantities if quantity in found.index.quantities]
    vectors = {quantity: torch.empty(packed_length(held), dtype=torch.float32) for quantity in wanted}
    copies = found.pieces.copies(held)
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
    data = read_again(store, lambda source: _verified(source, found, file, wanted))
    for span in spans:
        low, high = max(span.start, wanted.start), min(span.stop, wanted.stop)
        first, count = (low - span.start) // ELEMENT_BYTES, (high - low) // ELEMENT_BYTES
        values = np.frombuffer(data, dtype=np.float32, count=count, offset=low - wanted.start)
        span.target.numpy()[first : first + count] = values


def _verified(store: ObjectStore, found: StoredCheckpoint, file: StoredFile, wanted: ByteRange) -> bytes:
    """Bytes of whole blocks, each compared with its checksum, by one reading."""
    uri, block = f"{found.prefix}/{file.name}", found.index.block_bytes
    try:
        data = store.get_range(uri, wanted.start, wanted.stop - wanted.start)
    except ObjectMissing as error:
        raise DamagedCheckpointError(uri, MISSING, "is not there", wanted.start, wanted.stop) from error
    for start in range(wanted.start, wanted.stop, block):
        piece = data[start - wanted.start : start - wanted.start + block]
        if google_crc32c.value(piece) != file.block_checksum(start // block):
            stop = min(start + block, file.bytes)
            raise DamagedCheckpointError(
                uri, checksum(piece), f"bytes {start} to {stop} do not fit their checksum", start, stop
            )
    return data


def _read_index(store: ObjectStore, place: str, manifest: CheckpointManifest) -> CheckpointIndex:
    name = index_name(manifest.generation)
    uri, listed = f"{place}/{name}", [file for file in manifest.files if file.name == name]
    if len(listed) != 1:
        raise DamagedCheckpointError(uri, MISSING, "the commit manifest lists no index")
    try:
        data = store.get(uri)
    except ObjectMissing as error:
        raise DamagedCheckpointError(uri, MISSING, "is not there") from error
    if checksum(data) != listed[0].crc32c:
        raise DamagedCheckpointError(uri, checksum(data), "does not fit its checksum")
    try:
        index = CheckpointIndex.model_validate_json(data)
    except ValidationError as error:
        raise DamagedCheckpointError(uri, checksum(data), error.errors()[0]["msg"]) from error
    if index.version != INDEX_VERSION:
        raise ConfigError(
            f"{place}: checkpoint format {index.version}, this trainer reads {INDEX_VERSION}; use the "
            "trainer image that wrote it"
        )
    return index


class _Opened(NamedTuple):
    """What rank 0 found of a checkpoint: its documents, damage, or that it is gone and what is there instead."""

    found: StoredCheckpoint | None = None
    damage: DamagedCheckpointError | None = None
    listed: list[int] | None = None


def _open_together(store: ObjectStore, member: Member, step: int, peers: Peers, saved_step: int) -> _Opened:
    """Rank 0 reads the documents for all, which at a thousand ranks spares the store two thousand requests."""
    answer: tuple[StoredCheckpoint | None, list[int] | None] | None = None
    damage: DamagedCheckpointError | None = None
    if peers.rank == 0:
        try:
            found = read_again(store, lambda source: open_checkpoint(source, member.prefix, step, member.owner))
            answer = (found, None)
        except DamagedCheckpointError as error:
            answer, damage = (None, None), error
        except ObjectMissing as error:
            # Another generation may have saved a newer one since it was listed, and deleted this by retention.
            listed = find_steps(store.reconnected(), member.prefix, max(saved_step, step)).complete
            answer = (None, None if step in listed else listed)
            uri = layout.checkpoint_commit(member.prefix, step)
            damage = DamagedCheckpointError(uri, MISSING, f"is listed, and not there: {error}")
    found_by_first, listed_by_first = peers.from_first(_ANSWER, answer)
    return _Opened(found_by_first, None if listed_by_first is not None else damage, listed_by_first)


def _try_read(store: ObjectStore, found: StoredCheckpoint, state: ShardedState) -> DamagedCheckpointError | None:
    """Fill the state part by part and quantity by quantity; what kept it from that."""
    _check_model(found, state)
    try:
        for start, pieces in in_parts(state.held, PART_ELEMENTS):
            for quantity in state.quantities:
                state.write(quantity, _read_vector(store, found, pieces, quantity), start)
                give_back_memory()
    except DamagedCheckpointError as error:
        return error
    return None


def _read_vector(store: ObjectStore, found: StoredCheckpoint, pieces: Sequence[Piece], quantity: Quantity) -> Tensor:
    """Of its own, so that no vector is still in memory when the next one is read."""
    # A moving average that the checkpoint does not have begins at its weights.
    stored = quantity if quantity in found.index.quantities else "master"
    return read_vectors(store, found, pieces, [stored])[stored]


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


class _FirstDamage(NamedTuple):
    """Damage that a rank has met, and who is to look at it again. All ranks hear of the first one only."""

    rank: int
    node: str
    witness: int | None
    """First rank on another machine."""
    uri: str
    found: str
    problem: str
    start: int
    stop: int

    def damage(self) -> DamagedCheckpointError:
        """As the rank that met it raises it."""
        return DamagedCheckpointError(self.uri, self.found, self.problem, self.start, self.stop)


_NODE: Final = TypeAdapter(str)
_DAMAGE: Final = TypeAdapter(tuple[str, str, str, int, int] | None)
_FIRST_DAMAGE: Final = TypeAdapter(_FirstDamage | None)
_WITNESS: Final = TypeAdapter(str | None)
_ANSWER: Final = TypeAdapter(tuple[StoredCheckpoint | None, list[int] | None])


def _agree(nodes: Sequence[str], damage: DamagedCheckpointError | None, peers: Peers) -> _FirstDamage | None:
    """What the first rank that has met damage says of it; None if none has. Only rank 0 knows `nodes`."""
    told = None if damage is None else (damage.uri, damage.found, damage.problem, damage.start, damage.stop)
    first = next(((rank, told) for rank, told in enumerate(peers.to_first(_DAMAGE, told)) if told is not None), None)
    met: _FirstDamage | None = None
    if first is not None:
        rank, told = first
        witness = next((other for other, node in enumerate(nodes) if node != nodes[rank]), None)
        met = _FirstDamage(rank, nodes[rank], witness, *told)
    return peers.from_first(_FIRST_DAMAGE, met)


def _refuse_together(
    store: ObjectStore,
    member: Member,
    step: int,
    found: StoredCheckpoint | None,
    met: _FirstDamage,
    own: DamagedCheckpointError | None,
    peers: Peers,
) -> str:
    """Withdraw a checkpoint if another machine reads the damage of the first rank that met some as that one does.

    Returns:
        What was damaged and who saw it.

    Raises:
        DamagedCheckpointError: this process met damage, and no other machine agrees.
        PeerLost: only other processes did.
    """
    if own is not None:
        leave_mark(store, member, step, own)
    damage = met.damage()
    agrees: str | None = None
    if peers.rank == met.witness and _reads_alike(store, member, step, found, damage):
        agrees = member.node
    elif peers.rank == met.rank:
        agrees = marked_elsewhere(store, member, step, damage)
    agreeing = (node for node in peers.to_first(_WITNESS, agrees) if node is not None)
    second = peers.from_first(_WITNESS, next(agreeing, None))
    what = f"{damage}; read {READINGS} times by rank {met.rank} on node {met.node}"
    if second is None:
        if own is None:
            raise PeerLost(f"{what}, and by no other machine")
        raise DamagedCheckpointError(
            own.uri,
            own.found,
            f"{own.problem}; read {READINGS} times through connections of its own on node {member.node}, and no other "
            "machine has read the same. Nothing is given up for it: another node is asked. To give it up by hand, "
            f"rename {layout.checkpoint_commit(member.prefix, step)} to refused.json",
            own.start,
            own.stop,
        )
    reason = f"{what}, and the same by node {second}"
    if peers.rank == 0:
        log.error("checkpoint refused: %s", reason)
        withdraw(store, member.prefix, step)
    peers.wait_for_first()  # nobody ends for want of checkpoints before this one is withdrawn
    return reason


def _reads_alike(
    store: ObjectStore, member: Member, step: int, found: StoredCheckpoint | None, damage: DamagedCheckpointError
) -> bool:
    """Whether this process reads the same wrong bytes as another machine."""
    try:
        if found is not None and damage.stop:
            file = next(file for file in found.index.files if damage.uri == f"{found.prefix}/{file.name}")
            wanted = ByteRange(damage.start, damage.stop)
            read_again(store, lambda source: _verified(source, found, file, wanted))
        else:
            read_again(store, lambda source: open_checkpoint(source, member.prefix, step, member.owner))
    except DamagedCheckpointError as own:
        leave_mark(store, member, step, own)
        return (own.uri, own.found) == (damage.uri, damage.found)
    except ObjectMissing:
        return damage.found == MISSING
    return False
