"""Worlds of gloo ranks that do nothing but talk, one of which may say what no honest rank says."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from support.threads import set_threads

from videotrain_trainer.errors import TrainerError
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.training.order_check import RANK_STEPS, RankSteps
from videotrain_trainer.training.step import MicroBatchIds

WORDS = TypeAdapter(dict[str, list[int]])
Lie = Literal["pickle", "text", "length", "negative", "short"]
Talk = Literal["from_first", "to_first"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["videotrain_trainer.parallel.peers", "videotrain_trainer.training.order_check"])


def steps_of(rank: int) -> RankSteps:
    """What a rank of the tests tells; the longer the higher the rank."""
    ids = [f"clip-{rank}-é-{number}" for number in range(3 * rank + 1)]
    return RankSteps([[MicroBatchIds(rank, ids)]], frozenset(ids[:1]))


class _Creates:
    """A pickle of it makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _lying(lie: Lie, folder: Path, send: Any) -> None:
    """Speak the protocol of the ranks below the checks that honest ones make."""
    data = pickle.dumps(_Creates(folder / "ran")) if lie == "pickle" else b'{"words": "none"}'
    lengths = {"length": 1 << 50, "negative": -5, "short": len(data) + 100}
    length = lengths.get(lie, len(data))
    send(torch.tensor([length]), lie, torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _as_first(length: torch.Tensor, lie: Lie, data: torch.Tensor) -> None:
    dist.broadcast(length[0], src=0)
    if lie in ("pickle", "text"):
        dist.broadcast(data, src=0)


def _to_first(length: torch.Tensor, lie: Lie, data: torch.Tensor) -> None:
    dist.gather(length, None, dst=0)
    told = torch.zeros(2, dtype=torch.int64)
    dist.broadcast(told, src=0)
    if lie in ("length", "short"):
        return
    padded = torch.zeros(int(told[0]), dtype=torch.uint8)
    padded[: min(len(data), len(padded))] = data[: len(padded)]
    dist.gather(padded, None, dst=0)


def _rank(folder: str, rank: int, size: int, talk: Talk, liar: int | None, lie: Lie) -> None:
    set_threads()
    where = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=20)
    )
    try:
        if rank == liar:
            _lying(lie, where, _as_first if talk == "from_first" else _to_first)
            said = "lied"
        elif talk == "from_first":
            said = repr(WorldPeers().from_first(WORDS, {"é": [1, 2**40]} if rank == 0 else None))
        else:
            said = repr(WorldPeers().to_first(RANK_STEPS, steps_of(rank)))
    except TrainerError as error:
        said = f"refused: {error}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    (where / f"said-{rank}").write_text(said)
    os._exit(0)


def what_they_said(folder: Path, size: int, talk: Talk, liar: int | None = None, lie: Lie = "text") -> list[str]:
    """What each rank of a world got, or why it refused."""
    arguments = [(str(folder), rank, size, talk, liar, lie) for rank in range(size)]
    processes = [_CONTEXT.Process(target=_rank, args=argument) for argument in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [(folder / f"said-{rank}").read_text() for rank in range(size)]
