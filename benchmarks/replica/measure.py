"""Milliseconds of a call, and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Milliseconds of repeated calls: device events on a GPU, wall time on a CPU."""

    def __init__(self, device: torch.device, *, warm_up: int, repeats: int) -> None:
        self.device, self._warm_up, self._repeats = device, warm_up, repeats

    def __call__(self, work: Callable[[], object]) -> dict[str, float]:
        """Median, least and most after the warm-up."""
        for _ in range(self._warm_up):
            work()
        times = [self._once(work) for _ in range(self._repeats)]
        return {"ms": statistics.median(times), "min": min(times), "max": max(times), "calls": len(times)}

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            began = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began)
        began_event, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began_event.record()
        work()
        ended.record()
        ended.synchronize()
        return float(began_event.elapsed_time(ended))


def peak_gigabytes(device: torch.device) -> float | None:
    """Largest memory that tensors took since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    facts: dict[str, Any] = {
        "device": "cpu",
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    if device.type == "cuda":
        import triton  # type: ignore[import-untyped,unused-ignore]

        about = torch.cuda.get_device_properties(device)
        facts |= {
            "device": about.name,
            "capability": f"{about.major}.{about.minor}",
            "memory_gb": about.total_memory / 1e9,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "triton": triton.__version__,
            "allocator": os.environ.get("PYTORCH_ALLOC_CONF", ""),
        }
    return facts


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed or copied tree
    return done.stdout.strip()
