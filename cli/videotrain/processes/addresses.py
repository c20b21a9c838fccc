"""Loopback addresses that serve as pod addresses, and free ports."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection, Sequence

_ATTEMPTS = 1000


class NoAddressError(Exception):
    """No loopback address or port is free."""


def free_address(taken: Collection[str], ports: Sequence[int]) -> str:
    """An address of 127.64.0.0/10 on which all ports are free.

    It is drawn at random: several `videotrain local` on one machine then do not need to know of each other.
    """
    for _ in range(_ATTEMPTS):
        address = f"127.{random.randint(64, 127)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        if address not in taken and all(port_is_free(address, port) for port in ports):
            return address
    raise NoAddressError(f"no address in 127.64.0.0/10 has ports {list(ports)} free; {len(taken)} are in use here")


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Distinct free ports below the range from which the kernel takes ports for outgoing connections."""
    found: set[int] = set()
    for _ in range(_ATTEMPTS):
        port = random.randint(10000, 30000)
        if port not in found and port_is_free(address, port):
            found.add(port)
        if len(found) == count:
            return sorted(found)
    raise NoAddressError(f"{count} free ports were not found on {address} between 10000 and 30000")


def port_is_free(address: str, port: int) -> bool:
    """Whether a TCP port can be bound at the address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
