"""Simulated agents: one HTTP server that answers as the agent of whichever pod was asked.

KWOK's pods run nothing, so nobody listens at their addresses. This process answers on all of them (see network.py) and
tells the pods apart by the address that was asked. An agent is idle until there is a roster with its pod, then
`starting`, `running` and, once the driver says so, `succeeded`. The driver feeds it pods and orders as JSON lines on
standard input; it prints `ready` when it listens. It is part of the driver: its CPU is not the cluster's.

    python -m scale.agents --start-seconds 0.5 --step-seconds 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from aiohttp import web

from videotrain_api.records import AgentProgress, GenerationProgress, Roster, WorkerExit
from videotrain_api.vocabulary import PORT_AGENT

TOTAL_STEPS: Final = 100_000
LONGEST_WAIT_SECONDS: Final = 60.0
LINE_LIMIT: Final = 2**22
Json = dict[str, Any]


@dataclass(frozen=True)
class Pace:
    """How fast workers are."""

    start_seconds: float
    """From roster to the first step."""
    step_seconds: float
    """Of each further step; 0: the counter stands still after the first."""


@dataclass
class SimulatedAgent:
    """The agent of one pod and its workers. Time is an argument."""

    pod: str
    uid: str
    pace: Pace
    roster: Roster | None = None
    current: GenerationProgress | None = None
    previous: GenerationProgress | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def obey(self, roster: Roster, now: datetime) -> None:
        """Take note of a roster; an old one is ignored."""
        if self.roster is not None and roster.order() <= self.roster.order():
            return
        self.roster = roster
        self._end("drained", now)
        if roster.action == "run" and roster.rank(self.uid) is not None:
            self.previous, self.current = self.current, self._launched(roster, now)
        self.tell()

    def finish(self, now: datetime) -> None:
        """The workers complete the stage."""
        self._end("succeeded", now)
        self.tell()

    def leave(self, now: datetime) -> None:
        """The pod is told to end: the workers stop in good order."""
        self._end("drained", now)
        self.tell()

    def tell(self) -> None:
        """Wake those who wait for news."""
        self.news.set()
        self.news = asyncio.Event()

    def progress(self, now: datetime) -> AgentProgress:
        """The answer of /progress."""
        generation = self.roster.generation if self.roster else None
        return AgentProgress(
            pod=self.pod,
            pod_uid=self.uid,
            at=now,
            roster_generation=generation,
            current=self._facts(now),
            previous=self.previous,
        )

    def first_step_in(self, now: datetime) -> float | None:
        """Seconds until the first step is done, which is news; None if it is done or will never be."""
        facts = self.current
        if facts is None or facts.ended_at is not None:
            return None
        left = (facts.launched_at + timedelta(seconds=self.pace.start_seconds) - now).total_seconds()
        return left if left > 0 else None

    def _launched(self, roster: Roster, now: datetime) -> GenerationProgress:
        return GenerationProgress(
            generation=roster.generation,
            stage=roster.stage,
            state="starting",
            world_size=len(roster.members) * roster.processes_per_node,
            resumed_step=0,
            total_steps=TOTAL_STEPS,
            launched_at=now,
        )

    def _facts(self, now: datetime) -> GenerationProgress | None:
        facts = self.current
        if facts is None or facts.ended_at is not None or self.first_step_in(now) is not None:
            return facts
        first = facts.launched_at + timedelta(seconds=self.pace.start_seconds)
        further = int((now - first).total_seconds() // self.pace.step_seconds) if self.pace.step_seconds else 0
        changes = {
            "state": "running",
            "step": 1 + further,
            "started_at": first,
            "first_step_at": first,
            "last_step_at": first + timedelta(seconds=further * self.pace.step_seconds),
        }
        return facts.model_copy(update=changes)

    def _end(self, state: str, now: datetime) -> None:
        facts = self._facts(now)
        if facts is None or facts.ended_at is not None:
            return
        outcome = "completed" if state == "succeeded" else "drained"
        end = WorkerExit.model_validate(
            {"generation": facts.generation, "stage": facts.stage, "local_rank": 0, "at": now, "code": 0}
            | {"outcome": outcome, "step": facts.step}
        )
        step = TOTAL_STEPS if state == "succeeded" else facts.step
        self.current = facts.model_copy(update={"state": state, "ended_at": now, "exit": end, "step": step})


class Crowd:
    """All agents, by the address of their pod."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.agents: dict[str, SimulatedAgent] = {}
        self.questions = 0

    def order(self, line: Json, now: datetime) -> None:
        """Do what the driver says: `pod` came or changed, `gone` (address and uid), or `finish` all."""
        if "finish" in line:
            for agent in self.agents.values():
                agent.finish(now)
        elif "gone" in line:
            known = self.agents.get(line["gone"])
            if known is not None and known.uid == line["uid"]:
                del self.agents[line["gone"]]
                known.tell()
        else:
            self._pod(line["pod"], now)

    def _pod(self, pod: Json, now: datetime) -> None:
        agent = self.agents.get(pod["address"])
        if agent is None or agent.uid != pod["uid"]:
            agent = self.agents[pod["address"]] = SimulatedAgent(pod["name"], pod["uid"], self._pace)
        if pod["roster"]:
            agent.obey(_parsed(pod["roster"]), now)

    async def progress(self, request: web.Request) -> web.Response:
        """GET /progress, with `wait` and `known` as the real agent has them."""
        self.questions += 1
        assert request.transport is not None
        agent = self.agents.get(request.transport.get_extra_info("sockname")[0])
        if agent is None:
            raise web.HTTPServiceUnavailable(text="no pod has this address\n")
        wait = min(float(request.query.get("wait", "0")), LONGEST_WAIT_SECONDS)
        answer = await _with_news(agent, request.query.get("known", ""), wait)
        return web.json_response(answer.to_wire(), headers={"ETag": answer.tag()})


@lru_cache(maxsize=64)
def _parsed(text: str) -> Roster:
    """All pods of a run find the same text."""
    return Roster.from_wire(json.loads(text))


async def _with_news(agent: SimulatedAgent, known: str, wait: float) -> AgentProgress:
    """The answer, as soon as its tag is another one than that known, or after so long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while True:
        news = agent.news  # before looking, so that nothing falls between
        now = datetime.now(UTC)
        answer = agent.progress(now)
        left = deadline - loop.time()
        if answer.tag() != known or left <= 0:
            return answer
        step = agent.first_step_in(now)
        with suppress(TimeoutError):
            async with asyncio.timeout(left if step is None else min(left, step)):
                await news.wait()


async def _orders(crowd: Crowd) -> None:
    """Obey until standard input ends."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        if "count" in order:
            print(json.dumps({"questions": crowd.questions}), flush=True)
        else:
            crowd.order(order, datetime.now(UTC))


async def serve(pace: Pace) -> None:
    """Answer until standard input ends."""
    crowd = Crowd(pace)
    app = web.Application()
    app.add_routes([web.get("/progress", crowd.progress)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", PORT_AGENT, backlog=1024).start()
    print("ready", flush=True)
    await _orders(crowd)
    await runner.cleanup()


def main() -> None:
    """Parse the pace and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start-seconds", type=float, required=True)
    parser.add_argument("--step-seconds", type=float, required=True)
    options = parser.parse_args()
    asyncio.run(serve(Pace(options.start_seconds, options.step_seconds)))


if __name__ == "__main__":
    main()
