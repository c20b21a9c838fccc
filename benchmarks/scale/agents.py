"""Simulated agents: one HTTP server that answers as the agent of whichever pod was asked.

KWOK's pods run nothing, so nobody listens at their addresses. This process answers on all of them (see network.py) and
tells the pods apart by the address that was asked. An agent is idle until the operator sends a roster with its pod,
then `starting`, `running` and, once the driver says so, `succeeded`. Requests are checked and answers signed as the
real agent does; a roster to be passed on is handed over inside the process: hops between agents take no time.
The driver feeds it the master key, pods and orders as JSON lines on standard input; it prints `ready` when it listens
and a line for each agent that is told a newer roster. It is part of the driver: its CPU is not the cluster's.

    python -m scale.agents --start-seconds 0.5 --step-seconds 30
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from videotrain_api.records import (
    AgentProgress,
    GenerationProgress,
    Roster,
    RosterNotice,
    RosterReceipt,
    WorkerExit,
)
from videotrain_api.signing import Answer, Nonces, Request, SignatureError, derive_signing_key
from videotrain_api.vocabulary import PATH_ROSTER, PORT_AGENT

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
    key: bytes = b""
    """The signing key of its run."""
    nonces: Nonces = field(default_factory=Nonces)
    roster: Roster | None = None
    current: GenerationProgress | None = None
    previous: GenerationProgress | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def obey(self, roster: Roster, now: datetime) -> bool:
        """Take note of a roster; whether it is a newer one."""
        if self.roster is not None and roster.order() <= self.roster.order():
            return False
        self.roster = roster
        self._end("drained", now)
        if roster.action == "run" and roster.rank(self.uid) is not None:
            self.previous, self.current = self.current, self._launched(roster, now)
        self.tell()
        return True

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

    def __init__(self, pace: Pace, master_key: bytes, on_told: Callable[[str, Roster], None] | None = None) -> None:
        """Begin with no agents.

        Args:
            pace: of all workers.
            master_key: of the operator whose runs these are.
            on_told: told the pod's uid and the roster whenever an agent takes a newer one.
        """
        self._pace, self.master_key, self._on_told = pace, master_key, on_told
        self.agents: dict[str, SimulatedAgent] = {}
        self.questions = 0

    def routes(self) -> list[web.RouteDef]:
        """What every agent serves."""
        return [web.get("/progress", self.progress), web.post(PATH_ROSTER, self.hear_roster)]

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
            pod = line["pod"]
            agent = self.agents.get(pod["address"])
            if agent is None or agent.uid != pod["uid"]:
                key = derive_signing_key(self.master_key, pod["run"])
                self.agents[pod["address"]] = SimulatedAgent(pod["name"], pod["uid"], self._pace, key)

    async def progress(self, request: web.Request) -> web.Response:
        """GET /progress, with `wait` and `known` as the real agent has them."""
        self.questions += 1
        agent, nonce = self._asked(request, b"")
        wait = min(float(request.query.get("wait", "0")), LONGEST_WAIT_SECONDS)
        answer = await _with_news(agent, request.query.get("known", ""), wait)
        return _signed(agent, nonce, answer.to_wire(), answer.tag())

    async def hear_roster(self, request: web.Request) -> web.Response:
        """POST of a roster, for this agent and for those whom it should pass it on to."""
        body = await request.read()
        agent, nonce = self._asked(request, body)
        notice, now = RosterNotice.from_wire(json.loads(body)), datetime.now(UTC)
        told = [address for address in (_recipient(request), *notice.to) if address in self.agents]
        for address in told:
            other = self.agents[address]
            if other.obey(notice.roster, now) and self._on_told is not None:
                self._on_told(other.uid, notice.roster)
        return _signed(agent, nonce, RosterReceipt(told=told).to_wire(), "")

    def _asked(self, request: web.Request, body: bytes) -> tuple[SimulatedAgent, str]:
        """The agent that is asked, and the nonce of a request that its run's operator signed."""
        address = _recipient(request)
        agent = self.agents.get(address)
        if agent is None:
            raise web.HTTPServiceUnavailable(text="no pod has this address\n")
        asked = Request(recipient=address, method=request.method, target=request.path_qs, body=body)
        try:
            nonce = asked.verify(agent.key, request.headers, now_us=time.time_ns() // 1000, nonces=agent.nonces)
        except SignatureError as error:
            raise web.HTTPUnauthorized(text=f"{error}\n") from None
        return agent, nonce


def _recipient(request: web.Request) -> str:
    assert request.transport is not None
    return str(request.transport.get_extra_info("sockname")[0])


def _signed(agent: SimulatedAgent, nonce: str, told: Json, tag: str) -> web.Response:
    body = json.dumps(told).encode()
    signature = Answer(status=200, etag=tag, body=body).sign(agent.key, nonce, time_us=time.time_ns() // 1000)
    head = {"Content-Type": "application/json"} | ({"ETag": tag} if tag else {}) | signature
    return web.Response(body=body, headers=head)


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
        if "masterKey" in order:
            crowd.master_key = bytes.fromhex(order["masterKey"])
        elif "count" in order:
            print(json.dumps({"questions": crowd.questions}), flush=True)
        else:
            crowd.order(order, datetime.now(UTC))


def _report(uid: str, roster: Roster) -> None:
    """The driver's clock is the same: a monotonic time is one of the machine."""
    told = {"uid": uid, "order": roster.order(), "at": time.monotonic()}
    print(json.dumps({"told": told}), flush=True)


async def serve(pace: Pace) -> None:
    """Answer until standard input ends."""
    crowd = Crowd(pace, b"", _report)
    app = web.Application(client_max_size=LINE_LIMIT)
    app.add_routes(crowd.routes())
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
