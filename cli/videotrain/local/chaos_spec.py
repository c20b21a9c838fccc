"""Faults on request: `kill-node@stage=NAME,step=N[,restore=SECONDS][,leader=true]`, `kill-worker@...`, `hang@...`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from videotrain.clock import utc_now
from videotrain.files import replace_file

_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "kill-node": frozenset({"stage", "step", "restore", "leader"}),
    "kill-worker": frozenset({"stage", "step", "leader"}),
    "hang": frozenset({"stage", "step", "leader"}),
}
"""Actions and what they take."""


class ChaosError(ValueError):
    """A fault that cannot be understood or cannot happen in this run."""


@dataclass(frozen=True)
class Fault:
    """One fault, to happen once."""

    text: str
    """As it was written; its identity over restarts."""
    action: str
    stage: str
    step: int
    """It happens as soon as this step of the stage was seen finished."""
    restore_seconds: float | None = None
    """The node comes back after so long; None: once the next generation has made some steps."""
    leader: bool = False
    """Hit the pod that leads the generation instead of the last one."""


def parse_faults(texts: Sequence[str], total_steps: Mapping[str, int | None]) -> list[Fault]:
    """Understand the faults of a command line.

    Args:
        texts: the values of --chaos; the same text given twice means one fault after the other.
        total_steps: steps of each stage by name; None where the number is not known in advance.

    Raises:
        ChaosError: one cannot be understood or can never happen; the message says what is allowed.
    """
    faults: list[Fault] = []
    for text in texts:
        fault = _parse(text)
        _check(fault, total_steps)
        again = sum(1 for other in texts[: len(faults)] if other == text)
        faults.append(replace(fault, text=f"{text}#{again + 1}") if again else fault)
    return faults


def _parse(text: str) -> Fault:
    action, _, rest = text.partition("@")
    if action not in _OPTIONS:
        raise ChaosError(f"--chaos {text!r}: action {action!r}: allowed are {', '.join(_OPTIONS)}")
    given: dict[str, str] = {}
    for part in rest.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in _OPTIONS[action] or name in given:
            allowed = ", ".join(sorted(_OPTIONS[action]))
            raise ChaosError(f"--chaos {text!r}: {part!r}: {action} takes each of {allowed} once, as NAME=VALUE")
        given[name] = value
    for name in ("stage", "step"):
        if not given.get(name):
            raise ChaosError(f"--chaos {text!r}: {name} is missing; write {action}@stage=NAME,step=N")
    step, leader = given["step"], given.get("leader", "false")
    if not step.isascii() or not step.isdigit() or int(step) < 1:
        raise ChaosError(f"--chaos {text!r}: step {step!r}: a whole number from 1 is needed")
    if leader not in ("true", "false"):
        raise ChaosError(f"--chaos {text!r}: leader {leader!r}: allowed are true and false")
    restore = _number(text, "restore", given["restore"]) if "restore" in given else None
    return Fault(text, action, given["stage"], int(step), restore, leader == "true")


def _number(text: str, name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ChaosError(f"--chaos {text!r}: {name} {value!r}: seconds from 0 are needed")
    return seconds


def _check(fault: Fault, total_steps: Mapping[str, int | None]) -> None:
    if fault.stage not in total_steps:
        names = ", ".join(total_steps)
        raise ChaosError(f"--chaos {fault.text!r}: stage {fault.stage!r}: the stages of this run are {names}")
    total = total_steps[fault.stage]
    if total is not None and fault.step >= total:
        raise ChaosError(
            f"--chaos {fault.text!r}: step {fault.step}: the stage ends with step {total}; allowed: 1 to {total - 1}"
        )


class FiredFaults:
    """Which faults have happened, in a file, so that a resumed run does not repeat them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fired: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.is_file() else {}

    def __contains__(self, fault: Fault) -> bool:
        return fault.text in self._fired

    def add(self, fault: Fault, target: str) -> None:
        """Remember before it is done: a run killed in between must not hit twice."""
        self._fired[fault.text] = {"at": utc_now(), "target": target}
        replace_file(self._path, json.dumps(self._fired, indent=2))
