"""The warm launcher: a process that has imported everything and forks a torch launcher for each generation.

Importing torch, DeepSpeed and the trainer takes seconds of CPU per process; a fork of a process that has done it takes
milliseconds. Forking is sound because this process has one thread and never touches a GPU: it imports and waits. The
launcher that it forks is torch's own (`torchrun` without the command line); it forks the workers in turn.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from videotrain_trainer.agent.messages import (
    MAX_PACKET,
    Launched,
    LauncherEnded,
    LaunchFailed,
    LaunchOrder,
    WorkerDeath,
    ZygoteMessage,
)
from videotrain_trainer.linux import die_with_parent, name_process

STOP_SECONDS = 5
"""Time that torch's launcher leaves to the siblings of a failed worker. Their collectives fail at once; only one that is
busy without them needs longer, and it is killed."""

log = logging.getLogger(__name__)


def preload() -> None:
    """Import what launchers and workers need.

    A task that cannot be imported is logged here and fails when it is run, by itself.
    """
    from videotrain_trainer import process  # noqa: PLC0415 - the point of this module is when things are imported

    for module in ("torch._dynamo", "deepspeed", *process.TASKS.values()):
        try:
            importlib.import_module(module)
        except ImportError:
            log.warning("cannot preload %s", module, exc_info=True)


def start_method() -> str:
    """`fork` if forking this process is sound, else `spawn`, which is slower by the imports."""
    import torch  # noqa: PLC0415

    threads = [(Path("/proc/self/task") / thread / "comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    if len(threads) == 1 and not torch.cuda.is_initialized():
        return "fork"
    log.warning("workers are spawned, not forked: threads %s, CUDA initialised: %s", threads, torch.cuda.is_initialized())
    return "spawn"


def launch(order: LaunchOrder, method: str) -> LaunchFailed | None:
    """Run torch's launcher until the workers of the generation have ended; what went wrong, if anything."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, launch_agent  # noqa: PLC0415

    from videotrain_trainer import process  # noqa: PLC0415
    from videotrain_trainer.agent import rendezvous  # noqa: PLC0415

    rendezvous.register()
    config = LaunchConfig(
        min_nodes=order.nodes,
        max_nodes=order.nodes,
        nproc_per_node=order.processes_per_node,
        run_id=order.run_id,
        role="trainer",
        rdzv_backend=rendezvous.BACKEND,
        rdzv_endpoint=order.endpoint,
        rdzv_configs={"rank": order.node_rank, "timeout": order.join_seconds},
        max_restarts=0,
        monitor_interval=0.1,
        start_method=method,
        logs_specs=DefaultLogsSpecs(log_dir=order.log_directory),
        local_addr=order.address,
        signals_to_handle="SIGQUIT",  # the agent alone stops workers; a SIGTERM to the whole group must not race it
        shutdown_timeout=STOP_SECONDS,
    )
    try:
        launch_agent(config, process.entry, [])
    except ChildFailedError as error:
        deaths = [
            WorkerDeath(local_rank=f.local_rank, exit_code=f.exitcode, at=datetime.fromtimestamp(f.timestamp, UTC))
            for f in error.failures.values()
        ]
        return LaunchFailed(generation=order.generation, deaths=deaths, message="")
    except Exception as error:
        log.exception("the launcher of generation %s failed", order.generation)
        text = f"{type(error).__name__}: {error}"
        return LaunchFailed(generation=order.generation, deaths=[], message=text[:2000])
    return None


class Zygote:
    """Obeys launch orders from a socket and reports what becomes of them."""

    def __init__(self, channel: socket.socket, method: str) -> None:
        self._channel = channel
        self._method = method
        self._generations: dict[int, int] = {}  # by process id of the launcher

    def serve(self) -> None:
        """Work until the agent closes its end."""
        while True:
            ready, _, _ = select.select([self._channel], [], [], 0.05 if self._generations else None)
            if ready:
                packet = self._channel.recv(MAX_PACKET)
                if not packet:
                    return
                self._start(LaunchOrder.model_validate_json(packet))
            self._reap()

    def _send(self, message: ZygoteMessage) -> None:
        self._channel.send(message.model_dump_json(by_alias=True).encode())

    def _start(self, order: LaunchOrder) -> None:
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_launcher(order, zygote)
        self._generations[pid] = order.generation
        self._send(Launched(generation=order.generation, pid=pid))

    def _be_launcher(self, order: LaunchOrder, zygote: int) -> NoReturn:
        code = 1
        try:
            die_with_parent(zygote)
            name_process("vt-launcher")
            os.environ.update(order.environment)
            failure = launch(order, self._method)
            if failure is not None:
                self._send(failure)
            code = 0 if failure is None else 1
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._generations:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                generation = self._generations.pop(pid)
                self._send(LauncherEnded(generation=generation, exit_code=os.waitstatus_to_exitcode(status)))


def main() -> None:
    """Entry point: `python -m videotrain_trainer.agent.zygote SOCKET AGENT_PID`."""
    descriptor, agent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(agent)
    name_process("vt-zygote")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the agent decides when workers end
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    preload()
    gc.collect()
    gc.freeze()  # collections in the children would copy every page that they touch
    Zygote(socket.socket(fileno=descriptor), start_method()).serve()


if __name__ == "__main__":
    main()
