"""One `videotrain local` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from support.processes import processes_below

from videotrain.commands.get import DATABASE_FILE
from videotrain.embedded.database import read_objects
from videotrain.objectstore.s3_client import KEY_ID, SECRET_KEY, Credentials, s3_client
from videotrain.processes.podfiles import secret_value
from videotrain.report.workdir import S3Objects
from videotrain_api.schema import Json
from videotrain_api.vocabulary import KIND


class LocalProcess:
    """One `videotrain local` whose JSON lines are read as they come.

    Args:
        manifest: of the run.
        workdir: its working directory.
        options: of the command.
        entering: a command that starts it, such as nsenter with its options.
    """

    def __init__(self, manifest: Path, workdir: Path, *options: str, entering: Sequence[str] = ()) -> None:
        self.workdir = workdir
        command = [
            *entering,
            sys.executable,
            "-m",
            "videotrain",
            "local",
            str(manifest),
            "--workdir",
            str(workdir),
            "--json",
        ]
        self.errors = (workdir.parent / f"{workdir.name}.stderr").open("a+")
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=self.errors, text=True)
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self.lines: list[dict[str, Any]] = []

    def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first line that fits; fails with what was said if the process ends before."""
        for text in self.stdout:
            self.lines.append(json.loads(text))
            if condition(self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"ended with {self.process.wait()} before it happened:\n{self.told()}")

    def until_step(self, stage: str, step: int) -> dict[str, Any]:
        """The status in which a stage has finished a step."""

        def reached(line: dict[str, Any]) -> bool:
            status = line.get("status", {})
            return status.get("stage") == stage and status.get("step", 0) >= step

        status: dict[str, Any] = self.until(reached)["status"]
        return status

    def end(self) -> int:
        """Wait for the end; gives the exit code."""
        self.lines += [json.loads(text) for text in self.stdout]
        return self.process.wait()

    def send(self, number: int) -> None:
        """Send a signal to the command itself."""
        os.kill(self.process.pid, number)

    def told(self) -> str:
        """Messages and errors, for a failing test."""
        self.errors.seek(0)
        messages = [line["message"] for line in self.lines if "message" in line]
        return "\n".join([*messages, self.errors.read()])

    def summary(self) -> dict[str, Any]:
        """summary.json."""
        summary: dict[str, Any] = json.loads((self.workdir / "summary.json").read_text())
        return summary

    def processes(self) -> list[psutil.Process]:
        """Live processes that belong to the working directory, apart from the command itself."""
        return processes_below(self.workdir)


def store_of(workdir: Path) -> tuple[S3Objects, Json]:
    """The running object store of a working directory, and the status of its run."""
    (run,) = read_objects(workdir / DATABASE_FILE, KIND)
    storage = run["spec"]["storage"]
    secrets = {secret["metadata"]["name"]: secret for secret in read_objects(workdir / DATABASE_FILE, "Secret")}
    keys = secrets[storage["credentialsSecret"]]
    credentials = Credentials(*(secret_value(keys, name) for name in (KEY_ID, SECRET_KEY)))
    return S3Objects(s3_client(storage["endpointUrl"], credentials, "us-east-1")), run["status"]
