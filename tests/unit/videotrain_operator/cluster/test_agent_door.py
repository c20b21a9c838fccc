"""What an agent may do to the operator that asks it: nothing. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from support.hostile_agents import HOSTILE, NOW_US, OK, Agent, Asked, nothing, saying
from support.planner_builders import SIGNING_KEY, at, progress
from support.stored_sizes import go_json

from videotrain_api.records import AgentProgress, Roster, RosterNotice
from videotrain_api.resource.stored_size import stored_bytes
from videotrain_api.signing import Answer, Nonces, Request, SkewError
from videotrain_operator.cluster import agents as agents_module
from videotrain_operator.cluster.agents import AgentClient, ask_all
from videotrain_operator.cluster.answers import LARGEST_ANSWER, UnreadableAnswerError, read_progress
from videotrain_operator.simulation.cluster import MASTER_KEY

SECONDS = 60.0


@pytest_asyncio.fixture
async def agent(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> AsyncIterator[Agent]:
    monkeypatch.setattr(agents_module, "PORT_AGENT", unused_tcp_port)
    agent = Agent(SIGNING_KEY)
    server = await asyncio.start_server(agent.serve, "127.0.0.1", unused_tcp_port)
    yield agent
    server.close()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_agent_is_silence_within_time_and_memory(
    name: str, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    agent.say = HOSTILE[name]
    caplog.set_level(logging.DEBUG)
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY, timeout_seconds=1.0) as client:
        tracemalloc.start()
        try:
            assert await client.progress("127.0.0.1", SIGNING_KEY) is None
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 64 * LARGEST_ANSWER, f"{most} bytes"
    assert len(agent.requests) == 1, "no redirect is followed and nothing is asked again"
    for record in caplog.records:
        if record.name.startswith("videotrain"):
            assert record.getMessage().isprintable()
            assert len(record.getMessage()) < 1000


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_receipt_tells_of_nobody(name: str, agent: Agent) -> None:
    agent.say = HOSTILE[name]
    roster = Roster(
        run_uid="u", generation=1, action="stop", stage="train", config_hash="h", reason="Started", members=[],
        port=29400, processes_per_node=8,
    )  # fmt: skip
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY) as client:
        assert await client.tell("127.0.0.1", RosterNotice(roster=roster, seconds=1), SIGNING_KEY) == []


async def test_a_node_whose_clock_is_wrong_is_understood_at_once(agent: Agent) -> None:
    """Its agent refuses the first request and tells its time; the second is signed for that."""
    answer = AgentProgress(pod="demo-w0", pod_uid="u0", at=at(9))

    async def say(writer: asyncio.StreamWriter, asked: Asked) -> None:
        headers = dict(line.split(": ", 1) for line in agent.requests[-1].split("\r\n")[1:] if line)
        question = Request(recipient="127.0.0.1", method="GET", target="/progress")
        try:
            question.verify(SIGNING_KEY, headers, now_us=NOW_US, nonces=Nonces())
        except SkewError:
            writer.write(asked.whole(b"", 401))
        else:
            writer.write(asked.whole(json.dumps(answer.to_wire()).encode()))

    agent.say = say
    async with AgentClient(MASTER_KEY, timeout_seconds=SECONDS) as client:
        assert await client.progress("127.0.0.1", SIGNING_KEY) == answer
        assert await client.progress("127.0.0.1", SIGNING_KEY) == answer
    assert len(agent.requests) == 3


def facts(**changes: Any) -> dict[str, Any]:
    answer = AgentProgress(pod="demo-w0", pod_uid="u0", at=at(9), current=progress(1, 5)).to_wire()
    return answer | {"current": answer["current"] | changes}


def test_what_is_kept_of_an_answer_is_bounded_and_printable() -> None:
    body = facts(
        skippedCheckpoints=["s" * 3000] * 40,
        gpuKinds=["\x1b[31mH200\u202e"] * 1000,
        stacks="deep\n" * 10_000,
    )
    body["error"] = "e" * 10_000
    kept = read_progress(json.dumps(body).encode())
    assert kept.current is not None and kept.current.gpu_kinds is not None
    assert len(json.dumps(kept.to_wire())) < 64 * 1024
    assert kept.current.gpu_kinds[0] == "\\x1b[31mH200\\u202e"
    assert (kept.current.stacks or "").startswith("deep\ndeep\n")
    assert len(kept.current.stacks or "") > 3000


@pytest.mark.parametrize("letter", 'x<"\n\u00e9\u6f22\U0001f600\x00\u2028\U000e0001')
def test_no_letter_takes_more_room_in_a_status_than_another(letter: str) -> None:
    """Counted as the API server stores it, whose JSON writes `<` in six bytes."""
    long = letter * 330
    point = {
        "step": 1,
        "capturedAt": "2026-01-01T00:00:00Z",
        "committedAt": "2026-01-01T00:00:00Z",
        "uri": long,
        "dataStallUs": 0,
        "checkpointUs": 0,
    }
    body = facts(
        stacks=letter * 5000,
        skippedCheckpoints=[long] * 17,
        gpuKinds=[long] * 17,
        saved=[point] * 17,
        curation={"clips": 1, "dropped": {f"{number}{long}": 1 for number in range(40)}},
    )
    kept = read_progress(json.dumps(body, ensure_ascii=False).encode()).current
    assert kept is not None
    assert stored_bytes(kept.stacks or "") in range(3900, 4001)
    assert len(kept.skipped_checkpoints) == 8
    assert max(map(stored_bytes, kept.skipped_checkpoints)) <= 300
    assert kept.gpu_kinds is not None
    assert len(kept.gpu_kinds) == 16
    assert max(map(stored_bytes, kept.gpu_kinds)) <= 100
    assert kept.curation is not None
    assert max(map(stored_bytes, kept.curation.dropped)) <= 64
    assert len(go_json(kept.to_wire())) < 50 * 1024


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63), 10**300])
def test_a_number_that_others_would_read_as_another_is_refused(number: int) -> None:
    with pytest.raises(UnreadableAnswerError, match=r"2\^53"):
        read_progress(json.dumps(facts(step=number)).encode())


def test_what_an_agent_of_a_later_version_tells_beside_is_passed_over() -> None:
    """It would count as silent, and its run would start for ever while it trains and is paid for."""
    plain = facts()
    later = facts(shape={"frames": [1, 2]}) | {"mood": "good"}
    assert read_progress(json.dumps(later).encode()) == read_progress(json.dumps(plain).encode())
    with pytest.raises(UnreadableAnswerError, match="step"):
        read_progress(json.dumps(facts(step="many")).encode())


def test_an_honest_answer_is_kept_as_it_is() -> None:
    answer = AgentProgress(pod="demo-w0", pod_uid="u0", at=at(9), current=progress(1, 5), error="zwei\nZeilen: é")
    assert read_progress(json.dumps(answer.to_wire()).encode()) == answer


async def test_a_tag_that_is_no_utf_8_is_asked_for_as_it_was_told(agent: Agent) -> None:
    """Listening goes on with it."""

    async def say(writer: asyncio.StreamWriter, asked: Asked) -> None:
        etag = b"\xff\x00\xe9"[:1].decode(errors="surrogateescape")
        headers = Answer(status=200, etag=etag, body=b"{}").sign(SIGNING_KEY, asked.nonce, time_us=NOW_US)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        writer.write(OK + b"ETag: \xff\r\nContent-Length: 2\r\n" + head + b"\r\n{}")

    agent.say = say
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY) as client:
        tag = await client.changed("127.0.0.1", "", SIGNING_KEY)
        assert tag is not None
        assert await client.changed("127.0.0.1", tag, SIGNING_KEY) == tag
    assert "known=%FF" in agent.requests[-1]


async def test_an_agent_that_says_nothing_readable_is_left_alone_and_told_of_once(
    agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents_module, "FIRST_SILENCE_SECONDS", 0.01)
    agent.say = saying(lambda asked: asked.whole(b"[]"))
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY, longest_silence_seconds=0.01) as client:
        for _ in range(5):
            assert await client.progress("127.0.0.1", SIGNING_KEY) is None
            assert client.silent_seconds("127.0.0.1") > 0
            await asyncio.sleep(0.02)
        assert client.refused["unreadable"] == 5
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


HOSTILE_KEY = bytes(32)
"""Of another run."""


@pytest_asyncio.fixture
async def two_runs(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> AsyncIterator[Agent]:
    """An honest agent on 127.0.0.1; whoever else is asked on loopback says nothing."""
    monkeypatch.setattr(agents_module, "PORT_AGENT", unused_tcp_port)
    honest, hostile = Agent(SIGNING_KEY), Agent(HOSTILE_KEY)
    body = json.dumps(AgentProgress(pod="demo-w0", pod_uid="u0", at=at(9)).to_wire()).encode()
    honest.say, hostile.say = saying(lambda asked: asked.whole(body)), nothing

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours = writer.get_extra_info("sockname")[0] == "127.0.0.1"
        await (honest if ours else hostile).serve(reader, writer)

    server = await asyncio.start_server(serve, "0.0.0.0", unused_tcp_port, backlog=2048)
    yield hostile
    server.close()


MANY = [f"127.1.{number // 250}.{number % 250 + 1}" for number in range(600)]


async def test_agents_that_stall_keep_no_other_run_from_being_heard(two_runs: Agent) -> None:
    """Neither those that are asked nor those that hold a question."""
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY, timeout_seconds=5.0) as client:
        stalled = [asyncio.create_task(client.progress(address, HOSTILE_KEY)) for address in MANY]
        stalled += [asyncio.create_task(client.changed(address, "", HOSTILE_KEY)) for address in MANY]
        while len(two_runs.requests) < 2 * agents_module.CONNECTIONS_OF_A_RUN:
            await asyncio.sleep(0.01)
        assert await client.progress("127.0.0.1", SIGNING_KEY) is not None
        assert await client.changed("127.0.0.1", "", SIGNING_KEY) is not None
        assert len(two_runs.requests) == 2 * agents_module.CONNECTIONS_OF_A_RUN
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)


async def test_many_runs_whose_agents_stall_keep_none_from_being_heard(
    two_runs: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has few agents, together they want more connections than there are."""
    monkeypatch.setattr(agents_module, "CONNECTIONS", 128)
    runs = range(1, 61)
    wanted = [(f"127.2.{run}.{place}", bytes([run]) * 32) for run in runs for place in range(1, 6)]
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY, timeout_seconds=SECONDS) as client:
        stalled = [asyncio.create_task(client.progress(address, key)) for address, key in wanted]
        stalled += [asyncio.create_task(client.changed(address, "", key)) for address, key in wanted]
        while len(two_runs.requests) < 2 * len(runs):
            await asyncio.sleep(0.01)
        assert await client.progress("127.0.0.1", SIGNING_KEY) is not None
        assert await client.changed("127.0.0.1", "", SIGNING_KEY) is not None
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)


