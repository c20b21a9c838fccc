"""What a copy in memory tells of the samples of its state, for the order log of whoever goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pydantic import TypeAdapter

from videotrain_api.storage.artifacts import OrderLine
from videotrain_trainer.data.sample_order import OrderState
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.training.order_check import RankSteps, order_lines
from videotrain_trainer.training.step import MicroBatchIds


@dataclass(frozen=True)
class CopyProof:
    """Of one rank."""

    lines: list[OrderLine]
    """Steps that worlds before trained, up to `trained_after`; on rank 0 only."""
    trained_after: int
    """Last step before those of `rank`."""
    rank: RankSteps
    """What this rank trained on since then."""


_PROOF: Final = TypeAdapter(CopyProof)


class ProofLog:
    """What one rank trained on since the newest checkpoint that is known to be complete.

    Args:
        stored_step: of that checkpoint; 0 for none.
        step: where this generation went on.
        lines: steps from the one to the other; on rank 0 only.
    """

    def __init__(self, stored_step: int, step: int, lines: Sequence[OrderLine]) -> None:
        self.after, self._lines, self._step = stored_step, list(lines), step
        self._trained: list[list[MicroBatchIds]] = []

    def add(self, trained: list[MicroBatchIds]) -> None:
        """Note what the next step trained on."""
        self._trained.append(trained)

    def forget(self, stored_step: int) -> None:
        """Drop the steps of a checkpoint that is complete now."""
        self.after = max(self.after, stored_step)
        self._lines = [line for line in self._lines if line.step > self.after]
        done = max(0, self.after - self._step)
        self._trained, self._step = self._trained[done:], self._step + done

    def told(self, skipped: frozenset[str]) -> Any:
        """The proof as JSON values."""
        rank = RankSteps(list(self._trained), skipped)
        return _PROOF.dump_python(CopyProof(self._lines, self._step, rank), mode="json")


def lines_since(data: TrainingSet, stored: OrderState, step: int, proof: Sequence[Any]) -> list[OrderLine]:
    """The order of the steps that copies hold beyond the newest checkpoint.

    Args:
        data: the samples and their order.
        stored: state of the order at that checkpoint.
        step: of the copies.
        proof: of every rank of the world that made them, by rank.

    Raises:
        TrainerError: a micro-batch was trained on not once, or on other samples than planned.
    """
    found = [_PROOF.validate_python(told) for told in proof]
    after = max(stored.step, found[0].trained_after)
    known = [line for line in found[0].lines if line.step > stored.step]
    steps = list(islice(data.plan.walk(stored), step - stored.step))
    ranks = [RankSteps(part.rank.trained[after - part.trained_after :], part.rank.skipped) for part in found]
    return [*known, *order_lines(data, steps[after - stored.step :], ranks)]
