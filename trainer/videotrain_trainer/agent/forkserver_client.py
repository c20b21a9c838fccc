"""The agent's end of the zygote: starts it, sends launch orders, hears what became of them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

from videotrain_trainer.agent.messages import MAX_PACKET, ZYGOTE_MESSAGE, LaunchMessage, LaunchOrder, Ready

log = logging.getLogger(__name__)


class Launcher:
    """Owner of the zygote process; used from the agent's main thread, whose end would kill the zygote."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        self._ready = False
        environment = {
            # One OpenMP thread per worker unless the pod says otherwise, as torchrun has it; read when torch loads.
            "OMP_NUM_THREADS": "1",
            # Arrow's allocator must start no thread in the zygote, and NVML tells of GPUs without touching them.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            **os.environ,
        }
        with theirs:
            command = [
                sys.executable,
                "-m",
                "videotrain_trainer.agent.forkserver",
                str(theirs.fileno()),
                str(os.getpid()),
            ]
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._process.pid

    def launch(self, order: LaunchOrder) -> None:
        """Start the workers of a generation; a zygote that died is replaced first."""
        self.revive()
        self._channel.send(order.model_dump_json(by_alias=True).encode())

    def revive(self) -> None:
        """Put another zygote in the place of one that died."""
        if not self.alive():
            log.error("the warm launcher ended with status %s; starting another", self._process.returncode)
            self._channel.close()
            self._start()

    def alive(self) -> bool:
        """The zygote runs."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """The zygote has imported everything and waits for orders."""
        return self._ready and self.alive()

    def messages(self) -> list[LaunchMessage]:
        """What the zygote told about launches since the last call."""
        found: list[LaunchMessage] = []
        while True:
            try:
                packet = self._channel.recv(MAX_PACKET)
            except BlockingIOError:
                return found
            if not packet:
                return found
            message = ZYGOTE_MESSAGE.validate_json(packet)
            if isinstance(message, Ready):
                log.info("the warm launcher is ready; workers are started by %s", message.start_method)
                self._ready = True
            else:
                found.append(message)

    def close(self) -> None:
        """End the zygote."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
