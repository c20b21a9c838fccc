"""A real Prometheus that has scraped a real run, an operator beside a real API server, and pages of GPUs."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.controlplane import environment, program
from support.exporter_pages import LAB, POD, LabPod, Page, dcgm_page, http_targets, lab_operator, served
from support.local_process import LocalProcess
from support.prometheus import Prometheus
from support.release import Release, until

from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.tools import helm as helm_program
from videotrain.controlplane.tools import kubectl as kubectl_program
from videotrain_api.generate.alerts import rules
from videotrain_api.vocabulary import LABEL_TEAM

MONITORING = {
    "monitoring": {
        "authorization": False,
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "alerts": {"enabled": True},
        "dashboards": {"enabled": True, "grafanaOperator": {"enabled": True}},
    },
    "priceList": {"commitments": [{"name": "three-years", "gpus": 8, "pricePerGpuHour": "1.50"}]},
}
ROOT = Path(__file__).parents[2]
TINY = ROOT / "manifests/examples/tiny.yaml"
RUNS = "/apis/videotrain.dev/v1alpha1/namespaces/default/videotrainingruns"
RUN = "cats"
STEPS_BEFORE, STEPS_AFTER = 30, 80
PODS = [("default", f"{RUN}-w0"), ("default", f"{RUN}-w1"), (LAB["namespace"], POD)]


def _crd(group: str, version: str, plural: str, kind: str) -> dict[str, Any]:
    """A kind whose real definition lies with a project that is not at hand; it takes whatever it is given."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    }


MONITORING_CRDS = [
    _crd("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor"),
    _crd("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor"),
    _crd("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
    _crd("grafana.integreatly.org", "v1beta1", "grafanadashboards", "GrafanaDashboard"),
]


@dataclass(frozen=True)
class Scene:
    """What a Prometheus has scraped, from when to when."""

    prometheus: Prometheus
    start: float
    end: float
    """While everything still ran; seconds since 1970."""


@dataclass(frozen=True)
class InstalledScene(Scene):
    """The same of an operator that its chart installed, and what can be asked of that."""

    release: Release


def training_run() -> dict[str, Any]:
    """The tiny example on two nodes, with what has a panel: a team, a budget, validation, an evaluation."""
    body: dict[str, Any] = yaml.safe_load(TINY.read_text())
    body["metadata"] = {"name": RUN, "labels": {LABEL_TEAM: "vision"}}
    spec = body["spec"]
    spec |= {"nodes": {"min": 1, "max": 2}, "elasticity": {"waitForMaxSeconds": 60, "minGainSeconds": 0}}
    spec |= {"budget": {"maxCost": "5.00"}, "stages": spec["stages"][:4]}
    spec["stages"][1]["autoencoder"]["parallel"] = {"microBatchesPerStep": 2}
    train = spec["stages"][3]["train"]
    train |= {"steps": 5000, "parallel": {"microBatchesPerStep": 2}, "validation": {"everySteps": 10, "share": 0.2}}
    measured = {"reconstruction": {"resolution": "32px", "frames": 8, "clips": 2}}
    spec["stages"].insert(2, {"name": "measure", "task": "evaluate", "evaluate": measured})
    return body


@contextmanager
def operator_beside_an_api_server(folder: Path) -> Iterator[tuple[str, Release, Callable[[str], None]]]:
    """The operator as its chart is installed; yields host and port, and what makes a run whose pods find no node."""
    folder.mkdir()
    with ControlPlane(folder / "control") as plane:
        for crd in MONITORING_CRDS:
            plane.install(crd)
        folders = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        helm = program(helm_program(), environment(plane) | folders)
        release = Release(helm, program(kubectl_program(), environment(plane)))
        release.install(MONITORING)
        with release.operator(plane, folder) as log:
            until(lambda: "serving /metrics" in log.read_text(), log.read_text)
            found = re.search(r"serving /metrics.* on port (\d+)", log.read_text())
            assert found is not None
            tiny = yaml.safe_load(TINY.read_text())
            yield (
                f"127.0.0.1:{found[1]}",
                release,
                lambda name: plane.api().apply(f"{RUNS}/{name}", tiny | {"metadata": {"name": name}}),
            )


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A run with every stage that loses a node and gets it back; ended before its last step."""
    folder = tmp_path_factory.mktemp("scene")
    manifest, rule_file = folder / "run.yaml", folder / "rules.json"
    manifest.write_text(yaml.safe_dump(training_run()))
    rule_file.write_text(json.dumps(rules()))
    pod = LabPod()
    pages: dict[str, Page] = {
        "/lab/operator": lab_operator,
        "/lab/agent": pod.page,
        "/dcgm": lambda: dcgm_page(PODS),
        "/targets": lambda: http_targets(folder / "w" / "endpoints.json"),
    }
    with ExitStack() as stack:
        host = stack.enter_context(served(pages))
        jobs: list[dict[str, Any]] = [
            {"job_name": path.replace("/", "-").strip("-"), "metrics_path": path, "honor_labels": True,
             "static_configs": [{"targets": [host]}]}
            for path in ("/lab/operator", "/lab/agent", "/dcgm")
        ]  # fmt: skip
        discovery = [{"url": f"http://{host}/targets", "refresh_interval": "1s"}]
        jobs.append({"job_name": "run", "honor_labels": True, "http_sd_configs": discovery})
        prometheus = Prometheus(folder / "prometheus", jobs, rule_file)
        stack.callback(prometheus.stop)
        prometheus.start()
        start = time.time()
        local = LocalProcess(
            manifest, folder / "w", "--device", "cpu", "--chaos", f"kill-node@stage=train,step={STEPS_BEFORE}"
        )
        try:
            local.until_step("train", STEPS_AFTER)
            _await_scrape(prometheus)
            end = time.time()
        finally:
            if local.process.poll() is None:
                local.send(signal.SIGINT)
            local.end()
            local.errors.close()
        yield Scene(prometheus, start, end)


@pytest.fixture(scope="session")
def operator_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledScene]:
    """An operator that its chart installed beside a real API server, with a run that waits for nodes."""
    folder = tmp_path_factory.mktemp("operator-scene")
    rule_file = folder / "rules.json"
    rule_file.write_text(json.dumps(rules()))
    with ExitStack() as stack:
        operator, release, add_run = stack.enter_context(operator_beside_an_api_server(folder / "plane"))
        add_run("waits")
        job = {"job_name": "operator", "honor_labels": True, "static_configs": [{"targets": [operator]}]}
        prometheus = Prometheus(folder / "prometheus", [job], rule_file)
        stack.callback(prometheus.stop)
        prometheus.start()
        start = time.time()
        until(lambda: bool(prometheus.vector("videotrain_events_total > 0")), lambda: "no event was scraped")
        # A counter that was there from the first scrape on never rose: what the first run told may be older than that.
        add_run("waits-as-well")
        until(
            lambda: (
                bool(prometheus.vector("increase(videotrain_events_total[1m]) > 0"))
                and bool(prometheus.vector("count_over_time(videotrain_api_conflicts_total[5m]) > 20"))
            ),
            lambda: "no later event was scraped",
        )
        yield InstalledScene(prometheus, start, time.time(), release)


def _await_scrape(prometheus: Prometheus) -> None:
    """Until two worlds and a recovery are stored."""
    deadline = time.monotonic() + 300
    while not prometheus.vector(f'videotrain_recovery_seconds{{run="{RUN}"}}'):
        assert time.monotonic() < deadline, "no recovery was scraped"
        time.sleep(1)
