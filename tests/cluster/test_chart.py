"""The chart on a real control plane: install, upgrade, a whole run, and nothing left after uninstalling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.chart import NAMESPACE, RELEASE, ROOT, Json
from support.controlplane import Run, program
from support.release import Release, until

from videotrain.controlplane.tools import helm as helm_program
from videotrain.controlplane.tools import kubectl as kubectl_program

PASSING = {"events", "events.events.k8s.io", "componentstatuses"}
"""Resources whose objects come and go by themselves."""
Objects = set[tuple[str, str, str]]
RUN_SECONDS = 900.0
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`videotrain cluster up` with two nodes; yields its kubeconfig."""
    directory = tmp_path_factory.mktemp("cluster")
    record, log = directory / "cluster.json", directory / "up.log"
    command = [sys.executable, "-m", "videotrain", "cluster", "up", "--nodes", "2", "--gpus-per-node", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--directory", str(directory)], stdout=output, stderr=output)
    try:
        until(lambda: record.exists() or process.poll() is not None, log.read_text, 600)
        assert process.poll() is None, log.read_text()
        yield Path(json.loads(record.read_text())["kubeconfig"])
    finally:
        process.terminate()
        process.wait(120)


@pytest.fixture(scope="module")
def kubectl(cluster: Path) -> Run:
    return program(kubectl_program(), _environment(cluster))


@pytest.fixture(scope="module")
def release(cluster: Path, kubectl: Run, tmp_path_factory: pytest.TempPathFactory) -> Release:
    home = tmp_path_factory.mktemp("helm")
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    return Release(program(helm_program(), _environment(cluster) | folders), kubectl)


def _environment(kubeconfig: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return kept | {"KUBECONFIG": str(kubeconfig)}


def objects(kubectl: Run) -> Objects:
    """Every object of the cluster."""
    resources = set(kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()) - PASSING
    items = json.loads(kubectl("get", ",".join(sorted(resources)), "-A", "-o", "json").stdout)["items"]
    return {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]) for o in items}


def get(kubectl: Run, *what: str) -> Json:
    """One object of the release's namespace."""
    found: Json = json.loads(kubectl("--namespace", NAMESPACE, "get", *what, "-o", "json").stdout)
    return found


def log_of(kubectl: Run) -> str:
    """What there is to see when something did not happen."""
    pods = kubectl("--namespace", NAMESPACE, "get", "pods", "-o", "yaml", check=False).stdout
    runs = kubectl("get", "vtr,pods,events", "-A", "-o", "wide", check=False).stdout
    return pods[-6000:] + runs[-6000:]


def roll_out(kubectl: Run) -> None:
    done = kubectl(
        "--namespace", NAMESPACE, "rollout", "status", f"deployment/{RELEASE}", "--timeout=180s", check=False
    )
    assert done.returncode == 0, log_of(kubectl)


def leader(kubectl: Run) -> str:
    """Who holds the Lease; empty if nobody does."""
    return str(get(kubectl, "lease", RELEASE).get("spec", {}).get("holderIdentity", ""))


def test_from_install_to_uninstall(release: Release, kubectl: Run) -> None:
    kubectl("create", "namespace", NAMESPACE)
    until(
        lambda: ("ConfigMap", NAMESPACE, "kube-root-ca.crt") in objects(kubectl), lambda: "the namespace is not ready"
    )
    before = objects(kubectl)
    release.install({})
    roll_out(kubectl)
    _a_run_completes(kubectl)
    _both_replicas_serve(kubectl)
    _an_upgrade_keeps_what_the_operator_wrote(release, kubectl)
    release.uninstall()
    # Agents that outlive the operator know the next one by it.
    kept = before | {("Secret", NAMESPACE, f"{RELEASE}-key")}
    until(lambda: objects(kubectl) <= kept, lambda: f"left behind: {objects(kubectl) - kept}")
    assert objects(kubectl) == kept


def _a_run_completes(kubectl: Run) -> None:
    run = yaml.safe_load((ROOT / "manifests" / "examples" / "tiny.yaml").read_text())
    kubectl("apply", "-f", "-", stdin=json.dumps(run))
    kubectl("wait", "--for=condition=Complete", "vtr/tiny", f"--timeout={RUN_SECONDS}s", timeout=RUN_SECONDS + 60)
    kubectl("delete", "vtr", "tiny", "--wait")


