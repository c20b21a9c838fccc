"""Random lives in which nobody can be relied on: the bill is exact or marked as an estimate, and never too high."""

from __future__ import annotations

import os

import pytest
from support.bill_lives import live

LIVES = int(os.environ.get("VIDEOTRAIN_BILL_LIVES", "300"))
POOLED = LIVES // 10
BATCH = 100
"""Most lives of a test: some ten seconds of a core, so that no limit of time ends it where others share the core."""
BATCHES = max(10, LIVES // BATCH)
POOLED_BATCHES = max(1, POOLED // BATCH)


@pytest.mark.parametrize("batch", range(BATCHES))
async def test_a_bill_is_exact_or_marked_as_estimated_and_never_too_high(batch: int) -> None:
    verdicts = [await live(seed) for seed in range(batch, LIVES, BATCHES)]
    assert [problem for problem in (verdict.problem() for verdict in verdicts) if problem] == []
    held = [verdict for verdict in verdicts if verdict.told]
    assert sum(verdict.billed > 0 for verdict in held) > 0.9 * len(held)
    assert sum(not verdict.estimated for verdict in held) > 0.5 * len(held), "an estimate is the exception"


@pytest.mark.parametrize("batch", range(POOLED_BATCHES))
async def test_a_bill_over_several_pools_is_exact_for_each_or_marked_as_estimated(batch: int) -> None:
    verdicts = [await live(seed, pools=True) for seed in range(batch, POOLED, POOLED_BATCHES)]
    assert [problem for problem in (verdict.problem() for verdict in verdicts) if problem] == []
    assert sum(not verdict.estimated for verdict in verdicts) > 0.4 * len(verdicts), "an estimate is the exception"
    assert sum(len(verdict.told_by_pool) > 1 for verdict in verdicts) > 0.1 * len(verdicts), "runs change their pool"
