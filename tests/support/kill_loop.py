"""`videotrain local` whose processes are killed at random moments, and which is given again until it succeeds."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.local_process import LocalProcess
from support.processes import processes_below

from videotrain.local.chaos import WORKER_NAME

NAMES = {"agent": "videotrain-trai", "worker": WORKER_NAME, "S3 server": "weed"}
"""How the names of the victims' processes begin; the kernel keeps 15 letters."""
VICTIMS = ("command", *NAMES)
LONGEST_PAUSE = 9.0
"""Seconds between two kills, at most; a run without any takes about twenty."""
GONE_SECONDS = 30.0
"""In which every process of a killed command must be gone."""


@dataclass
class Killed:
    """What became of one working directory."""

    workdir: Path
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """Processes that outlived a command."""
    log: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{victim} {count}" for victim, count in sorted(self.kills.items()))
        return f"{self.workdir.name}: {self.starts} starts, killed: {kills or 'nothing'}"


def run_killed(manifest: Path, workdir: Path, kills: int, chance: random.Random) -> Killed:
    """Give the command again and again until the run succeeds, with so many kills before.

    Args:
        manifest: of the run.
        workdir: a new working directory.
        kills: how many; fewer if the run is over before.
        chance: moments and victims.

    Raises:
        AssertionError: the command ended otherwise than by success or by a kill.
    """
    killed = Killed(workdir)
    while True:
        killed.starts += 1
        local = LocalProcess(manifest, workdir, "--device", "cpu")
        reader = threading.Thread(target=local.end, daemon=True)
        reader.start()
        wanted = _kill_until_it_ends(local, reader, killed, kills, chance)
        killed.log.append(f"start {killed.starts} ended with {local.process.returncode}")
        _, alive = psutil.wait_procs(local.processes(), timeout=GONE_SECONDS)
        killed.left += [f"{process.pid} {process.name()}" for process in alive]
        told = local.told()
        local.errors.close()
        local.stdout.close()
        if local.process.returncode == 0:
            killed.summary = local.summary()
            return killed
        assert wanted, f"{killed.log}\n{told}"


def _kill_until_it_ends(
    local: LocalProcess, reader: threading.Thread, killed: Killed, kills: int, chance: random.Random
) -> bool:
    """Whether something was killed without which the command cannot go on."""
    fatal = False
    while reader.is_alive():
        left = kills - killed.kills.total()
        reader.join(chance.uniform(0.3, LONGEST_PAUSE) if left > 0 else None)
        victim = chance.choice(VICTIMS)
        if reader.is_alive() and _kill(local, victim):
            killed.kills[victim] += 1
            killed.log.append(f"SIGKILL to the {victim}")
            fatal = fatal or victim in ("command", "S3 server")
    return fatal


def _kill(local: LocalProcess, victim: str) -> bool:
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if victim == "command":
            local.send(signal.SIGKILL)
            return True
        for process in processes_below(local.workdir):
            if process.name().startswith(NAMES[victim]):
                process.kill()
                return True
    return False