def _both_replicas_serve(kubectl: Run) -> None:
    """None of them was started twice, as one would be that found its port taken or lacked a right."""
    states = [pod["status"]["containerStatuses"][0] for pod in get(kubectl, "pods")["items"]]
    assert [(state["ready"], state["restartCount"]) for state in states] == [(True, 0)] * 2, log_of(kubectl)


def _an_upgrade_keeps_what_the_operator_wrote(release: Release, kubectl: Run) -> None:
    configuration = ("validatingwebhookconfiguration", f"{RELEASE}.{NAMESPACE}")
    secret = get(kubectl, "secret", f"{RELEASE}-webhook")["data"]
    bundle = get(kubectl, *configuration)["webhooks"][0]["clientConfig"]["caBundle"]
    old = leader(kubectl)
    assert secret
    assert bundle
    assert old
    release.install({"operator": {"logLevel": "debug"}})
    roll_out(kubectl)
    assert get(kubectl, "secret", f"{RELEASE}-webhook")["data"] == secret
    assert get(kubectl, *configuration)["webhooks"][0]["clientConfig"]["caBundle"] == bundle
    until(lambda: leader(kubectl) not in ("", old), lambda: log_of(kubectl))


def test_defaults_for_runs_and_switches_reach_the_cluster(release: Release, kubectl: Run) -> None:
    """`runDefaults`, certificates without cert-manager, `extraObjects`, and what an upgrade changes of them."""
    kubectl("create", "namespace", NAMESPACE, check=False)
    note = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-note'}\n"
        "data: {a: {{ .Values.replicas | quote }}}"
    )
    defaults: Json = {
        "env": {"NCCL_DEBUG": "WARN"},
        "startDeadlineSeconds": 3600,
        "enforced": ["env", "startDeadlineSeconds"],
    }
    values: Json = {"runDefaults": defaults, "webhook": {"certManager": {"enabled": False}}, "extraObjects": [note]}
    release.install(values)
    roll_out(kubectl)
    assert get(kubectl, "configmap", f"{RELEASE}-note")["data"] == {"a": "2"}
    assert not kubectl("api-resources", "--api-group=cert-manager.io", "-o", "name").stdout
    body = yaml.safe_load((ROOT / "manifests" / "examples" / "tiny.yaml").read_text())
    for field, value in (
        ("startDeadlineSeconds", 7200),
        ("pool", body["spec"]["pool"] | {"env": {"NCCL_DEBUG": "INFO"}}),
    ):
        over = body | {"spec": body["spec"] | {field: value}}
        refused = kubectl("apply", "-f", "-", stdin=json.dumps(over), check=False)
        assert refused.returncode != 0 and field in refused.stderr, refused.stderr
    assert _variables_of_a_worker(kubectl, body) >= {("NCCL_DEBUG", "WARN")}
    release.install(values | {"runDefaults": defaults | {"env": {"NCCL_DEBUG": "ERROR"}}, "extraObjects": []})
    roll_out(kubectl)
    assert kubectl("-n", NAMESPACE, "get", "configmap", f"{RELEASE}-note", check=False).returncode != 0
    until(lambda: ("NCCL_DEBUG", "ERROR") in _variables_of_a_worker(kubectl, body), lambda: log_of(kubectl))
    release.uninstall()


def _variables_of_a_worker(kubectl: Run, body: Json) -> set[tuple[str, str | None]]:
    """Environment of the first pod of a run, which is deleted then."""
    kubectl("apply", "-f", "-", stdin=json.dumps(body))
    name = body["metadata"]["name"]
    until(lambda: bool(_pods(kubectl, name)), lambda: log_of(kubectl))
    (worker, *_) = _pods(kubectl, name)[0]["spec"]["containers"]
    kubectl("delete", "vtr", name, "--wait")
    until(lambda: not _pods(kubectl, name), lambda: log_of(kubectl))
    return {(each["name"], each.get("value")) for each in worker["env"]}


def _pods(kubectl: Run, run: str) -> list[Json]:
    found: list[Json] = json.loads(kubectl("get", "pods", "-l", f"videotrain.dev/run={run}", "-o", "json").stdout)[
        "items"
    ]
    return found
