"""The GPUs of this machine, shared out among process nodes and their pods.

NCCL refuses two ranks on one GPU, and gloo has no collectives on GPU memory that ZeRO needs, so worker processes never
share one: each gets its own, or all use the CPU.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from videotrain.errors import UsageError
from videotrain.processes.podfiles import ContainerConfigError
from videotrain.processes.programs import TRAINER, find_program
from videotrain_api.records import DeviceReport
from videotrain_api.vocabulary import ENV_VISIBLE_GPUS

Device = Literal["auto", "cpu", "cuda"]
VISIBLE: Final = ENV_VISIBLE_GPUS
DRIVER: Final = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""One of these exists where an NVIDIA driver is (the last one in Windows' Linux)."""
PATIENCE_SECONDS: Final = 120.0
"""For PyTorch's answer; a driver that does not work may never give one."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The GPUs that may be used."""

    names: tuple[str, ...] = ()
    """As CUDA_VISIBLE_DEVICES names them."""
    detail: str
    """What they are, or why there are none."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which GPUs each node has for its pods."""

    nodes: tuple[tuple[str, ...], ...]
    """By number of the node; all are empty if the pods use the CPU."""
    summary: str
    """A sentence for people."""

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """GPUs by name of the node."""
        return {f"node-{number}": names for number, names in enumerate(self.nodes)}


@dataclass(frozen=True, kw_only=True)
class Need:
    """How many GPUs would be used, and what decides that."""

    nodes: int
    per_node: int
    fields: str
    """Where to change it, such as `spec.nodes.max and spec.pool.gpusPerNode`."""

    def __str__(self) -> str:
        shape = f"{_count(self.nodes, 'node')} with {_count(self.per_node, 'worker process')} each"
        return f"{shape} would need {_count(self.nodes * self.per_node, 'GPU')}, one for each process"


def share_devices(device: Device, need: Need, found: Found | None = None, first: int = 0) -> Shares:
    """Share out the GPUs of this machine.

    Args:
        device: `cpu`; `cuda`; or `auto` for GPUs if there are enough of them, and else the CPU.
        need: nodes, and GPUs of each.
        found: the GPUs; those of this machine if None.
        first: number of the first node.

    Raises:
        UsageError: `cuda`, and there are too few.
    """
    cpu = ((),) * need.nodes
    if device == "cpu":
        return Shares(nodes=cpu, summary="devices: the CPU, as asked for")
    found = found or find_devices()
    names, total = found.names, need.nodes * need.per_node
    if len(names) >= total:
        parts = tuple(names[number * need.per_node : (number + 1) * need.per_node] for number in range(need.nodes))
        each = "; ".join(f"node-{number}: {', '.join(part)}" for number, part in enumerate(parts, first))
        return Shares(nodes=parts, summary=f"devices: GPUs, one for each worker process ({each}); {found.detail}")
    if device == "cuda":
        raise UsageError(
            f"--device cuda: {need}, and {_count(len(names), 'GPU')} can be used here ({found.detail}); lower "
            f"{need.fields}, or allow the CPU with --device auto or --device cpu"
        )
    if not names:
        return Shares(nodes=cpu, summary=f"devices: the CPU ({found.detail})")
    summary = (
        f"devices: the CPU, since {need}, and {_count(len(names), 'GPU')} can be used here ({found.detail}); lower "
        f"{need.fields} to use GPUs"
    )
    return Shares(nodes=cpu, summary=summary)


def find_devices(environment: Mapping[str, str] = os.environ, driver: Sequence[Path] = DRIVER) -> Found:
    """Ask the trainer which GPUs PyTorch can use; where there is no driver nobody needs to be asked.

    Args:
        environment: CUDA_VISIBLE_DEVICES in it names the GPUs that may be used, as for every CUDA program.
        driver: signs of a driver.
    """
    visible = environment.get(VISIBLE)
    if visible is not None and visible.strip() in ("", "-1"):
        return Found(detail=f"{VISIBLE} names no GPU")
    if not any(sign.exists() for sign in driver):
        return Found(detail="there is no NVIDIA driver")
    try:
        report = _ask_trainer(environment)
    except _NoAnswerError as error:
        return Found(detail=f"there is an NVIDIA driver, but {error}")
    if not report.names:
        problem = report.problem or f"PyTorch {report.pytorch} finds no GPU that it can use"
        origin = f" ({VISIBLE} is {visible!r})" if visible is not None else ""
        return Found(detail=f"there is an NVIDIA driver, but {problem}{origin}")
    # CUDA stops at the first name that it does not know, so the first ones are those that it found.
    names = [name.strip() for name in visible.split(",")] if visible is not None else map(str, range(len(report.names)))
    origin = f", of {VISIBLE}" if visible is not None else ""
    kinds = ", ".join(f"{report.names.count(kind)} x {kind}" for kind in dict.fromkeys(report.names))
    return Found(names=tuple(names)[: len(report.names)], detail=f"{kinds}{origin}")


class _NoAnswerError(Exception):
    """The trainer could not say which GPUs there are."""


def _ask_trainer(environment: Mapping[str, str]) -> DeviceReport:
    program = find_program(TRAINER, environment)
    if program is None:
        raise _NoAnswerError(f"the program {TRAINER}, which would use its GPUs, is not installed")
    try:
        done = subprocess.run(
            [program, "devices"],
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        return DeviceReport.model_validate_json(done.stdout)
    except subprocess.TimeoutExpired:
        raise _NoAnswerError(f"PyTorch gave no answer about its GPUs in {PATIENCE_SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        raise _NoAnswerError(f"PyTorch cannot start: {told[0]}") from None
    except (OSError, ValidationError) as error:
        raise _NoAnswerError(f"{TRAINER} gave no answer about its GPUs: {error}") from None


class NodeDevices:
    """The GPUs of one node, given to its pods as a kubelet's device plug-in gives them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._held: dict[str, tuple[str, ...]] = {}

    def take(self, uid: str, count: int) -> dict[str, str]:
        """Environment by which the containers of a pod see their GPUs and no others; the same if asked again.

        Nodes without GPUs only count them, so nothing is visible there.

        Raises:
            ContainerConfigError: too few are free yet.
        """
        if self._names and uid not in self._held:
            taken = {name for held in self._held.values() for name in held}
            free = [name for name in self._names if name not in taken]
            if len(free) < count:
                raise ContainerConfigError(f"{count} GPUs are asked for, and {len(free)} of the node's are free yet")
            self._held[uid] = tuple(free[:count])
        return {VISIBLE: ",".join(self._held.get(uid, ()))}

    def give_back(self, uid: str) -> None:
        """The pod's containers have ended."""
        self._held.pop(uid, None)


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
