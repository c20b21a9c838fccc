"""Worlds of threads that save and load a made-up state through the real checkpoint code."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import TypeAdapter
from support.pieces import even_share

from videotrain_api.resource.trainrun import CheckpointPolicy, Storage
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.checkpoint.load import Loaded, load_newest
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.checkpoint.save import CheckpointWriter
from videotrain_trainer.checkpoint.state import Member, Point
from videotrain_trainer.errors import PeerLost
from videotrain_trainer.parallel.messages import decode, encode
from videotrain_trainer.sharded_state import numel, packed_length
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHAPES = {"blocks.0.weight": (700, 512), "blocks.0.bias": (512,), "blocks.1.weight": (512, 700), "scale": ()}
"""About 700,000 elements: three blocks of checksums for each of the four vectors."""
QUANTITIES = ("master", "exp_avg", "exp_avg_sq", "ema")


def make_store() -> ObjectStore:
    """For file:// URIs."""
    return ObjectStore.for_storage(Storage(uri="s3://unused-bucket"))


class CountingStore(ObjectStore):
    """Remembers the bytes of every ranged read."""

    def __init__(self, storage: Storage, patience: float | None = None) -> None:
        super().__init__(storage, patience)
        self.ranged: list[int] = []

    def get_range(self, uri: str, offset: int, length: int) -> bytes:
        self.ranged.append(length)
        return super().get_range(uri, offset, length)


class FakeState:
    """One rank's even share of a model whose every element is known."""

    def __init__(self, rank: int, size: int, shapes: dict[str, tuple[int, ...]] = SHAPES, seed: int = 0) -> None:
        self.shapes, self.quantities, self.device = shapes, QUANTITIES, torch.device("cpu")
        self.saved = self.held = even_share(shapes, size, rank)
        self.seed = seed
        self.written: dict[str, torch.Tensor] = {}
        self.lengths: list[int] = []
        """Of what was written at a time."""

    def values(self, quantity: str) -> torch.Tensor:
        whole = whole_values(quantity, self.shapes, self.seed)
        parts = [whole[piece.parameter][piece.start : piece.start + piece.length] for piece in self.held]
        return torch.cat(parts) if parts else torch.empty(0)

    def read(self, quantity: str, out: torch.Tensor) -> None:
        out.copy_(self.values(quantity))

    def write(self, quantity: str, values: torch.Tensor, start: int = 0) -> None:
        whole = self.written.setdefault(quantity, torch.full((packed_length(self.held),), torch.nan))
        whole[start : start + len(values)] = values
        self.lengths.append(len(values))

    def is_whole(self) -> bool:
        """Everything that was loaded is what was saved."""
        return all(torch.equal(self.written[quantity], self.values(quantity)) for quantity in self.quantities)


def whole_values(quantity: str, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Flattened parameters."""
    generator = torch.Generator().manual_seed(1000 * seed + QUANTITIES.index(quantity))
    return {name: torch.randn(numel(shape), generator=generator) for name, shape in shapes.items()}


class Records:
    """Record sink that keeps everything."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def write(self, record: Any) -> None:
        self.all.append(record)


class ThreadPeers:
    """Ranks that are threads of one process."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self._size, self._board, self._barrier = rank, size, board, barrier

    def _exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(20)
        answers = list(self._board)
        self._barrier.wait(20)
        return answers

    def from_first(self, kind: TypeAdapter[Any], value: Any) -> Any:
        message = encode(kind, value) if self.rank == 0 else None
        return decode(kind, self._exchange(message)[0], 0)

    def to_first(self, kind: TypeAdapter[Any], value: Any) -> list[Any]:
        messages = self._exchange(encode(kind, value))
        return [decode(kind, message, rank) for rank, message in enumerate(messages)] if self.rank == 0 else []

    def wait_for_first(self) -> None:
        self._exchange(None)

    def table(self, row: Sequence[float]) -> torch.Tensor:
        return torch.tensor(self._exchange(list(row)), dtype=torch.float64)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        return [bool(flag) for flag in self.table([float(flag) for flag in flags]).any(dim=0)]

    def swap(self, messages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [sent[self.rank].clone() for sent in self._exchange(list(messages))]


def make_member(prefix: str, rank: int, size: int, generation: int, node: str = "here") -> Member:
    return Member(
        run="default/test",
        stage="s",
        prefix=prefix,
        config_hash="0" * 16,
        generation=generation,
        rank=rank,
        world_size=size,
        node=node,
    )


def make_writers(
    store: ObjectStore,
    prefix: str,
    size: int,
    generation: int = 1,
    policy: CheckpointPolicy | None = None,
    resumed: CheckpointManifest | None = None,
) -> list[CheckpointWriter]:
    """One writer per rank, of a generation that has raised its fence."""
    Fence(store, prefix, generation).raise_()
    reporter = StageReporter(sink=Records(), generation=generation, stage="s", config_hash="0" * 16)
    return [
        CheckpointWriter(
            store,
            make_member(prefix, rank, size, generation),
            policy or CheckpointPolicy(keep_last=3),
            OrderLog(store, prefix, resumed, reporter),
            replace(reporter, sink=Records()),
        )
        for rank in range(size)
    ]


def save(
    writers: list[CheckpointWriter],
    step: int,
    since: int = 0,
    ids: str = "x",
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> None:
    """All ranks save the state of a step and wait until it is complete."""
    lines = [OrderLine(step=n, epoch=0, bucket="b", ids=[f"{ids}{n}"]) for n in range(since + 1, step + 1)]
    point = Point(step=step, captured_at=NOW, data_cursor={"step": step}, samples=step, lines=lines)
    for rank, writer in enumerate(writers):
        writer.save(FakeState(rank, len(writers), shapes, seed=step), point)
    for writer in writers:
        writer.wait()


def load(
    store: ObjectStore | Sequence[ObjectStore],
    prefix: str,
    complete: list[int],
    size: int,
    seed: int,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    nodes: Sequence[str] = ("here", "there"),
    generation: int = 9,
    saved_step: int = 0,
) -> tuple[list[Loaded], list[FakeState]]:
    """All ranks load the newest whole checkpoint; they take stores and machines in turn."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    states = [FakeState(rank, size, shapes, seed=seed) for rank in range(size)]
    stores = [store] if isinstance(store, ObjectStore) else store

    def one(rank: int) -> Loaded:
        member = make_member(prefix, rank, size, generation, nodes[rank % len(nodes)])
        peers = ThreadPeers(rank, size, board, barrier)
        try:
            return load_newest(stores[rank % len(stores)], member, complete, states[rank], peers, saved_step)
        except BaseException as error:
            if not isinstance(error, DamagedCheckpointError | PeerLost):
                barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        answers = [pool.submit(one, rank) for rank in range(size)]
        errors = [answer.exception() for answer in answers]
    real = [error for error in errors if error and not isinstance(error, threading.BrokenBarrierError | PeerLost)]
    if real:
        raise real[0]
    return [answer.result() for answer in answers], states
