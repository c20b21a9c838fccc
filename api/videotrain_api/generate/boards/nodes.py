"""The nodes and GPUs of one run: what their driver says beside what its workers say."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate import dcgm
from videotrain_api.generate.boards.queries import CLUSTER, OF_POD, OF_RUN, RESTARTS, STEP, WORLDS, or_none
from videotrain_api.generate.panels import Board, Panel

_PODS_OF_RUN: Final = f"and on (namespace, pod) max by (namespace, pod) ({m.GENERATION.name}{OF_RUN})"


def _gpus(series: dcgm.Series) -> str:
    """Of the GPUs that pods of the run hold; the exporter knows pods and no runs."""
    return f'{series.name}{{{CLUSTER}, namespace="$namespace", pod=~"$pod"}} {_PODS_OF_RUN}'


def _of_gpu(series: dcgm.Series) -> tuple[tuple[str, str]]:
    return ((f"max by (Hostname, pod, gpu) ({_gpus(series)})", "{{Hostname}} GPU {{gpu}}, {{pod}}"),)


_GPUS: Final = (
    Panel(
        "Tensor cores, beside MFU and HFU",
        (
            (f"avg by (Hostname, pod) ({_gpus(dcgm.TENSOR_ACTIVE)})", "tensor cores of {{Hostname}}, {{pod}}"),
            (f"max by (stage) ({m.MFU_RATIO.name}{OF_RUN})", "MFU, {{stage}}"),
            (f"max by (stage) ({m.HFU_RATIO.name}{OF_RUN})", "HFU, {{stage}}"),
        ),
        "percentunit",
        help="Tensor cores that work all the time at a low MFU compute what is not counted, or at a low clock.",
        span=12,
    ),
    Panel("Memory that is read or written", _of_gpu(dcgm.MEMORY_ACTIVE), "percentunit", span=12),
    Panel("Power", _of_gpu(dcgm.POWER), "watt"),
    Panel("Temperature", _of_gpu(dcgm.TEMPERATURE), "celsius"),
    Panel("Clock of the multiprocessors", _of_gpu(dcgm.CLOCK), "rotmhz"),
    Panel("Memory in use", _of_gpu(dcgm.MEMORY_USED), "mbytes"),
    Panel(
        "Newest error of the driver (XID)",
        _of_gpu(dcgm.XID),
        help="0 is none. 48, 63, 64, 74, 79, 94 and 95 are faults of the hardware.",
    ),
    Panel(
        "Most memory held by a GPU, as workers say",
        ((f"max by (pod) ({m.MEMORY_PEAK_BYTES.name}{OF_POD})", "{{pod}}"),),
        "bytes",
    ),
)

_STRAGGLERS: Final = (
    Panel(
        "Steps in which a rank of the pod was the slowest",
        (
            (
                f"max by (pod) (rate({m.SLOWEST_STEPS.name}{OF_POD}{STEP}))"
                f" / scalar(max(rate({m.STEP_SECONDS.name}_count{OF_RUN}{STEP})))",
                "{{pod}}",
            ),
        ),
        "percentunit",
        help="Share of the steps. In an even world all pods take turns.",
    ),
    Panel(
        "The slowest rank over the median",
        ((f"max by (stage) ({m.STRAGGLER_RATIO.name}{OF_RUN})", "{{stage}}"),),
        "percentunit",
    ),
    Panel(
        "Spread of the ranks' compute time",
        ((f"max by (stage) ({m.WORLD_SPREAD_RATIO.name}{OF_RUN})", "{{stage}}"),),
        "percentunit",
        help="Slowest minus fastest over the mean; a straggler holds everybody up by this share.",
    ),
)

_PODS: Final = (
    Panel(
        "Nodes that the run avoids",
        ((or_none(f"max by (node) ({m.SUSPECT_NODE.name}{OF_RUN})", "node"), "{{node}}"),),
        kind="stack",
        help="Something failed there: 1 for each such node.",
    ),
    Panel("Nodes of the run", ((f"max by (kind) ({m.RUN_NODES.name}{OF_RUN})", "{{kind}}"),)),
    Panel("Workers' states", ((f"sum by (state) ({m.WORKER_STATE.name}{OF_POD})", "{{state}}"),), kind="stack"),
    Panel(
        "Ends of worker processes by exit code",
        ((f"sum by (pod, code) ({m.WORKER_EXITS.name}{OF_POD})", "{{pod}}: {{code}}"),),
        kind="stack",
    ),
    Panel(
        "Generation of each pod",
        ((f"max by (pod) ({m.GENERATION.name}{OF_POD})", "{{pod}}"),),
        help="A pod that is behind the others was left out, or does not answer.",
    ),
    Panel(
        "Worker processes of the world",
        ((f"max by (pod) ({m.WORLD_SIZE.name}{OF_POD})", "{{pod}}"),),
    ),
)

NODES: Final = Board(
    "videotrain-nodes",
    "videotrain / nodes and GPUs",
    ("cluster", "namespace", "run", "pod"),
    (("GPUs", _GPUS), ("Stragglers", _STRAGGLERS), ("Pods and nodes", _PODS)),
    (RESTARTS, WORLDS),
    one_run=True,
)
