"""Series of NVIDIA's dcgm-exporter that boards and alerts show beside ours, by the names that it gives them.

In Kubernetes it adds the pod that holds a GPU. Its scrape must keep these labels (`honorLabels: true`), or they are
called `exported_pod` and `exported_namespace` and fit no run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

LABELS: Final = ("gpu", "UUID", "modelName", "Hostname", "namespace", "pod", "container")
"""Of every series."""


@dataclass(frozen=True)
class Series:
    """One gauge of a GPU."""

    name: str
    help: str
    """One sentence with the unit."""
    kind: Literal["gauge"] = "gauge"
    labels: tuple[str, ...] = LABELS


TENSOR_ACTIVE: Final = Series("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "Share of the time in which tensor cores work.")
MEMORY_ACTIVE: Final = Series("DCGM_FI_PROF_DRAM_ACTIVE", "Share of the time in which memory is read or written.")
POWER: Final = Series("DCGM_FI_DEV_POWER_USAGE", "Power in watts.")
TEMPERATURE: Final = Series("DCGM_FI_DEV_GPU_TEMP", "Temperature in degrees Celsius.")
CLOCK: Final = Series("DCGM_FI_DEV_SM_CLOCK", "Clock of the multiprocessors in MHz.")
MEMORY_USED: Final = Series("DCGM_FI_DEV_FB_USED", "Memory in use in MiB.")
XID: Final = Series("DCGM_FI_DEV_XID_ERRORS", "Newest error code of the driver; 0 for none.")
DCGM: Final = {s.name: s for s in (TENSOR_ACTIVE, MEMORY_ACTIVE, POWER, TEMPERATURE, CLOCK, MEMORY_USED, XID)}
"""Every series by its name."""