async def test_whoever_waits_for_a_connection_is_not_silent(two_runs: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand leaders hold a question for as long as they have no news, and others are listened to after them."""
    monkeypatch.setattr(agents_module, "CONNECTIONS", 1)
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY, timeout_seconds=0.2) as client:
        monkeypatch.setattr(client, "_patience", agents_module.aiohttp.ClientTimeout(total=0.2))
        holding = [asyncio.create_task(client.changed(f"127.1.0.{n}", "", bytes([n]) * 32)) for n in (1, 2)]
        await asyncio.sleep(0)  # they have asked first
        waiting = asyncio.create_task(client.changed("127.0.0.1", "", SIGNING_KEY))
        assert await asyncio.gather(*holding) == [None, None], "these were silent, one after the other"
        assert await waiting is not None
        assert client.silent_seconds("127.0.0.1") == 0


async def test_a_run_is_asked_for_a_limited_time(two_runs: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answered by then is heard; how long that takes depends on who else has the machine."""
    async with asyncio.timeout(SECONDS), AgentClient(MASTER_KEY, timeout_seconds=SECONDS) as client:
        begun = time.monotonic()
        assert await client.progress("127.0.0.1", SIGNING_KEY) is not None
        taken = 50 * (time.monotonic() - begun)
        monkeypatch.setattr(agents_module, "PASS_SECONDS", max(agents_module.PASS_SECONDS, min(taken, SECONDS / 2)))
        pods = [("honest", "127.0.0.1"), *((address, address) for address in MANY)]
        assert set(await ask_all(client, SIGNING_KEY, pods)) == {"honest"}
