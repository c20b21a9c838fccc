"""What the agent and its zygote tell each other, one JSON document per packet of a Unix socket."""

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
    endpoint: str
    """`address:port` of the leader's store."""
    node_rank: int
    nodes: int
    processes_per_node: int
    join_seconds: int
    """How long to wait for the other members."""
    log_directory: str
    """For torch's error files."""
    environment: dict[str, str]
    """Added to the environment of the workers."""


class WorkerDeath(ApiModel):
    """A worker process that torch's launcher saw fail."""

    local_rank: int
    exit_code: int
    """As subprocess has it: -n for signal n."""
    at: datetime


class Launched(ApiModel):
    """The launcher of a generation has its own process now."""

    kind: Literal["launched"] = "launched"
    generation: int
    pid: int


class LaunchFailed(ApiModel):
    """What the launcher saw, sent before it ends; a launcher whose workers all succeeded sends nothing."""

    kind: Literal["failed"] = "failed"
    generation: int
    deaths: list[WorkerDeath]
    """Empty if no worker had started."""
    message: str


class LauncherEnded(ApiModel):
    """The launcher process is gone."""

    kind: Literal["ended"] = "ended"
    generation: int
    exit_code: int
    """As subprocess has it: -n for signal n."""


ZygoteMessage = Launched | LaunchFailed | LauncherEnded
ZYGOTE_MESSAGE: TypeAdapter[ZygoteMessage] = TypeAdapter(Annotated[ZygoteMessage, Field(discriminator="kind")])
"""Parses one packet from the zygote."""

MAX_PACKET = 256 * 1024
"""Bytes; orders and reports are far smaller."""
