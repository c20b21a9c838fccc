"""`videotrain cluster`: a real Kubernetes control plane with nodes and an object store, on this machine."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live

from videotrain.controlplane import build, tools
from videotrain.controlplane.cluster import Cluster, Record, Shape
from videotrain.controlplane.errors import ControlPlaneError
from videotrain.controlplane.look import Look, look
from videotrain.controlplane.screen import render
from videotrain.errors import UsageError
from videotrain.locks import DirectoryError, held, holder
from videotrain.logfile import logging_to, open_log
from videotrain.objectstore.s3_server import ObjectServerError
from videotrain.processes.addresses import NoAddressError
from videotrain.processes.devices import Device, Need, Shares, share_devices
from videotrain.processes.leftovers import end_leftovers

DEFAULT_NODES: Final = 2
DEFAULT_GPUS: Final = 8
READY: Final = "ready\n"
"""What a detached cluster tells the process that started it."""
LOG_FILE: Final = "logs/cluster.log"
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
STOP_SECONDS: Final = 90.0
_LOOK_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 0.2
_TAIL_LINES: Final = 20
_FAILURES: Final = (ControlPlaneError, ObjectServerError, NoAddressError, OSError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The command line of `videotrain cluster up`."""

    directory: Path
    nodes: int | None = None
    """None: as many as the cluster has that runs there, else DEFAULT_NODES."""
    gpus_per_node: int | None = None
    """None: the same with DEFAULT_GPUS."""
    device: Device = "auto"
    """What the pods' processes compute on; see videotrain.processes.devices."""
    detach: bool = False
    """Leave the cluster behind as a process of its own."""
    child: bool = False
    """Be that process."""


