"""Processes of an earlier life of a working directory.

A supervisor dies with its starter and takes its tree along, so there normally are none; a supervisor that was killed
itself is the exception. Every process of a working directory carries its pod root in its environment, and every one of
a `kubectl exec` the mark of that session, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from videotrain.processes import supervisor
from videotrain_api.vocabulary import ENV_POD_ROOT

ENV_SESSION = "VIDEOTRAIN_EXEC_SESSION"
"""Mark of a `kubectl exec`."""
SELF_END_SECONDS = 5.0
"""What supervisors whose starter is gone get to end by themselves and to write how their command ended."""


def end_leftovers(root: Path, patience_seconds: float = SELF_END_SECONDS) -> list[int]:
    """End every process whose pod root lies at or below a directory, and wait until it is gone.

    Args:
        root: absolute directory, such as W or one pod's directory.
        patience_seconds: how long to wait before killing if a supervisor is among them, which is about to end them.

    Returns:
        Process ids that had to be killed.
    """

    def at_or_below(environment: Mapping[str, str]) -> bool:
        pod_root = environment.get(ENV_POD_ROOT)
        return bool(pod_root) and (Path(str(pod_root)) == root or root in Path(str(pod_root)).parents)

    return _end(at_or_below, patience_seconds)


def end_session(mark: str) -> list[int]:
    """End every process of a `kubectl exec`, whatever session of the kernel it went to, and wait until it is gone.

    Returns:
        Process ids that were killed.
    """
    return _end(lambda environment: environment.get(ENV_SESSION) == mark, 0.0)


def _end(is_meant: Callable[[Mapping[str, str]], bool], patience_seconds: float) -> list[int]:
    found = _processes(is_meant)
    if not found:
        return []
    supervised = any(_is_supervisor(process) for process in found)
    _, alive = psutil.wait_procs(found, timeout=patience_seconds if supervised else 0.0)
    killed: list[int] = []
    while alive:
        for process in alive:
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile, which is all that was wanted
                process.kill()
                killed.append(process.pid)
        psutil.wait_procs(alive, timeout=SELF_END_SECONDS)
        # A killed parent may have left children that were started after the look.
        alive = _processes(is_meant)
    return killed


def _processes(is_meant: Callable[[Mapping[str, str]], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            zombie = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended just now, or belongs to another user: not ours
        if not zombie and is_meant(environment):
            found.append(process)
    return found


def _is_supervisor(process: psutil.Process) -> bool:
    try:
        return supervisor.__file__ in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
