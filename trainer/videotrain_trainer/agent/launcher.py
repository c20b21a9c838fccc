"""The agent's end of the zygote: starts it, sends launch orders, hears what became of them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

from videotrain_trainer.agent.messages import MAX_PACKET, ZYGOTE_MESSAGE, LaunchOrder, ZygoteMessage

log = logging.getLogger(__name__)


class Launcher:
    """Owner of the zygote process; used from the agent's main thread, whose end would kill the zygote."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        environment = {
            # One OpenMP thread per worker unless the pod says otherwise, as torchrun has it; read when torch is imported.
            "OMP_NUM_THREADS": "1",
            # Arrow's allocator would start a thread in the zygote, and NVML answers "is there a GPU?" without touching it.
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            **os.environ,
        }
        with theirs:
            command = [sys.executable, "-m", "videotrain_trainer.agent.zygote", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._process.pid

    def launch(self, order: LaunchOrder) -> None:
        """Start the workers of a generation; a zygote that died is replaced first."""
        if not self.alive():
            log.error("the warm launcher ended with status %s; starting another", self._process.returncode)
            self._channel.close()
            self._start()
        self._channel.send(order.model_dump_json(by_alias=True).encode())

    def alive(self) -> bool:
        """The zygote runs."""
        return self._process.poll() is None

    def messages(self) -> list[ZygoteMessage]:
        """What the zygote told since the last call."""
        found: list[ZygoteMessage] = []
        while True:
            try:
                packet = self._channel.recv(MAX_PACKET)
            except BlockingIOError:
                return found
            if not packet:
                return found
            found.append(ZYGOTE_MESSAGE.validate_json(packet))

    def close(self) -> None:
        """End the zygote."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