def default_directory() -> Path:
    """Where a cluster lives if nothing else is said (XDG_STATE_HOME, else ~/.local/state)."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "videotrain" / "cluster"


def up(options: ClusterOptions) -> int:
    """Start a cluster and stay with it until Ctrl-C, or leave it to a process of its own; one that runs is left so.

    Returns:
        Exit code.

    Raises:
        UsageError: it cannot be started.
    """
    directory = options.directory.absolute()
    if not options.child and (record := _running(directory)) is not None:
        return _leave_it_running(options, directory, record)
    nodes, gpus = options.nodes or DEFAULT_NODES, options.gpus_per_node or DEFAULT_GPUS
    options = replace(options, nodes=nodes, gpus_per_node=gpus)
    need = Need(nodes=nodes, per_node=gpus, fields="--nodes or --gpus-per-node")
    shares = share_devices(options.device, need)
    try:
        build.binary()
        for program in (tools.kubectl, tools.helm):
            program()
        if options.detach:
            return _detach(options, directory, shares)
        advice = f"end it with `videotrain cluster down --directory {directory}`, or use another directory"
        with held(directory, "--directory", "a cluster runs", advice), logging_to(open_log(directory / LOG_FILE)):
            return _foreground(options, directory, gpus, shares)
    except (ControlPlaneError, DirectoryError) as error:
        raise UsageError(str(error)) from None
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _running(directory: Path) -> Record | None:
    """The cluster of a directory, once it is ready; None if none runs there."""
    while (pid := holder(directory)) is not None:
        if (record := Record.read(directory)) is not None:
            return record
        while holder(directory) == pid and Record.read(directory) is None:  # it starts, or ends
            time.sleep(_WAIT_SECONDS)
    return None


def _leave_it_running(options: ClusterOptions, directory: Path, record: Record) -> int:
    for option, wanted, found in (
        ("--nodes", options.nodes, record.nodes),
        ("--gpus-per-node", options.gpus_per_node, record.gpus_per_node),
    ):
        if wanted not in (None, found):
            advice = f"end it with `videotrain cluster down --directory {directory}`, or use another directory"
            raise UsageError(f"{option} {wanted}: the cluster of {directory} runs with {found}; {advice}")
    sys.stdout.write(f"It runs already (process {holder(directory)}). {instructions(record)}")
    return 0


def down(directory: Path) -> int:
    """End the cluster of a directory and wait until nothing of it is left; its data stay."""
    directory = directory.absolute()
    pid = holder(directory)
    if pid is not None:
        _end(pid, directory)
    killed = end_leftovers(directory)
    ended = pid is not None or bool(killed)
    sys.stdout.write(f"The cluster of {directory} is down.\n" if ended else f"No cluster runs in {directory}.\n")
    return 0


def status(directory: Path, *, as_json: bool) -> int:
    """Tell what goes on in the cluster of a directory.

    Returns:
        0 if a cluster is ready there, else 1.
    """
    directory = directory.absolute()
    pid = holder(directory)
    record = Record.read(directory) if pid is not None else None
    seen = look(directory) if record is not None else None
    if as_json:
        cluster = asdict(record) if record else None
        document = {"directory": str(directory), "process": pid, "cluster": cluster}
        sys.stdout.write(json.dumps(document | {"state": seen.as_json() if seen else None}, indent=2) + "\n")
    elif record is None:
        where = f"no cluster runs in {directory}" if pid is None else f"the cluster of {directory} is starting"
        sys.stdout.write(f"{where}\n")
    else:
        Console().print(render(seen, f"process {pid}, {directory}"))
        sys.stdout.write(instructions(record))
    return 0 if record is not None else EXIT_FAILED


def instructions(record: Record) -> str:
    """What to type next."""
    folders = dict.fromkeys(str(program().parent) for program in (tools.kubectl, tools.helm))
    missing = [folder for folder in folders if folder not in os.environ.get("PATH", "").split(os.pathsep)]
    lines = [f"export KUBECONFIG={shlex.quote(record.kubeconfig)}"]
    lines += [f"export PATH={shlex.quote(os.pathsep.join(missing))}:$PATH"] if missing else []
    lines += [
        "helm install videotrain charts/videotrain",
        "kubectl apply -f manifests/examples/tiny.yaml",
        "kubectl get vtr --watch",
    ]
    return "\n".join(["The cluster is ready. Type:", *(f"  {line}" for line in lines), ""])


def _foreground(options: ClusterOptions, directory: Path, gpus_per_node: int, shares: Shares) -> int:
    cluster = Cluster(directory, Shape(gpus_per_node, shares.by_name()))
    end_leftovers(directory)
    try:
        asyncio.run(_run(cluster, options, shares))
    except* _FAILURES as failures:
        _log.exception("the cluster ended")
        for failure in _leaves(failures):
            sys.stderr.write(f"videotrain: {failure}\n")
        return_code = EXIT_FAILED
    else:
        return_code = 0
    finally:
        cluster.plane.stop()  # also what a start that was interrupted has left
    return return_code


async def _run(cluster: Cluster, options: ClusterOptions, shares: Shares) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(cluster.run(stop, _Display(options, cluster.directory, shares).show))

    def end() -> None:
        stop.set()
        cluster.plane.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    try:
        await work
    except ControlPlaneError:
        if not stop.is_set():  # else it is our own interruption of a start
            raise


class _Display:
    """Tells that the cluster is ready, and how it gets on."""

    def __init__(self, options: ClusterOptions, directory: Path, shares: Shares) -> None:
        self._options, self._directory, self._shares = options, directory, shares
        self._console = Console()
        self._seen: Look | None = None

    async def show(self, record: Record) -> None:
        if self._options.child:
            sys.stdout.write(READY)
            sys.stdout.flush()
            return
        sys.stdout.write(f"{instructions(record)}{self._shares.summary}\n")
        sys.stdout.flush()
        if self._console.is_terminal:
            await self._live(record)

    async def _live(self, record: Record) -> None:
        hint = f"objects in {self._directory}, object store {record.object_store}; Ctrl-C ends everything"
        with Live(console=self._console, get_renderable=lambda: render(self._seen, hint), refresh_per_second=2):
            while True:
                self._seen = await asyncio.to_thread(look, self._directory)
                await asyncio.sleep(_LOOK_SECONDS)


def _detach(options: ClusterOptions, directory: Path, shares: Shares) -> int:
    log = directory / LOG_FILE
    log.parent.mkdir(parents=True, exist_ok=True)
    shape = ["--nodes", str(options.nodes), "--gpus-per-node", str(options.gpus_per_node)]
    shape += ["--device", options.device]
    command = [sys.executable, "-m", "videotrain", "cluster", "up", "--directory", str(directory), *shape, "--child"]
    with log.open("ab") as errors:
        start = log.stat().st_size
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, text=True
        )
    assert child.stdout is not None
    try:
        told = child.stdout.readline()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if told != READY:
        child.wait()
        end = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        raise UsageError("\n".join(["the cluster did not start:", *end]))
    record = Record.read(directory)
    assert record is not None, "the record is written before a cluster says that it is ready"
    sys.stdout.write(f"{instructions(record)}{shares.summary}\n")
    sys.stdout.write(f"`videotrain cluster down --directory {directory}` ends it.\n")
    return 0


def _end(pid: int, directory: Path) -> None:
    """End the process that holds a directory, kindly first."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise UsageError(f"process {pid}, which holds {directory}, belongs to another user") from None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if holder(directory) != pid:
                return
            time.sleep(0.1)
    raise UsageError(f"process {pid}, which holds {directory}, does not end")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
