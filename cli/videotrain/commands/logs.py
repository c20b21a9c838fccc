"""`videotrain logs`: what the workers of a run print."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from videotrain.commands.cluster_runs import ClusterChoice, ask, find_run
from videotrain.commands.get import local_runs
from videotrain.errors import UsageError
from videotrain.local.workdir_lock import runner
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_api.vocabulary import LABEL_RUN
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import ApiError, KubeClient

_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What the user asked for."""

    run: str | None
    where: ClusterChoice
    workdir: Path | None
    pod: str | None
    """None: the one that holds rank 0."""
    all: bool
    """Of every pod, each line behind the pod's name."""
    follow: bool
    tail: int | None
    previous: bool
    """Of the container before its last restart; clusters only."""


def print_logs(options: LogOptions) -> int:
    """Print logs of a run's pods.

    Raises:
        ManifestFileError: the folder holds no run.
        UsageError: there is no such run, pod or log, or the cluster cannot be asked.
    """
    if options.workdir is not None:
        _print_local(options, options.workdir)
    else:
        ask(options.where, lambda client: _print_of_cluster(client, options))
    return 0


async def _print_of_cluster(client: KubeClient, options: LogOptions) -> None:
    run = await find_run(client, options.where, str(options.run))
    head = run["metadata"]
    listed = await client.list("Pod", head["namespace"], f"{LABEL_RUN}={head['name']}")
    pods = sorted(pod["metadata"]["name"] for pod in listed)
    query = {"follow": "true"} if options.follow else {}
    query |= {"previous": "true"} if options.previous else {}
    query |= {} if options.tail is None else {"tailLines": str(options.tail)}

    async def show(pod: str, prefix: bytes) -> None:
        async for line in client.log_lines(head["namespace"], pod, query):
            _write(prefix + line)

    chosen = _chosen(options, run, pods)
    if not options.all:
        await show(chosen[0], b"")
        return
    told = await asyncio.gather(*(show(pod, f"[{pod}] ".encode()) for pod in chosen), return_exceptions=True)
    for pod, error in zip(chosen, told, strict=True):
        if isinstance(error, ApiError | NotFound):  # such as that of a pod whose container waits
            sys.stderr.write(f"videotrain: {pod}: {error}\n")
        elif error is not None:
            raise error


def _chosen(options: LogOptions, run: Json, pods: list[str]) -> list[str]:
    """The pods whose logs are wanted, of those that have one."""
    name = run["metadata"]["name"]
    if not pods:
        raise UsageError(f"run {name}: no pod of it is there (phase {read_status(run.get('status')).status.phase})")
    if options.all:
        return pods
    generations = read_status(run.get("status")).status.generations
    wanted = options.pod or next((one.members[0] for one in reversed(generations) if one.members), pods[0])
    if wanted not in pods:
        if options.pod is None:
            return pods[:1]
        raise UsageError(f"--pod {wanted}: run {name} has no such pod; allowed: {', '.join(pods)}")
    return [wanted]


def _print_local(options: LogOptions, workdir: Path) -> None:
    run = local_runs(workdir)[0]
    # A pod that was made again under its name has a log of its own; the newest comes last.
    logs = sorted((workdir / "logs").glob(f"{run['metadata']['name']}-*-????????.log"), key=lambda p: p.stat().st_mtime)
    newest = {path.stem[: -len("-12345678")]: path for path in logs}
    chosen = _chosen(options, run, sorted(newest))
    open_files = [(newest[pod].open("rb"), f"[{pod}] ".encode() if options.all else b"") for pod in chosen]
    for file, prefix in open_files:
        for line in deque(file, options.tail):
            _write(prefix + line)
    while options.follow:
        rests = runner(workdir) is None
        for file, prefix in open_files:
            for line in file:
                _write(prefix + line)
        if rests:
            return
        time.sleep(_POLL_SECONDS)


def _write(line: bytes) -> None:
    sys.stdout.write(line.decode(errors="replace"))
    sys.stdout.flush()
