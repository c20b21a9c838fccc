"""A process that attacks an operator: a flood at its webhook, and agents that say whatever they like.

It takes one JSON object as its argument, goes on until its standard input ends and prints what it did as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from support.hostile_agents import HOSTILE, Agent, Asked, Say
from support.manifests_strategy import training_run
from support.odd_json import mutated

from videotrain_api.records import AgentProgress, GenerationProgress
from videotrain_api.vocabulary import PORT_AGENT

FROM = "127.0.0.2"
"""The address that the flood comes from; the API server has another."""
MOST_OPEN = 2000
"""Requests of the flood at the same time; what would be more is left out and counted."""
MOST_CONNECTIONS = 400
"""On which they are sent; those that stall have one each."""
HOLD_SECONDS = 10.0
HEAD = b"POST /validate HTTP/1.1\r\nHost: a\r\n"
STALLS = {
    "half a handshake": b"\x16\x03\x01\x02\x00\x01",
    "half a head": b"POST /vali",
    "a head without end": HEAD + b"X: " + b"a" * 6000,
    "a body that does not come": HEAD + b"Content-Length: 1000\r\n\r\n{",
    "a large head": HEAD + b"X: a\r\n" * 1000,
    "no HTTP": b"\x00" * 1000,
}
BODIES = {
    "10 MB": lambda draw: b'{"request": "' + b"x" * 10_000_000 + b'"}',
    "100,000 levels": lambda draw: b'{"a":' * 100_000,
    "6 MB of lists": lambda draw: review({"metadata": {"name": "a"}, "spec": {"x": [[]] * 700_000}}),
    "6 MB of names": lambda draw: review({"metadata": {"name": "a"}, "spec": {f"k{i}": 0 for i in range(200_000)}}),
    "a changed review": lambda draw: mutated(draw, json.loads(review(training_run("a")))),
    "an honest review": lambda draw: review(training_run("a")),
}
_PARTS = {"a changed review": 60, "an honest review": 10, "10 MB": 2, "100,000 levels": 2}
MIX = [what for what in (*BODIES, *STALLS) for _ in range(_PARTS.get(what, 3 if what in STALLS else 1))]


def review(manifest: Any) -> bytes:
    """An AdmissionReview of a new object."""
    kind = {"apiVersion": "videotrain.dev/v1alpha1", "kind": "VideoTrainingRun"}
    return json.dumps({"request": {"uid": "u", "operation": "CREATE", "object": kind | manifest}}).encode()


TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Takes every certificate."""
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE


@dataclass
class Flood:
    """Requests at a webhook, so many per second whatever becomes of them."""

    port: int
    draw: random.Random
    done: Counter[str]

    async def run(self, rate: float) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        begun, sent = loop.time(), 0
        connector = aiohttp.TCPConnector(ssl=TLS, local_addr=(FROM, 0), limit=MOST_CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
            running: set[asyncio.Task[None]] = set()
            while True:
                while sent < (loop.time() - begun) * rate:
                    sent += 1
                    if len(running) >= MOST_OPEN:
                        self.done["left out"] += 1
                        continue
                    self.done["sent"] += 1
                    task = group.create_task(self.one(session, self.draw.choice(MIX)))
                    running.add(task)
                    task.add_done_callback(running.discard)
                await asyncio.sleep(0.005)

    async def one(self, session: aiohttp.ClientSession, what: str) -> None:
        """One request; its end is counted."""
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                if what in STALLS:
                    end = await self._stall(what)
                else:
                    url = f"https://127.0.0.1:{self.port}/validate"
                    async with session.post(url, data=BODIES[what](self.draw)) as response:
                        await response.read()
                        end = str(response.status)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            end = type(error).__name__
        self.done[f"{what}: {end}"] += 1

    async def _stall(self, what: str) -> str:
        tls: dict[str, Any] = {} if what == "half a handshake" else {"ssl": TLS}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(FROM, 0), **tls)
        try:
            writer.write(STALLS[what])
            return "answered" if await reader.read() else "closed"
        finally:
            writer.close()


@dataclass
class Liars:
    """Agents of pods that answer each question in another way, signed with their run's key."""

    draw: random.Random
    done: Counter[str]

    async def serve(self, addresses: dict[str, str]) -> None:
        """Listen on the addresses, whose run's key is given in hex."""
        for address, key in addresses.items():
            await asyncio.start_server(self._serving(bytes.fromhex(key)), address, PORT_AGENT)

    def _serving(self, key: bytes) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            agent, name = Agent(key), self.draw.choice([*HOSTILE, *["lies"] * len(HOSTILE)])
            agent.say = self.lie if name == "lies" else HOSTILE[name]
            self.done[f"agent: {name}"] += 1
            with suppress(TimeoutError, OSError, asyncio.CancelledError):  # cancelled at the end of the process
                async with asyncio.timeout(HOLD_SECONDS):
                    await agent.serve(reader, writer)
            writer.close()

        return serve

    @property
    def lie(self) -> Say:
        """Progress that is none, with a tag that is news."""

        async def say(writer: asyncio.StreamWriter, asked: Asked) -> None:
            writer.write(asked.whole(mutated(self.draw, PROGRESS.to_wire()), etag=f'"{self.draw.random()}"'))

        return say


NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROGRESS = AgentProgress(
    pod="a",
    pod_uid="u",
    at=NOW,
    roster_generation=1,
    current=GenerationProgress(
        generation=1, stage="train", state="running", world_size=2, resumed_step=0, total_steps=10, launched_at=NOW
    ),
)


async def main(port: int, seed: int, rate: float, agents: dict[str, str]) -> None:
    """Attack until standard input ends."""
    done: Counter[str] = Counter()
    await Liars(random.Random(seed + 1), done).serve(agents)
    flood = asyncio.create_task(Flood(port, random.Random(seed), done).run(rate))
    print("attacking", flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait({flood, asyncio.ensure_future(ended)}, return_when=asyncio.FIRST_COMPLETED)
    broken = flood.done()
    flood.cancel()
    results = await asyncio.gather(flood, return_exceptions=True)
    if broken:
        raise RuntimeError("the flood ended by itself") from results[0]
    print(json.dumps(dict(sorted(done.items()))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
