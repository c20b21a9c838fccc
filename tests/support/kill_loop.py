"""`videotrain local` whose processes are killed at random moments, and which is given again until it succeeds."""

from __future__ import annotations

import random
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
"""Seconds that a victim lives after it was found, at most; a run without any kill takes about twenty."""
LOOK_SECONDS = 0.2
"""Between two looks for a victim."""
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
        if killed.kills.total() == kills:
            reader.join()
        # A victim that is there for a short while is as likely as one that is always there.
        victim, pause = chance.choice(VICTIMS), chance.uniform(0, LONGEST_PAUSE)
        while reader.is_alive() and not _living(local, victim):
            reader.join(LOOK_SECONDS)
        reader.join(pause)
        if reader.is_alive() and _kill(local, victim):
            killed.kills[victim] += 1
            killed.log.append(f"SIGKILL to the {victim}")
            fatal = fatal or victim in ("command", "S3 server")
    return fatal


def _living(local: LocalProcess, victim: str) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        if victim == "command":
            return psutil.Process(local.process.pid)
        return next((one for one in processes_below(local.workdir) if one.name().startswith(NAMES[victim])), None)
    return None


def _kill(local: LocalProcess, victim: str) -> bool:
    process = _living(local, victim)
    with suppress(psutil.NoSuchProcess):
        if process is not None:
            process.kill()
            return True
    return False
