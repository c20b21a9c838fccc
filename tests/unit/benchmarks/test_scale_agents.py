"""The simulated agents of the scale benchmark answer as the real one does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from scale.agents import Crowd, Pace, SimulatedAgent, _with_news

from videotrain.processes.addresses import free_ports
from videotrain_api.records import Roster, RosterMember, RosterNotice
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_operator.cluster import agents

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MASTER = bytes(range(32))
PACE = Pace(start_seconds=2, step_seconds=10)


def at(seconds):
    return NOON + timedelta(seconds=seconds)


def roster(generation, *pods, action="run"):
    return Roster(
        run_uid="u",
        generation=generation,
        action=action,
        stage="train",
        config_hash="h",
        reason="Started",
        members=[RosterMember(pod=pod, address="10.64.0.1", uid=f"uid-{pod}") for pod in pods],
        port=29400,
        processes_per_node=8,
    )


def test_an_agent_is_idle_until_a_roster_names_it():
    agent = SimulatedAgent("a-w0", "uid-a-w0", PACE)
    assert agent.progress(NOON).current is None
    agent.obey(roster(1, "a-w1"), NOON)
    assert agent.progress(NOON).current is None
    assert agent.progress(NOON).roster_generation == 1


def test_steps_begin_after_the_start_and_go_on_slowly():
    agent = SimulatedAgent("a-w0", "uid-a-w0", PACE)
    agent.obey(roster(1, "a-w0", "a-w1"), NOON)
    assert agent.progress(at(1)).current.state == "starting"
    assert agent.progress(at(1)).current.world_size == 16
    running = agent.progress(at(25)).current
    assert (running.state, running.step, running.first_step_at, running.last_step_at) == ("running", 3, at(2), at(22))


def test_a_standing_counter_stands():
    agent = SimulatedAgent("a-w0", "uid-a-w0", Pace(start_seconds=2, step_seconds=0))
    agent.obey(roster(1, "a-w0"), NOON)
    assert agent.progress(at(1000)).current.step == 1


def test_a_newer_roster_ends_the_generation_and_an_older_one_is_ignored():
    agent = SimulatedAgent("a-w0", "uid-a-w0", PACE)
    agent.obey(roster(2, "a-w0"), NOON)
    agent.obey(roster(3, "a-w0"), at(5))
    agent.obey(roster(1, "a-w0"), at(6))
    answer = agent.progress(at(6))
    assert (answer.current.generation, answer.previous.generation, answer.previous.state) == (3, 2, "drained")
    assert answer.previous.ended_at == at(5)


def test_a_stop_ends_the_workers():
    agent = SimulatedAgent("a-w0", "uid-a-w0", PACE)
    agent.obey(roster(1, "a-w0"), NOON)
    agent.obey(roster(2, action="stop"), at(5))
    assert agent.progress(at(6)).current.state == "drained"


def test_finished_workers_have_done_all_steps():
    agent = SimulatedAgent("a-w0", "uid-a-w0", PACE)
    agent.obey(roster(1, "a-w0"), NOON)
    agent.finish(at(5))
    facts = agent.progress(at(6)).current
    assert (facts.state, facts.step, facts.exit.outcome, facts.ended_at) == (
        "succeeded",
        facts.total_steps,
        "completed",
        at(5),
    )


def pod(uid, address="10.64.0.1"):
    return {"pod": {"name": "a-w0", "uid": uid, "address": address, "run": "u"}}


def test_a_new_pod_at_an_address_is_another_agent_and_a_late_goodbye_leaves_it_alone():
    crowd = Crowd(PACE, MASTER)
    crowd.order(pod("old"), NOON)
    crowd.order(pod("new"), NOON)
    crowd.order({"gone": "10.64.0.1", "uid": "old"}, NOON)
    assert crowd.agents["10.64.0.1"].progress(NOON).pod_uid == "new"
    crowd.order({"gone": "10.64.0.1", "uid": "new"}, NOON)
    assert crowd.agents == {}


@pytest.fixture
async def crowd(monkeypatch):
    """Agents of one run at three loopback addresses, and what they were told."""
    told = []
    crowd = Crowd(PACE, MASTER, lambda uid, roster: told.append((uid, roster.order())))
    crowd.told = told
    app = web.Application()
    app.add_routes(crowd.routes())
    runner = web.AppRunner(app)
    await runner.setup()
    addresses = [f"127.83.4.{number}" for number in (1, 2, 3)]
    port = free_ports(1)[0]
    for number, address in enumerate(addresses):
        crowd.order(pod(f"uid-a-w{number}", address), NOON)
        await web.TCPSite(runner, address, port).start()
    monkeypatch.setattr(agents, "PORT_AGENT", port)
    yield crowd
    await runner.cleanup()


async def test_the_operators_own_client_is_answered_and_its_roster_reaches_all(crowd):
    async with agents.AgentClient(MASTER) as client:
        key = client.signing_key("u")
        assert (await client.progress("127.83.4.1", key)).roster_generation is None
        notice = RosterNotice(roster=roster(1, "a-w0"), to=["127.83.4.2", "127.83.4.9"], seconds=5)
        assert sorted(await client.tell("127.83.4.1", notice, key)) == ["127.83.4.1", "127.83.4.2"]
        assert (await client.progress("127.83.4.2", key)).roster_generation == 1
        await client.tell("127.83.4.1", notice, key)
    assert crowd.told == [("uid-a-w0", (1, False, 0)), ("uid-a-w1", (1, False, 0))], "told once each"


async def test_another_runs_key_is_refused(crowd):
    async with agents.AgentClient(MASTER) as client:
        assert await client.progress("127.83.4.1", client.signing_key("another run")) is None


async def test_a_question_is_held_until_there_is_news():
    agent = SimulatedAgent("a-w0", "uid-a-w0", Pace(start_seconds=3600, step_seconds=0))
    known = agent.progress(datetime.now(UTC)).tag()
    held = asyncio.create_task(_with_news(agent, known, 60))
    await asyncio.sleep(0)
    assert not held.done()
    agent.obey(roster(1, "a-w0"), datetime.now(UTC))
    assert (await held).roster_generation == 1


async def test_an_unknown_tag_is_answered_at_once_and_a_wait_ends():
    agent = SimulatedAgent("a-w0", "uid-a-w0", PACE)
    assert (await _with_news(agent, "another", 3600)).current is None
    known = agent.progress(datetime.now(UTC)).tag()
    assert (await _with_news(agent, known, 0.01)).tag() == known


async def test_the_first_step_is_news():
    agent = SimulatedAgent("a-w0", "uid-a-w0", Pace(start_seconds=0.05, step_seconds=0))
    agent.obey(roster(1, "a-w0"), datetime.now(UTC))
    known = agent.progress(agent.current.launched_at).tag()
    assert (await _with_news(agent, known, 3600)).current.state == "running"


def test_the_manifest_is_valid_and_elastic_only_where_asked():
    from scale.subjects import run_manifest

    from videotrain_api.resource.stages import node_counts
    from videotrain_api.resource.trainrun import node_bounds

    for elastic, sizes in ((False, [8]), (True, [6, 7, 8])):
        run = VideoTrainingRun.from_wire(run_manifest("a", 8, elastic=elastic))
        assert list(node_counts(node_bounds(run, run.spec.stages[0]))) == sizes
