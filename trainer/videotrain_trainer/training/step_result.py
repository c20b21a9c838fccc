"""What the world did in a step, put together from what each rank knows of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from torch import Tensor

from videotrain_trainer.data.sample_order import StepOrder
from videotrain_trainer.errors import Diverged, TrainerError
from videotrain_trainer.worker.stage_reporter import Measured, Work


class RankStep(NamedTuple):
    """One rank's row in the table of a step; all numbers are exact in float64."""

    loss: float
    """Sum over its micro-batches."""
    gradient_norm: float
    critic_norm: float
    """Of the discriminator; 0 without one."""
    samples: float
    tokens: float
    model_flops: float
    hardware_flops: float
    useful_flops: float
    micro_batches: float
    samples_hash: float
    """Of the samples that it trained on."""
    data: float
    """Microseconds, as are the next four; see `timing.Phase`."""
    forward: float
    backward: float
    communication: float
    optimizer: float
    memory: float
    """Most bytes held."""
    requests: float
    """For samples, since the step before; see `data.sample_reader.ReadingCounts`."""
    second: float
    again: float
    slowest_sample: float
    """Microseconds."""
    cache_hits: float
    cache_misses: float
    cache_bytes: float
    drain: float
    """1 for yes; see Wishes."""
    save: float


class Wishes(NamedTuple):
    """What a process asks of the world; it is done at one step by all of them if one asks."""

    drain: bool = False
    """It was asked to stop."""
    save: bool = False
    """A checkpoint is due by the clock; only rank 0 tells it."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step of the whole world, equal on all ranks but for `finished_at`."""

    finished_at: datetime
    """When this rank's device was done with it."""
    work: Work
    measured: Measured
    agreed: Wishes
    """What some rank asks for."""


def world_result(table: Tensor, order: StepOrder, finished_at: datetime, learning_rate: float) -> StepResult:
    """The result of a step.

    Args:
        table: (ranks, fields of RankStep) float64.
        order: of the step.
        finished_at: see StepResult.
        learning_rate: of the step.
    """
    columns = dict(zip(RankStep._fields, table.unbind(dim=1), strict=True))
    totals = {name: float(column.sum()) for name, column in columns.items()}
    compute = columns["forward"] + columns["backward"]
    slowest, excess = straggler(compute, columns["micro_batches"])
    measured: Measured = {
        "loss": totals["loss"] / len(order.micro_batches),
        "gradient_norm": float(columns["gradient_norm"][0]),
        "learning_rate": learning_rate,
        "bucket": order.bucket,
        "data_stall_us": int(columns["data"].max()),
        "forward_us": _mean(columns["forward"]),
        "backward_us": _mean(columns["backward"]),
        "communication_us": _mean(columns["communication"]),
        "optimizer_us": _mean(columns["optimizer"]),
        "memory_bytes": int(columns["memory"].max()),
        "world_spread": _spread(compute),
        "slowest_rank": slowest,
        "straggler_ratio": excess,
        "sample_requests": int(totals["requests"]),
        "second_requests": int(totals["second"]),
        "repeated_requests": int(totals["again"]),
        "slowest_sample_us": int(columns["slowest_sample"].max()),
        "cache_hits": int(totals["cache_hits"]),
        "cache_misses": int(totals["cache_misses"]),
        "cache_bytes": int(columns["cache_bytes"].max()),
    }
    work = Work(
        samples=int(totals["samples"]),
        tokens=int(totals["tokens"]),
        model_flops=totals["model_flops"],
        hardware_flops=totals["hardware_flops"],
        useful_flops=totals["useful_flops"],
    )
    agreed = Wishes(drain=totals["drain"] > 0, save=totals["save"] > 0)
    return StepResult(finished_at=finished_at, work=work, measured=measured, agreed=agreed)


def check_finite(table: Tensor, order: StepOrder) -> None:
    """Refuse a step in which any rank met a value that is not finite; all ranks do so alike.

    Raises:
        Diverged: names the value and what to change.
    """
    columns = dict(zip(RankStep._fields, table.unbind(dim=1), strict=True))
    remedy = "lower optimizer.learningRate, add warmupSteps or look at the step's samples"
    critic = "lower autoencoder.adversarial.learningRate"
    checks: tuple[tuple[str, Literal["loss", "gradient_norm", "critic_norm"], str], ...] = (
        ("loss", "loss", remedy),
        ("gradient norm", "gradient_norm", remedy),
        ("discriminator's gradient norm", "critic_norm", critic),
    )
    for what, name, advice in checks:
        value = float(columns[name].sum())
        # DeepSpeed tells a norm that is not finite as -1 in some places.
        if not math.isfinite(value) or (name != "loss" and float(columns[name].min()) < 0):
            raise Diverged(f"step {order.step} (bucket {order.bucket}): the {what} is {value}; {advice}")


def samples_hash(uids: Iterable[str]) -> float:
    """48 bits of which samples these are, in order."""
    return float(int.from_bytes(hashlib.blake2b("\0".join(uids).encode(), digest_size=6).digest(), "big"))


def check_groups(table: Tensor, degree: int, order: StepOrder) -> None:
    """Refuse a step in which ranks that share micro-batches had other samples in them; all ranks do so alike.

    A sample that only one machine reads as damaged has a stand-in on that machine alone.

    Raises:
        TrainerError: names the ranks.
    """
    hashes = table[:, RankStep._fields.index("samples_hash")].view(-1, degree)
    apart = (hashes != hashes[:, :1]).any(dim=1).nonzero().flatten().tolist()
    if apart:
        ranks = ", ".join(f"{group * degree} to {group * degree + degree - 1}" for group in apart)
        raise TrainerError(
            f"step {order.step} (bucket {order.bucket}): ranks {ranks} share their micro-batches, but trained on "
            "different samples: some machine reads as damaged what others read well. Nothing of it is saved; look for "
            "skipped samples in the logs of these ranks"
        )


def straggler(compute: Tensor, micro_batches: Tensor) -> tuple[int | None, float | None]:
    """The rank that computes slowest, and how much longer than the median it takes for a micro-batch.

    Ranks without a micro-batch have nothing to be slow at; ranks with more of them are not slower for it.

    Args:
        compute: time of each rank's forward and backward passes.
        micro_batches: of each rank.
    """
    busy = (micro_batches > 0).nonzero().flatten()
    if not len(busy):
        return None, None
    each = compute[busy] / micro_batches[busy]
    place, median = int(each.argmax()), float(each.median())
    return int(busy[place]), float(each[place]) / median - 1 if median else 0.0


def _mean(column: Tensor) -> int:
    return round(float(column.mean()))


def _spread(compute: Tensor) -> float:
    mean = float(compute.mean())
    return float(compute.max() - compute.min()) / mean if mean else 0.0
