"""Whatever strangers send to the webhook or say as agents is answered or refused, bounded, and nothing else happens.

`tox -e cluster -- tests/cluster/test_doors.py` does the same to a whole operator, for minutes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.hostile_load import PROGRESS
from support.manifests_strategy import training_run
from support.odd_json import mutated

from videotrain_api.records import RosterReceipt
from videotrain_operator.cluster.answers import UnreadableAnswerError, read_progress, read_receipt
from videotrain_operator.webhook.judge import LARGEST_ANSWER
from videotrain_operator.webhook.review import BadReview, answer

FUZZ = settings(max_examples=300)
seeds = st.integers(0, 2**32)
REFUSALS = (BadReview, UnreadableAnswerError)


def told(read: Callable[[bytes], Any], body: bytes) -> Any:
    """What a reader makes of a body, or its refusal."""
    try:
        return read(body)
    except REFUSALS as refusal:
        return refusal


def is_refusal(found: Any) -> bool:
    if not isinstance(found, REFUSALS):
        return False
    assert len(str(found)) < 1000
    return True


@FUZZ
@given(seeds)
@example(39514)  # no spec any more
@example(1698)  # no object
def test_a_review_is_answered_or_is_none(seed: int) -> None:
    draw = random.Random(seed)
    request = {"uid": "u", "operation": draw.choice(("CREATE", "UPDATE")), "object": training_run("a")}
    if draw.random() < 0.5:
        request["oldObject"] = training_run("a", ("train", "train"))
    found = told(answer, mutated(draw, {"request": request}))
    if not is_refusal(found):
        outcome, said = found
        assert outcome in ("allowed", "denied", "skipped"), said
        assert len(json.dumps(said).encode()) < LARGEST_ANSWER


@FUZZ
@given(seeds)
def test_progress_is_read_bounded_or_is_unreadable(seed: int) -> None:
    found = told(read_progress, mutated(random.Random(seed), PROGRESS.to_wire()))
    if is_refusal(found):
        assert str(found).isprintable()
    else:
        assert len(json.dumps(found.to_wire(), allow_nan=False, ensure_ascii=False).encode()) < 64 * 1024


@FUZZ
@given(seeds)
def test_a_receipt_is_read_or_is_unreadable(seed: int) -> None:
    receipt = RosterReceipt(told=["10.0.0.1", "10.0.0.2"]).to_wire()
    found = told(read_receipt, mutated(random.Random(seed), receipt))
    assert not is_refusal(found) or str(found).isprintable()


@FUZZ
@given(st.binary(max_size=2000))
@example(b"\xff\xfe")
@example(b'"\\ud800"')
@example(b"1e400")
def test_bytes_that_are_no_json_are_refused(body: bytes) -> None:
    for read in (read_progress, read_receipt, answer):
        assert is_refusal(told(read, body)), read
