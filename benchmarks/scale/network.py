"""A network of its own for the benchmark, in which every pod address is local.

KWOK's pods run nothing, but the operator asks their agents over HTTP. In a network namespace whose loopback interface
owns the whole pod range, one server can answer for all of them. 127.0.0.0/8 would not do: the API server refuses
loopback addresses in Endpoints and EndpointSlices, so the endpoint controllers would fail and retry for ever.
The namespace also keeps ports (9410 of the agents, 8080 of the operator) apart from those of the machine.
"""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

POD_RANGE: Final = "10.64.0.0/10"
FIRST_ADDRESS: Final = "10.64.0.1/10"
HOST: Final = "10.64.0.1"
"""Advertised by the API server; the addresses of pods begin behind it."""
MARK: Final = "VIDEOTRAIN_SCALE_NETWORK"
_SETUP: Final = f'ip link set lo up && ip address add {FIRST_ADDRESS} dev lo && exec "$@"'


def inside() -> bool:
    """Whether this process already runs in the namespace."""
    return os.environ.get(MARK) == str(os.stat("/proc/self/ns/net").st_ino)  # noqa: PTH116 - no path operation


def enter(arguments: list[str]) -> NoReturn:
    """Run this Python again with these arguments inside a new network namespace.

    Raises:
        OSError: `unshare` (util-linux) is missing.
    """
    owner = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    again = f"export {MARK}=$(stat -L -c %i /proc/self/ns/net) && {_SETUP}"
    os.execvp("unshare", ["unshare", "--net", *owner, "sh", "-c", again, "sh", sys.executable, *arguments])
