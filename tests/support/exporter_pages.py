"""Metrics pages beside those of a run on this machine: what there is only where there are GPUs.

The lab's run and pod are told by the operator's and the agent's own classes. The page of dcgm-exporter is written here,
in that exporter's form, for there is no GPU to ask.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import sin
from pathlib import Path
from typing import Any, Final

from support.planner_builders import manifest

from videotrain_api import metrics as catalogue
from videotrain_api.generate import dcgm
from videotrain_api.records import GenerationProgress, Measures, StepRecord
from videotrain_api.resource.status import CostStatus, RunStatus, StageStatus, SuspectNode, ThroughputStatus
from videotrain_api.vocabulary import LABEL_TEAM
from videotrain_operator.telemetry import OperatorMetrics
from videotrain_trainer.agent.metrics import AgentMetrics
from videotrain_trainer.worker.pod import Pod

Page = Callable[[], bytes]
LAB: Final = {"namespace": "lab", "run": "film"}
"""The run that is told of, whose one pod has a GPU of known speed."""
POD: Final = "film-w0"
LOOKS: Final = Measures(clips=3, psnr=30.5, ssim=0.9)


def lab_operator() -> bytes:
    """What the operator tells of the lab's run."""
    status = RunStatus(
        phase="Running",
        stage="train",
        stages=[
            StageStatus(
                name="train", task="train", state="Running", config_hash="0" * 16, total_steps=100, frames_per_step=264
            ),
            StageStatus(name="look", task="evaluate", state="Succeeded", config_hash="0" * 16, evaluation=LOOKS),
        ],
        throughput=ThroughputStatus(samples_per_second=2.0, tokens_per_second=9000.0, mfu_percent=41.0),
        suspect_nodes=[SuspectNode(name="node-7", reason="XID 79", since=datetime.now(UTC))],
        cost=CostStatus(currency="EUR", rate_per_hour="28.8", forecast="40", forecast_low="38", forecast_high="43"),
    )
    body = manifest(budget={"maxCost": "50"})
    body["spec"]["pool"]["currency"] = "EUR"
    body["metadata"] |= {"name": LAB["run"], "namespace": LAB["namespace"], "labels": {LABEL_TEAM: "film"}}
    metrics = OperatorMetrics()
    metrics.add_source(
        lambda: [
            (catalogue.TRAINING_BUDGET_AMOUNT, ("film", "EUR"), 2000.0),
            (catalogue.TRAINING_BUDGET_SPENT, ("film", "EUR"), 1300.0),
            (catalogue.TRAINING_BUDGET_EXPECTED, ("film", "EUR"), 1900.0),
            (catalogue.TRAINING_BUDGET_ACTION, ("film", "Notify"), 0.0),
            (catalogue.TRAINING_BUDGET_JUDGED, ("film",), 1.0),
            (catalogue.RESERVED_GPUS, ("three-years", "committed"), 64.0),
            (catalogue.RESERVED_GPUS, ("three-years", "held"), 48.0),
            (catalogue.RESERVED_IDLE_COST, ("three-years", "EUR"), 24.0),
            (catalogue.BILLS_WAITING, (), 0.0),
            (catalogue.BILL_COPY_FAILURES, (), 0),
        ]
    )
    metrics.note_pass(body, status.to_wire(), 0.004, [])
    return metrics.text()


class LabPod:
    """The agent of the lab's pod; a step of two stages is done for each look at its page."""

    def __init__(self) -> None:
        self._metrics = AgentMetrics(
            Pod(name=POD, uid="1", address="127.0.0.1", run=LAB["run"], namespace=LAB["namespace"], root=Path("/"))
        )
        self._step = 0

    def page(self) -> bytes:
        """After another step."""
        now, self._step = datetime.now(UTC), self._step + 1
        self._metrics.record(
            StepRecord(
                generation=1, stage="train", step=self._step, started_at=now - timedelta(seconds=0.9), finished_at=now,
                data_stall_us=40_000, checkpoint_us=10_000, samples=8, tokens=32_000, model_flops=4e14, loss=0.4,
                gradient_norm=0.8, learning_rate=1e-4, bucket="256px/33f/16:9", slowest_rank=0, straggler_ratio=0.05,
                world_spread=0.04, sample_requests=9, second_requests=1, cache_hits=6, cache_misses=2,
                cache_bytes=3 * 2**30, slowest_sample_us=80_000,
            ),
            range(1),
        )  # fmt: skip
        encoded = StepRecord(
            generation=1, stage="encode", step=self._step, started_at=now - timedelta(seconds=0.9), finished_at=now,
            data_stall_us=0, checkpoint_us=0, samples=64, tokens=0, model_flops=2e14, stored_bytes=64 * 300_000,
        )  # fmt: skip
        self._metrics.record(encoded)
        mfu = 0.41 + 0.01 * sin(self._step)
        self._metrics.progress(
            GenerationProgress(
                generation=1, stage="train", state="running", launched_at=now, samples_per_second=8.0,
                tokens_per_second=32_000.0, mfu=mfu, hfu=mfu * 4 / 3, useful_mfu=mfu * 0.98, memory_bytes=120 * 10**9,
            )
        )  # fmt: skip
        return self._metrics.text()


def dcgm_page(pods: Sequence[tuple[str, str]]) -> bytes:
    """What dcgm-exporter tells of two GPUs of each pod, given as namespace and name."""
    lines = []
    now = datetime.now(UTC).timestamp()
    values = {
        dcgm.TENSOR_ACTIVE: 0.44, dcgm.MEMORY_ACTIVE: 0.35, dcgm.POWER: 610.0, dcgm.TEMPERATURE: 61.0,
        dcgm.CLOCK: 1755.0, dcgm.MEMORY_USED: 118_000.0, dcgm.XID: 0.0,
    }  # fmt: skip
    for series, value in values.items():
        lines.append(f"# HELP {series.name} {series.help}\n# TYPE {series.name} {series.kind}")
        for number, (namespace, pod) in enumerate(pods):
            for gpu in range(2):
                shown = value * (1 + 0.03 * sin(now / 7 + number * 2 + gpu))
                labels = {"gpu": gpu, "UUID": f"GPU-{number}{gpu}", "modelName": "NVIDIA H200", "container": "worker"}
                labels |= {"Hostname": f"node-{number}", "namespace": namespace, "pod": pod}
                text = ",".join(f'{name}="{value}"' for name, value in labels.items())
                lines.append(f"{series.name}{{{text}}} {shown:.4f}")
    return ("\n".join(lines) + "\n").encode()


@contextmanager
def served(pages: dict[str, Page]) -> Iterator[str]:
    """Serve pages by their paths on this machine; yields host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            body = page() if page else b""
            self.send_response(200 if page else 404)
            kind = "application/json" if body.startswith(b"[") else "text/plain; version=0.0.4"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def http_targets(endpoints: Path) -> bytes:
    """Targets of a run on this machine, by the file that its command keeps, for Prometheus' http_sd."""
    if not endpoints.is_file():
        return b"[]"
    known = json.loads(endpoints.read_text())
    addresses = [known["operator"], *known.get("agents", {}).values()]
    hosts = [address.removeprefix("http://").partition("/")[0] for address in addresses]
    return json.dumps([{"targets": hosts}]).encode()
