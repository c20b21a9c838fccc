"""The only way to the store by which a world's members meet: through agents that prove to each other that they know
the world's key.

torch's TCPStore asks nobody who he is, lists its keys to everyone and lets everyone write them. So it listens on the
loopback interface of the leader's pod, and agents carry connections there: a worker connects to its own agent, that to
the leader's agent, and the two prove themselves before a byte of the store passes. What passes is neither encrypted nor
signed: who can change packets on their way is not kept out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

from videotrain_api.signing import PROOF_BYTES, Meeting, same_proof
from videotrain_trainer.errors import PeerLost

PROOF_SECONDS: Final = 10.0
"""How long the other end may take to prove itself."""
MOST_UNPROVEN: Final = 1024
"""Connections that have not proven themselves yet; more are closed at once, and an honest guest tries again."""
AGAIN_SECONDS: Final = 0.02
"""After so long a guest looks again whether the leader's agent listens."""
CHUNK: Final = 1 << 16
"""Bytes that are carried at a time."""
log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that the kernel keeps until they are accepted: a world's members come at once."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def listen(address: str, port: int = 0) -> socket.socket:
    """A listening TCP socket; by default on a port that is free.

    Raises:
        OSError: the address is not this pod's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=BACKLOG)


def loopback(address: str) -> str:
    """Where processes of the pod with this address listen for each other alone.

    On the nodes of one machine pods share its loopback interface, on which each has an address of its own.
    """
    if ":" in address:
        return "::1"
    return address if address.startswith("127.") else "127.0.0.1"


class Gate:
    """Carries connections of one generation until it is closed. Has a thread of its own."""

    def __init__(self, world_key: bytes) -> None:
        """Nothing listens yet.

        Args:
            world_key: of the generation.
        """
        self.problem: str | None = None
        """Why connections fail, for people."""
        self._key = world_key
        self._unproven = 0
        self._carried: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()

    def host(self, listener: socket.socket, store: tuple[str, int]) -> None:
        """Let guests that prove themselves through to the leader's store.

        Args:
            listener: bound to the pod's address; the gate closes it.
            store: address and port of the store on the loopback interface.
        """

        async def take(outside: Connection) -> None:
            if await self._proves_itself(outside):
                await _carry(outside, await asyncio.open_connection(*store))

        self._serve(listener, take)

    def guest(self, listener: socket.socket, leader: tuple[str, int], seconds: float) -> None:
        """Carry what connects to the listener to the leader's agent.

        Args:
            listener: bound to the loopback interface; the gate closes it.
            leader: address and port of the host's listener.
            seconds: how long from now on to wait for it.
        """
        joined_by = time.monotonic() + seconds

        async def take(inside: Connection) -> None:
            await _carry(inside, await self._meet(leader, max(joined_by, time.monotonic() + PROOF_SECONDS)))

        self._serve(listener, take)

    def close(self) -> None:
        """Drop everything that is carried."""

        async def stop() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self, listener: socket.socket, take: Callable[[Connection], Awaitable[None]]) -> None:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await take((reader, writer))
            except (OSError, EOFError, TimeoutError, PeerLost) as error:
                log.info("a connection of the world's store ends: %s", error)
            finally:
                writer.close()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(carry(reader, writer))
            self._carried.add(task)
            task.add_done_callback(self._carried.discard)

        async def serve() -> None:
            server = await asyncio.start_server(accepted, sock=listener, backlog=BACKLOG)
            async with server:
                await server.serve_forever()

        asyncio.run_coroutine_threadsafe(serve(), self._loop)

    async def _proves_itself(self, outside: Connection) -> bool:
        if self._unproven >= MOST_UNPROVEN:
            return False
        reader, writer = outside
        self._unproven += 1
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                nonce = secrets.token_bytes(PROOF_BYTES)
                writer.write(nonce)
                meeting = Meeting(self._key, nonce, await reader.readexactly(PROOF_BYTES))
                if not same_proof(await reader.readexactly(PROOF_BYTES), meeting.guest_proof()):
                    log.warning("%s knows no key of this world", writer.get_extra_info("peername"))
                    return False
                writer.write(meeting.host_proof())
                return True
        finally:
            self._unproven -= 1

    async def _meet(self, leader: tuple[str, int], deadline: float) -> Connection:
        """A connection to the leader's agent, both ends proven.

        Raises:
            PeerLost: it does not answer in time, or does not take this pod for a member.
        """
        where = f"the leader's agent {leader[0]}:{leader[1]}"
        while True:
            try:
                async with asyncio.timeout(PROOF_SECONDS):
                    reader, writer = await asyncio.open_connection(*leader)
                    nonce = await reader.readexactly(PROOF_BYTES)
                break
            except (OSError, EOFError, TimeoutError) as error:  # it does not listen yet, or has no room for one more
                if time.monotonic() > deadline:
                    self.problem = f"{where} does not answer: {error!r}"
                    raise PeerLost(self.problem) from error
                await asyncio.sleep(AGAIN_SECONDS)
        meeting = Meeting(self._key, nonce, secrets.token_bytes(PROOF_BYTES))
        try:
            async with asyncio.timeout(PROOF_SECONDS):
                writer.write(meeting.guest_nonce + meeting.guest_proof())
                proven = same_proof(await reader.readexactly(PROOF_BYTES), meeting.host_proof())
        except (OSError, EOFError, TimeoutError) as error:
            log.info("%s leaves: %r", where, error)
            proven = False
        if not proven:
            writer.close()
            self.problem = (
                f"{where} and this pod do not prove to each other that they have the key of this world. Pods have "
                "different keys if the operator's master key was changed between them: delete this pod"
            )
            raise PeerLost(self.problem)
        self.problem = None
        return reader, writer


async def _carry(left: Connection, right: Connection) -> None:
    """Pass bytes both ways until either end closes."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()

    with contextlib.closing(left[1]), contextlib.closing(right[1]):
        both = [asyncio.create_task(pump(left[0], right[1])), asyncio.create_task(pump(right[0], left[1]))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            # However a connection ends, it is over for both sides, and each of them tells of it itself.
            await asyncio.gather(*both, return_exceptions=True)
