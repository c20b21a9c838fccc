"""One node of a Ray cluster: `ray start` as a child of a worker process, which ends with it.

Nothing of it outlives the stage: not the processes, not the files. Who takes part has to know the token of the cluster,
and the network policy of the run lets nobody else near its ports.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from videotrain_trainer.errors import ConfigError, TrainerError
from videotrain_trainer.worker.linux import die_with_parent, name_process

STARTED_SECONDS = 240.0
"""For which `ray start` may stand still: neither say nor compute anything."""
CLIENT_SECONDS = 600
"""For which a head waits for the server that it starts for a client; Ray's 30 s are short on a busy machine."""
STARTS = 4
STOPPED_SECONDS = 10.0
STORE_BYTES = 512 * 1024**2
"""Shared memory for what passes between workers; at most a third of what is free there."""
DISK_SHARE = 0.9
"""Of the pod's disk: what does not fit the shared memory is spilled until so much is used."""
MODULE = "videotrain_trainer.engines.ray_node"


@dataclass(frozen=True)
class Cluster:
    """What is to be known to take part."""

    address: str
    """Host and port of the head."""
    token: str
    """Empty for a cluster that asks for none."""

    def environment(self) -> dict[str, str]:
        """By which Ray's processes and its library know the token; read when Ray is imported."""
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
        return quiet | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if self.token else {})


class RayNode:
    """A node of a cluster in this pod.

    Args:
        cluster: to begin or to join.
        host: address of this pod.
        head: begin it.
        cpus: units that are done here at the same time.
        gpus: devices of this pod.
        store_bytes: shared memory.
    """

    def __init__(
        self, cluster: Cluster, host: str, head: bool, cpus: int, gpus: int = 0, store_bytes: int | None = None
    ) -> None:
        self._folder = tempfile.mkdtemp(prefix="vt-ray-")  # short, for sockets below it
        self.client_port = free_port(host)
        """On which a head serves clients that are no nodes: ray://host:port."""
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108  the kernel's own name
        size = store_bytes or max(80 * 1024**2, min(STORE_BYTES, free // 3))
        where = ["--head", f"--port={cluster.address.rpartition(':')[2]}", f"--temp-dir={self._folder}/ray"]
        where += ["--include-dashboard=false", f"--ray-client-server-port={self.client_port}"]
        arguments = [
            *(where if head else [f"--address={cluster.address}"]),
            f"--node-ip-address={host}",
            f"--num-cpus={cpus}",
            f"--num-gpus={gpus}",
            f"--object-store-memory={size}",
            f"--object-spilling-directory={self._folder}/spilled",
            "--disable-usage-stats",
            "--block",
        ]
        environment = os.environ | cluster.environment() | {"TMPDIR": self._folder}
        environment["RAY_local_fs_capacity_threshold"] = str(DISK_SHARE)
        environment["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = str(CLIENT_SECONDS)
        self._log = Path(self._folder) / "log"
        self._command, self._environment = [sys.executable, "-m", MODULE, str(os.getpid()), *arguments], environment
        self._process = self._start()

    def wait(self) -> None:
        """Return once the node is up. Ray gives itself 30 seconds, which a busy machine may need more than once; it may
        take minutes to come so far, and is waited for as long as it gets on.

        Raises:
            TrainerError: STARTS processes ended, or one stood still for STARTED_SECONDS; with what it said.
        """
        starts, sign, since = 1, self._sign_of_life(), time.monotonic()
        while "Ray runtime started" not in self.said():
            ended, now = self._process.poll() is not None, self._sign_of_life()
            if now != sign:
                sign, since = now, time.monotonic()
            if (ended and starts == STARTS) or time.monotonic() - since > STARTED_SECONDS:
                raise TrainerError(f"ray start does not come up:\n{self.said()[-2000:]}")
            if ended:
                self._process, starts = self._start(), starts + 1
            time.sleep(0.05)

    def _sign_of_life(self) -> tuple[int, float]:
        """Bytes that `ray start` has written, and seconds that it has computed."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
            return self._log.stat().st_size, times.user + times.system
        except psutil.NoSuchProcess:
            return 0, 0.0

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """What it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """All of the node's, its workers included."""
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        """End all of its processes and remove its files."""
        processes = self.processes()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOPPED_SECONDS)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, STOPPED_SECONDS)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def require_ray() -> None:
    """Raises ConfigError if Ray is not installed here."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "engine ray: this image has no Ray; install the trainer with its extra `ray`, or use engine local"
        )


def free_port(host: str) -> int:
    """A port of an address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Entry point of the child: `ray start` that dies with the worker process."""
    die_with_parent(int(sys.argv[1]))
    name_process("vt-ray")
    from ray.scripts.scripts import main as ray

    sys.argv = ["ray", "start", *sys.argv[2:]]
    ray()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
