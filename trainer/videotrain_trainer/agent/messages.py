"""What the agent and its fork server tell each other, one JSON document per packet of a Unix socket."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from videotrain_api.schema import ApiModel


class LaunchOrder(ApiModel):
    """Start the workers of one generation in this pod."""

    generation: int
    run_id: str
    """Name of the rendezvous: `<run uid>-<generation>`."""
    address: str
    """This pod's address."""
    store: tuple[str, int]
    """Address and port, on this pod's loopback interface, of the world's store or of the way to it. The packet of the
    leader's order carries the listening socket of the store."""
    node_rank: int
    nodes: int
    processes_per_node: int
    join_seconds: int
    """How long to wait for the other members."""
    log_directory: str
    """For the files that torch's launcher keeps about its workers."""
    environment: dict[str, str]
    """Added to the environment of the workers."""


class WorkerDeath(ApiModel):
    """A worker process that torch's launcher saw fail."""

    local_rank: int
    exit_code: int
    """As subprocess has it: -n for signal n."""
    at: datetime


class Ready(ApiModel):
    """The fork server has imported everything."""

    kind: Literal["ready"] = "ready"
    start_method: Literal["fork", "spawn"]
    """How worker processes will be started."""


class Launched(ApiModel):
    """The launcher of a generation has its own process now."""

    kind: Literal["launched"] = "launched"
    generation: int
    pid: int


class WorkersFailed(ApiModel):
    """The launcher saw workers fail, or could not start any; sent at once, before the siblings are stopped."""

    kind: Literal["failed"] = "failed"
    generation: int
    deaths: list[WorkerDeath]
    """Empty if no worker was started."""
    code: int
    """Exit code that stands for the launcher's own failure; 0 if workers failed."""
    message: str
    """The launcher's own failure, for people."""


class LauncherEnded(ApiModel):
    """The launcher process is gone."""

    kind: Literal["ended"] = "ended"
    generation: int
    exit_code: int
    """As subprocess has it: -n for signal n."""


LaunchMessage = Launched | WorkersFailed | LauncherEnded
"""What becomes of a launch order."""
ForkServerMessage = Ready | LaunchMessage
FORK_SERVER_MESSAGE: TypeAdapter[ForkServerMessage] = TypeAdapter(
    Annotated[ForkServerMessage, Field(discriminator="kind")]
)
"""Parses one packet from the fork server."""

MAX_PACKET = 256 * 1024
"""Bytes; orders and reports are far smaller."""
