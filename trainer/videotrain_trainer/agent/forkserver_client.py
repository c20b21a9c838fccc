"""The agent's end of the fork server: starts it, sends launch orders, hears what became of them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from videotrain_trainer.agent.messages import FORK_SERVER_MESSAGE, MAX_PACKET, LaunchMessage, LaunchOrder, Ready

log = logging.getLogger(__name__)


class ForkServerClient:
    """Owner of the fork server process; used from the agent's main thread, whose end would kill the fork server.

    Args:
        cache: the pod's cache volume.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._start()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._ready = False
        with theirs:
            command = [
                sys.executable,
                "-m",
                "videotrain_trainer.agent.forkserver",
                str(theirs.fileno()),
                str(os.getpid()),
            ]
            environment = worker_environment(os.environ, self._cache)
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])

    @property
    def pid(self) -> int:
        """Process id of the fork server."""
        return self._process.pid

    def launch(self, order: LaunchOrder, store: socket.socket | None) -> None:
        """Start the workers of a generation; a fork server that died is replaced first.

        Args:
            order: what to start.
            store: where the world's store is to listen, if it is in this pod; a copy of it is sent.
        """
        self.restart_if_dead()
        packet = order.model_dump_json(by_alias=True).encode()
        socket.send_fds(self._channel, [packet], [] if store is None else [store.fileno()])

    def restart_if_dead(self) -> None:
        """Put another fork server in the place of one that died."""
        if not self.alive():
            log.error("the fork server ended with status %s; starting another", self._process.returncode)
            self._channel.close()
            self._start()

    def alive(self) -> bool:
        """The fork server runs."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """The fork server has imported everything and waits for orders."""
        return self._ready and self.alive()

    def messages(self) -> list[LaunchMessage]:
        """What the fork server told about launches since the last call."""
        found: list[LaunchMessage] = []
        while True:
            try:
                packet = self._channel.recv(MAX_PACKET)
            except BlockingIOError:
                return found
            if not packet:
                return found
            message = FORK_SERVER_MESSAGE.validate_json(packet)
            if isinstance(message, Ready):
                log.info("the fork server is ready; workers are started by %s", message.start_method)
                self._ready = True
            else:
                found.append(message)

    def close(self) -> None:
        """End the fork server."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


def worker_environment(given: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Environment of the fork server and thereby of all workers; what the pod's environment has set stays.

    Args:
        given: the agent's own.
        cache: the pod's cache volume.
    """
    return {
        # One OpenMP thread per worker unless the pod says otherwise, as torchrun has it; read when torch loads.
        "OMP_NUM_THREADS": "1",
        # Arrow's allocator must start no thread in the fork server, and NVML tells of GPUs without touching them.
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # A bucket table has hundreds of shapes, which tear blocks of fixed sizes to pieces.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # Compiled blocks outlive a generation's processes, and the pod where the volume does.
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        **given,
    }
