"""`videotrain suspend`, `resume` and `delete`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from videotrain.commands.cluster_runs import ClusterChoice, ask, find_run
from videotrain.errors import UsageError
from videotrain.local.workdir_lock import runner
from videotrain.locks import held_for, holder
from videotrain_api.schema import Json
from videotrain_api.vocabulary import KIND
from videotrain_operator.kube.client import KubeClient

_POLL_SECONDS: Final = 0.2


def set_suspended(name: str, where: ClusterChoice, *, suspended: bool) -> int:
    """Let a run of a cluster save and release its nodes, or go on.

    Raises:
        UsageError: the run is not there, or the cluster refuses.
    """

    async def change(client: KubeClient) -> Json:
        head = (await find_run(client, where, name))["metadata"]
        patch = {"metadata": {"uid": head["uid"]}, "spec": {"suspend": suspended}}
        return await client.patch(KIND, head["namespace"], head["name"], patch)

    head = ask(where, change)["metadata"]
    done = "saves and releases its nodes" if suspended else "goes on"
    sys.stdout.write(f"run {head['namespace']}/{head['name']} {done}\n")
    return 0


def suspend_local(workdir: Path) -> int:
    """The same of a run of `videotrain local`, as one Ctrl-C there; waits until it has saved.

    Raises:
        UsageError: no run goes on there, or it belongs to somebody else.
    """
    pid = runner(workdir)
    if pid is None:
        work = held_for(workdir)
        raise UsageError(f"--workdir {workdir}: no run goes on there{f' ({work})' if work else ''}")
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise UsageError(f"--workdir {workdir}: process {pid} belongs to another user") from None
    while holder(workdir) == pid:
        time.sleep(_POLL_SECONDS)
    sys.stdout.write(f"the run of {workdir} rests; the same `videotrain local` goes on\n")
    return 0


def delete(names: list[str], where: ClusterChoice) -> int:
    """Delete runs of a cluster with their pods. Their bills and what they stored stay.

    Raises:
        UsageError: one of them is not there, or the cluster refuses. None is deleted if one is not there.
    """

    async def remove(client: KubeClient) -> list[Json]:
        runs = [await find_run(client, where, name) for name in names]
        for head in (run["metadata"] for run in runs):
            await client.delete(KIND, head["namespace"], head["name"], uid=head["uid"], propagation="Background")
        return runs

    for run in ask(where, remove):
        sys.stdout.write(f"run {run['metadata']['namespace']}/{run['metadata']['name']} is deleted\n")
    return 0
