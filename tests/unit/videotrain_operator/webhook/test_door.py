"""The webhook's door, real HTTPS on loopback: whatever comes in, it goes on answering, in bounded memory."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from support.manifests_strategy import training_run
from support.webhook_store import WebhookStore

from videotrain_operator.webhook import server as server_module
from videotrain_operator.webhook.judge import JudgeDied, Judges
from videotrain_operator.webhook.review import BadReview, answer
from videotrain_operator.webhook.server import Webhook

SECONDS = 60.0
LIMIT_BYTES = 1024**3
"""Of the operator's pod in the chart."""
OPERATOR_BYTES = 300 * 2**20
"""What the operator itself takes of that; its peak with 8,000 pods was 266 MiB."""


def body(manifest: Any = None) -> bytes:
    return json.dumps(
        {"request": {"uid": "u", "operation": "CREATE", "object": manifest or training_run("a")}}
    ).encode()


@pytest_asyncio.fixture
async def judges() -> AsyncIterator[Judges]:
    async with asyncio.timeout(SECONDS), Judges(1) as judges:
        yield judges


def child() -> psutil.Process:
    (found,) = [p for p in psutil.Process().children() if "videotrain_operator.webhook.judge" in p.cmdline()]
    return found


async def test_a_child_says_what_the_review_says(judges: Judges) -> None:
    wrong = training_run("a") | {"spec": {}}
    for one in (body(), body(wrong), body()):
        assert await judges.judge(one) == answer(one)
    with pytest.raises(BadReview, match="no JSON"):
        await judges.judge(b"[" * 100_000)
    assert (await judges.judge(body()))[0] == "allowed"
    assert judges.died == 0


async def test_a_child_that_dies_costs_one_review(judges: Judges) -> None:
    await judges.judge(body())
    first = child()
    first.send_signal(signal.SIGSTOP)
    given = asyncio.create_task(judges.judge(body()))
    await asyncio.sleep(0)
    first.kill()
    with pytest.raises(JudgeDied):
        await given
    assert (await judges.judge(body()))[0] == "allowed"
    assert judges.died == 1


async def test_a_review_that_is_given_up_ends_its_child_and_answers_nobody_else(judges: Judges) -> None:
    await judges.judge(body())
    stopped = child()
    stopped.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await judges.judge(body(training_run("a") | {"spec": {}}))
    assert (await judges.judge(body()))[0] == "allowed"
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


@pytest_asyncio.fixture
async def webhook(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Webhook]:
    monkeypatch.setattr(server_module, "BODY_SECONDS", 1.0)
    webhook = Webhook(
        WebhookStore(),  # type: ignore[arg-type]
        address="127.0.0.1",
        port=0,
        service="hooks",
        namespace="videotrain",
        secret_namespace="videotrain",
        secret="tls",
        configuration="videotrain",
    )
    task = asyncio.create_task(webhook.run())
    async with asyncio.timeout(4 * SECONDS):
        while not webhook.ready:
            assert not task.done(), task
            await asyncio.sleep(0.02)
        yield webhook
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def stall(port: int, head: bytes, more: bytes = b"") -> None:
    """Begin a request and never end it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
    writer.write(head + more)
    await writer.drain()


HEAD = b"POST /validate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HOSTILE: dict[str, bytes] = {
    "100,000 levels": b'{"a":' * 100_000,
    "levels that end": b"[" * 100_000 + b"]" * 100_000,
    "no JSON": b"NaN, what",
    "NaN": b'{"request": NaN}',
    "surrogate": b'{"request": {"uid": "\\ud800"}}',
    "no UTF-8": b"\xff\xfe{}",
    "nothing": b"",
    "a number of 5 MB": b"9" * 5_000_000,
    "100 MB": b" " * 100_000_000,
}


async def test_hostile_requests_end_nothing(webhook: Webhook) -> None:
    """Those who stall hold half of the seats while the rest comes in; honest reviews go through beside them."""
    url = f"https://127.0.0.1:{webhook.port}/validate"
    before = psutil.Process().memory_info().rss  # of this process, which has whatever other tests imported
    stalls = [HEAD + b"Content-Length: 1000\r\n\r\n{", HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{", HEAD]
    await asyncio.gather(*(stall(webhook.port, head) for head in stalls for _ in range(3)))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as session:
        for name, hostile in HOSTILE.items():
            try:
                async with session.post(url, data=hostile) as response:
                    assert response.status in (400, 413, 503), (name, response.status)
            except aiohttp.ClientError:
                pass  # cut off while it was still talking
            async with session.post(url, data=body()) as response:
                assert response.status == 200, name
                assert (await response.json())["response"]["allowed"] is True
    processes = [psutil.Process(), *psutil.Process().children()]
    assert sum(process.memory_info().rss for process in processes) - before < LIMIT_BYTES - OPERATOR_BYTES


async def test_half_a_handshake_holds_up_nobody(webhook: Webhook) -> None:
    writers = [(await asyncio.open_connection("127.0.0.1", webhook.port))[1] for _ in range(50)]
    for writer in writers:
        writer.write(b"\x16\x03\x01" + struct.pack("!H", 512) + b"\x01")
    url = f"https://127.0.0.1:{webhook.port}/validate"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting())) as session,
        session.post(url, data=body()) as response,
    ):
        assert response.status == 200
    for writer in writers:
        writer.close()


async def test_a_flood_leaves_the_event_loop_its_turns(webhook: Webhook) -> None:
    """200 reviews at once, and passes of runs go on in between."""
    url, turns = f"https://127.0.0.1:{webhook.port}/validate", 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(), limit=0)) as session:

        async def one() -> int:
            async with session.post(url, data=body()) as response:
                return response.status

        turning = asyncio.create_task(turn())
        statuses = await asyncio.gather(*(one() for _ in range(200)))
        turning.cancel()
    assert set(statuses) <= {200, 503} and 200 in statuses
    assert turns > 2 * len(statuses), "no review was judged in the loop itself"
