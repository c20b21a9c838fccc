"""The fork server: a process that has imported everything and forks a torch launcher for each generation.

Importing torch, DeepSpeed and the trainer takes seconds of CPU per process; a fork of a process that has done it takes
milliseconds. Forking is sound because this process has one thread and never touches a GPU: it imports and waits. The
launcher that it forks is torchelastic's own agent, which forks the workers in turn.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Literal, NoReturn

from videotrain_trainer.agent.messages import MAX_PACKET, ForkServerMessage, Launched, LauncherEnded, LaunchOrder, Ready
from videotrain_trainer.worker.linux import die_with_parent, name_process

log = logging.getLogger(__name__)


def preload() -> None:
    """Import what the launcher and the workers need.

    A task that cannot be imported is logged here and fails when it is run, by itself.
    """
    from videotrain_trainer.worker import main as process

    for module in (
        "videotrain_trainer.agent.elastic_agent",
        *process.MODULES.values(),
        "torch._dynamo",  # the first optimizer imports it
    ):
        try:
            importlib.import_module(module)
        except Exception:
            log.warning("cannot preload %s", module, exc_info=True)


def start_method() -> Literal["fork", "spawn"]:
    """`fork` if forking this process is sound, else `spawn`, which is slower by the imports."""
    import torch

    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if len(threads) == 1 and not cuda:
        return "fork"
    log.warning("workers are spawned, not forked: threads %s, CUDA initialised %s", threads, cuda)
    return "spawn"


class ForkServer:
    """Obeys launch orders from a socket and reports what becomes of them."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._method = start_method()
        self._generations: dict[int, int] = {}  # by process id of the launcher

    def serve(self) -> None:
        """Work until the agent closes its end."""
        self._send(Ready(start_method=self._method))
        while True:
            ready, _, _ = select.select([self._channel], [], [], 0.05 if self._generations else None)
            if ready:
                packet, descriptors, _, _ = socket.recv_fds(self._channel, MAX_PACKET, 1)
                if not packet:
                    return
                self._start(LaunchOrder.model_validate_json(packet), descriptors[0] if descriptors else None)
            self._reap()

    def _send(self, message: ForkServerMessage) -> None:
        self._channel.send(message.model_dump_json(by_alias=True).encode())

    def _start(self, order: LaunchOrder, store: int | None) -> None:
        fork_server_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_launcher(order, store, fork_server_pid)
        if store is not None:
            os.close(store)
        self._generations[pid] = order.generation
        self._send(Launched(generation=order.generation, pid=pid))

    def _be_launcher(self, order: LaunchOrder, store: int | None, fork_server_pid: int) -> NoReturn:
        code = 1
        try:
            die_with_parent(fork_server_pid)
            name_process("vt-launcher")
            os.environ.update(order.environment)
            from videotrain_trainer.agent.elastic_agent import launch

            code = 0 if launch(order, store, self._method, self._send) else 1
        except BaseException:
            log.exception("the launcher of generation %s failed", order.generation)
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._generations:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            generation = self._generations.pop(pid)
            self._send(LauncherEnded(generation=generation, exit_code=os.waitstatus_to_exitcode(status)))


def main() -> None:
    """Entry point: `python -m videotrain_trainer.agent.forkserver SOCKET AGENT_PID`."""
    descriptor, agent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(agent)
    name_process("vt-forkserver")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the agent decides when workers end
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    preload()
    gc.collect()
    gc.freeze()  # collections in the children would copy every page that they touch
    ForkServer(socket.socket(fileno=descriptor)).serve()


if __name__ == "__main__":
    main()
