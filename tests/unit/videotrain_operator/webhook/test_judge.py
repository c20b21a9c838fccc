"""The children that judge reviews: whatever a review does to one, the next review is answered."""

from __future__ import annotations

import asyncio
import copy
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from support.manifests_strategy import review_body, training_run

from videotrain_api.render.defaults import parse_defaults
from videotrain_operator.webhook.judge import MEMORY_BYTES, MOST_LINES, JudgeDied, Judges
from videotrain_operator.webhook.review import BadReview, answer

SECONDS = 60.0


@pytest_asyncio.fixture
async def judges() -> AsyncIterator[Judges]:
    async with asyncio.timeout(SECONDS), Judges(1) as judges:
        yield judges


def child() -> psutil.Process:
    (found,) = [p for p in psutil.Process().children() if "videotrain_operator.webhook.judge" in p.cmdline()]
    return found


async def test_a_child_says_what_the_review_says(judges: Judges) -> None:
    wrong = training_run("a") | {"spec": {}}
    for one in (review_body(), review_body(wrong), review_body()):
        assert await judges.judge(one) == answer(one)
    with pytest.raises(BadReview, match="no JSON"):
        await judges.judge(b"[" * 100_000)
    assert (await judges.judge(review_body()))[0] == "allowed"
    assert judges.died == 0


async def test_a_child_judges_by_the_policy_that_it_is_given() -> None:
    run = training_run("a")
    run["spec"]["podTemplate"] = {"spec": {"hostNetwork": True}}
    for policy, outcome in (("any", "allowed"), ("restricted", "denied")):
        async with asyncio.timeout(SECONDS), Judges(1, pod_policy=policy) as judges:
            assert (await judges.judge(review_body(run)))[0] == outcome


async def test_a_child_that_dies_costs_one_review(judges: Judges) -> None:
    await judges.judge(review_body())
    first = child()
    first.send_signal(signal.SIGSTOP)
    given = asyncio.create_task(judges.judge(review_body()))
    await asyncio.sleep(0)
    first.kill()
    with pytest.raises(JudgeDied):
        await given
    assert (await judges.judge(review_body()))[0] == "allowed"
    assert judges.died == 1


async def test_a_review_that_is_given_up_ends_its_child_and_answers_nobody_else(judges: Judges) -> None:
    await judges.judge(review_body())
    stopped = child()
    stopped.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await judges.judge(review_body(training_run("a") | {"spec": {}}))
    assert (await judges.judge(review_body()))[0] == "allowed"
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


STORED_BYTES = 3 * 2**19
"""The largest object that etcd takes by default."""


def crowded(kind: str, size: int = STORED_BYTES) -> Any:
    """A manifest of a size that makes its reader work."""
    manifest = copy.deepcopy(training_run("a"))
    unit = {"fields": "[]", "numbers": "1"}.get(kind, "")
    if kind == "unknown names":
        manifest["spec"] |= {f"k{number}": 0 for number in range(size // 14)}
    else:
        manifest["spec"]["extra"] = [json.loads(unit)] * (size // (len(unit) + 2))
    return manifest


def change(manifest: Any) -> bytes:
    """A review of a manifest that was as large before."""
    request = {"uid": "u", "operation": "UPDATE", "oldObject": manifest}
    new = manifest | {"spec": manifest["spec"] | {"suspend": True}}
    return json.dumps({"request": request | {"object": new}}).encode()


@pytest.mark.parametrize("kind", ["fields", "numbers", "unknown names"])
async def test_what_can_be_stored_can_be_judged(kind: str, judges: Judges) -> None:
    """Within the memory and the time of a child; its problems were there before."""
    outcome, review = await judges.judge(change(crowded(kind)))
    assert outcome == "allowed" and review["response"]["warnings"]
    assert judges.died == 0 and child().memory_info().vms <= MEMORY_BYTES


async def test_a_review_that_takes_too_long_is_given_up_and_its_child_goes_on() -> None:
    async with asyncio.timeout(SECONDS), Judges(1, cpu_seconds=0.2) as judges:
        with pytest.raises(JudgeDied, match=r"more than 0\.2 s of CPU"):
            await judges.judge(change(crowded("fields", 2 * STORED_BYTES)))
        first = child()
        assert (await judges.judge(review_body()))[0] == "allowed"
        assert child() == first


async def test_a_review_that_takes_too_much_memory_costs_itself() -> None:
    async with asyncio.timeout(SECONDS), Judges(1, memory_bytes=80 * 2**20) as judges:
        with pytest.raises(JudgeDied):
            await judges.judge(change(crowded("fields")))
        assert (await judges.judge(review_body()))[0] == "allowed"


async def test_a_child_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch, judges: Judges) -> None:
    async def full(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", full)
        with pytest.raises(JudgeDied, match="no more processes"):
            await judges.judge(review_body())
    assert (await judges.judge(review_body()))[0] == "allowed"


async def test_a_uid_that_no_api_server_makes_is_no_review(judges: Judges) -> None:
    """An answer repeats it."""
    with pytest.raises(BadReview, match="at most 256"):
        await judges.judge(json.dumps({"request": {"uid": "u" * 3_000_000, "operation": "DELETE"}}).encode())
    assert judges.died == 0


async def test_the_log_of_a_child_is_bounded_and_cannot_be_forged(
    judges: Judges, caplog: pytest.LogCaptureFixture
) -> None:
    name = "a\n2026 ERROR forged \x1b[31m" + "x" * 100_000
    request = {"uid": "u", "operation": "CREATE", "namespace": name, "object": {"metadata": {"generateName": [name]}}}
    manifest = request["object"] | {"apiVersion": "videotrain.dev/v1alpha1", "kind": "VideoTrainingRun", "spec": []}
    await judges.judge(json.dumps({"request": request | {"object": manifest}}).encode())
    for record in caplog.records:
        assert record.getMessage().isprintable() and len(record.getMessage()) < 10_000


async def test_what_a_child_prints_comes_into_the_log_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONVERBOSE", "1")  # some 100 KB
    async with asyncio.timeout(SECONDS), Judges(1) as judges:
        assert (await judges.judge(review_body()))[0] == "allowed"
    printed = [record.getMessage() for record in caplog.records if "judge printed" in record.getMessage()]
    assert 1 <= len(printed) <= MOST_LINES
    assert all(line.isprintable() and len(line) < 1100 for line in printed)
    assert capfd.readouterr().err == ""


async def test_a_child_judges_by_the_defaults_of_now(judges: Judges) -> None:
    run = training_run("a")
    run["spec"]["image"] = "mine:1"
    seen = [(await judges.judge(review_body(run)))[0]]
    for enforced in (["image"], []):
        judges.take_defaults(parse_defaults({"image": "theirs:1", "enforced": enforced}))
        outcome, review = await judges.judge(review_body(run))
        seen.append(outcome)
        if enforced:
            assert "runDefaults.image" in review["response"]["status"]["message"]
    assert seen == ["allowed", "denied", "allowed"]
    assert judges.died == 0
