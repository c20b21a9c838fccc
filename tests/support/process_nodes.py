"""Process nodes in a process of their own, beside a real control plane."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid

from support.processes import processes_below

from videotrain.kubelet.orders import control_folder
from videotrain.processes.leftovers import end_leftovers

PATIENCE = 120.0
"""Seconds that anything may take on a busy machine."""


class OrderError(Exception):
    """An order was refused or not answered."""


def give_order(workdir, order, **details):
    """Put an order where process nodes look for it, wait until it was carried out, and give the answer."""
    path = control_folder(workdir) / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"order": order, **details}))
    partial.rename(path)
    result = path.with_suffix(".result")
    until(result.exists, f"{order} is answered by process nodes in {workdir}")
    answer = json.loads(result.read_text())
    result.unlink()
    if not answer.pop("ok"):
        raise OrderError(f"{order}: {answer['error']}")
    return answer


class ProcessNodes:
    """Nodes that a test can start, order, kill and start again."""

    def __init__(self, control_plane, workdir, count=2, gpus=1, env=(), devices=(), refresh_seconds=None):
        self.plane, self.workdir = control_plane, workdir
        self.names = [f"pn-{uuid.uuid4().hex[:6]}-{number}" for number in range(count)]
        self.options = ["--gpus-per-node", str(gpus), "--lease-seconds", "1", "--back-off-seconds", "1"]
        self.options += [word for pair in env for word in ("--env", pair)]
        self.options += ["--devices", ",".join(devices)] if devices else []
        self.options += ["--refresh-seconds", str(refresh_seconds)] if refresh_seconds is not None else []
        self.process = None

    def start(self):
        """Start the process and wait until it obeys."""
        self.workdir.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "videotrain.kubelet.agent", "--workdir", str(self.workdir)]
        command += ["--kubeconfig", str(self.plane.kubeconfig()), "--nodes", ",".join(self.names), *self.options]
        with (self.workdir / "nodes.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.order("status")

    def order(self, name, **details):
        """Carry out an order of videotrain.kubelet.orders."""
        try:
            return give_order(self.workdir, name, **details)
        except Exception as error:
            raise AssertionError(f"{error}\n{(self.workdir / 'nodes.log').read_text()[-4000:]}") from error

    def pods(self):
        """What the nodes say about their pods, by name."""
        return {pod["pod"]: pod for pod in self.order("status")["pods"]}

    def kill(self):
        """SIGKILL, to the process only."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """End in an orderly way; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)

    def children(self):
        """Live processes of pods of these nodes."""
        return processes_below(self.workdir)

    def clean(self):
        """Leave nothing, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        end_leftovers(self.workdir, 0.0)


def until(condition, what=""):
    """The first true value of a condition."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {PATIENCE:g} s: {what or condition}"
        time.sleep(0.1)
    return found
