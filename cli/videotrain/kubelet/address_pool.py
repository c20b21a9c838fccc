"""Addresses of pods beside a real API server.

The controllers refuse 127.0.0.0/8 in EndpointSlices. Where this process may change routes, a private block is therefore
routed to the loopback device, after which every address of it can be bound (Linux calls this AnyIP). A guard process
removes the route when the pipe to it ends, which also happens when this process is killed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from videotrain.processes.addresses import NoAddressError, free_address

_log = logging.getLogger(__name__)

_ATTEMPTS: Final = 50
_GUARD: Final = 'read -r _; exec "$0" route del local "$1" dev lo'
"""Waits for the end of its standard input, then removes the route."""


class AddressPool:
    """Hands out addresses; one that was given back is used again last."""

    def __init__(self, block: ipaddress.IPv4Network | None) -> None:
        self.block = block
        """The routed block; None if loopback addresses are used."""
        self._free = [str(address) for address in block.hosts()] if block else []
        self._taken: set[str] = set()

    def take(self, wanted: str | None = None) -> str:
        """An address that nobody has.

        Args:
            wanted: taken if it is free, so that a pod keeps its address.

        Raises:
            NoAddressError: all are taken.
        """
        if self.block is None:
            address = wanted if wanted and wanted not in self._taken else free_address(self._taken, ())
        elif wanted in self._free:
            self._free.remove(wanted)
            address = wanted
        elif self._free:
            address = self._free.pop(0)
        else:
            raise NoAddressError(f"all {len(self._taken)} addresses of {self.block} are taken; delete some pods")
        self._taken.add(address)
        return address

    def give_back(self, address: str) -> None:
        """The address is free again."""
        self._taken.discard(address)
        if self.block is not None:
            self._free.append(address)


@asynccontextmanager
async def address_pool() -> AsyncIterator[AddressPool]:
    """Addresses for as long as they are needed."""
    program = shutil.which("ip")
    if program is None or os.geteuid() != 0:
        _log.warning("not root, or no program `ip`: pods get addresses of 127.0.0.0/8, which no Service can lead to")
        yield AddressPool(None)
        return
    block = await _route(program)
    if block is None:
        yield AddressPool(None)
        return
    guard = await asyncio.create_subprocess_exec(
        "sh", "-c", _GUARD, program, str(block), stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield AddressPool(block)
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        await guard.wait()


async def _route(program: str) -> ipaddress.IPv4Network | None:
    """Route a block that nobody uses; None if the kernel does not allow it."""
    for _ in range(_ATTEMPTS):
        block = ipaddress.IPv4Network(f"10.{random.randint(64, 95)}.{random.randint(0, 255)}.0/24")
        if await _is_routed(program, block):
            continue
        arguments = ("route", "add", "local", str(block), "dev", "lo")
        process = await asyncio.create_subprocess_exec(program, *arguments, stderr=subprocess.PIPE)
        _, told = await process.communicate()
        if process.returncode == 0:
            return block
        if b"File exists" not in told:
            _log.warning("no route for pod addresses, using 127.0.0.0/8: %s", told.decode(errors="replace").strip())
            return None
    raise NoAddressError(f"{_ATTEMPTS} blocks of 10.64.0.0/11 were tried, and all are routed already")


async def _is_routed(program: str, block: ipaddress.IPv4Network) -> bool:
    """Some network that this machine reaches, other than by its default route, overlaps the block."""
    process = await asyncio.create_subprocess_exec(
        program, "-o", "-4", "route", "show", "table", "all", stdout=subprocess.PIPE
    )
    listed, _ = await process.communicate()
    for line in listed.decode().splitlines():
        for word in line.split()[:2]:
            try:
                network = ipaddress.IPv4Network(word)
            except ValueError:
                continue  # a keyword such as `local` or `default`
            if network.prefixlen and network.overlaps(block):
                return True
    return False
