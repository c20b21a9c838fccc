"""Least rights on a real API server: the documented rights are granted, all of them are used, none is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.audit import AuditedControlPlane
from support.chart import NAMESPACE, OWN, RELEASE, ROOT, Json, Rules, table
from support.controlplane import Run, environment, program
from support.plane_objects import create_namespace
from support.release import ACCOUNT, Release, scrape, token, until

from videotrain.controlplane.kwok import create_nodes
from videotrain.controlplane.settings import Kwok, Settings
from videotrain.controlplane.tools import helm as helm_program
from videotrain.controlplane.tools import kubectl as kubectl_program
from videotrain_operator.kube.kinds import KINDS

ENFORCEMENT = "rbac.ownerReferencesPermissionEnforcement"
RUNS, CLUSTER, RELEASED = "namespaces of runs", "cluster", "namespace of the release"
MODES: dict[str, Json] = {"cluster-wide": {}, "namespaced": {"namespaces": ["team"]}}
FORBIDDEN = 403
TRAINS = ("train", "autoencoder")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedControlPlane]:
    with AuditedControlPlane(tmp_path_factory.mktemp("audited"), Settings(kwok=Kwok()), [ACCOUNT]) as running:
        for name in ("team", "other"):
            create_namespace(running, name)
        create_nodes(running.api(), ["h200-0", "h200-1"])
        yield running


@pytest.fixture(scope="module")
def release(plane: AuditedControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Release:
    home = tmp_path_factory.mktemp("helm")
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    kubectl = program(kubectl_program(), environment(plane))
    return Release(program(helm_program(), environment(plane) | folders), kubectl)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, release: Release) -> Iterator[str]:
    """A release in this mode; gone afterwards."""
    release.install(MODES[request.param])
    yield request.param
    release.uninstall()
    # It outlives the release; with it there, the operator of the next one would not have to write it.
    release.kubectl("-n", NAMESPACE, "delete", "secret", f"{RELEASE}-key")


def documented(place: str) -> Rules:
    return table(place, but=ENFORCEMENT)


def listed(kubectl: Run, user: str, namespace: str) -> Rules:
    """What `kubectl auth can-i --list` says of a user in a namespace."""
    text = kubectl("auth", "can-i", "--list", "--as", user, "--namespace", namespace).stdout
    found: Rules = set()
    for line in text.splitlines()[1:]:
        match = re.fullmatch(r"(\S+)\s+\[\]\s+\[(.*?)\]\s+\[(.*?)\]", line.strip())
        if match is None:
            continue  # a URL that is no resource
        target, only, verbs = match.groups()
        full, _, subresource = target.partition("/")
        plural, _, group = full.partition(".")
        resource = f"{plural}/{subresource}" if subresource else plural
        found |= {(group, resource, verb, name) for verb in verbs.split() for name in only.split() or [""]}
    return found


def test_can_i_list_equals_the_documented_table(mode: str, release: Release) -> None:
    everywhere = documented(CLUSTER) | (documented(RUNS) if mode == "cluster-wide" else set())
    wanted = {
        "team": everywhere | documented(RUNS),
        "other": everywhere,
        NAMESPACE: everywhere | documented(RELEASED),
    }
    for namespace, rules in wanted.items():
        nobody = listed(release.kubectl, f"system:serviceaccount:{NAMESPACE}:default", namespace)
        assert listed(release.kubectl, ACCOUNT, namespace) - nobody == rules, namespace


def used(plane: AuditedControlPlane, since: int) -> tuple[Rules, list[str]]:
    """What the operator's requests needed, and those that were refused for lack of a right."""
    needed: Rules = set()
    refused: list[str] = []
    for entry in plane.requests()[since:]:
        about = entry.get("objectRef")
        if about is None:
            continue  # discovery, which everybody may do
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        # RBAC cannot limit `create` to a name, whatever the log says of the object.
        only = about.get("name", "") if resource in OWN and entry["verb"] != "create" else ""
        if entry.get("responseStatus", {}).get("code") == FORBIDDEN:
            refused.append(f"{entry['verb']} {resource} {about.get('namespace', '')}/{about.get('name', '')}")
        else:
            needed.add((about.get("apiGroup", ""), resource, entry["verb"], only))
    return needed, refused


def run_manifest() -> Json:
    """A run whose two pods get nodes and no agent, so that it fails at its deadline and is deleted."""
    run: Json = yaml.safe_load((ROOT / "manifests" / "examples" / "tiny.yaml").read_text())
    run["metadata"]["namespace"] = "team"
    run["spec"] |= {"startDeadlineSeconds": 40, "ttlSecondsAfterFinished": 0, "nodes": {"min": 2, "max": 2}}
    for task in (stage.get(stage["task"], {}) for stage in run["spec"]["stages"] if stage["task"] in TRAINS):
        task["parallel"] = {"microBatchesPerStep": 2}
    return run


def strangers() -> list[Json]:
    """Objects of nobody that have the names which the run needs."""
    head = {"namespace": "team"}
    pod = {"containers": [{"name": "main", "image": "image"}]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": head | {"name": "tiny-ledger"}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": head | {"name": "tiny-workers"},
         "spec": {"podSelector": {}}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": head | {"name": "tiny-w0"}, "spec": pod},
    ]  # fmt: skip


def put_strangers_in_the_way(plane: AuditedControlPlane, release: Release, since: int) -> None:
    """The operator looks whose each is; one after the other is taken away when it has."""
    names = {KINDS[item["kind"]].plural: item["metadata"]["name"] for item in strangers()}
    for manifest in [*strangers(), run_manifest()]:
        release.kubectl("create", "-f", "-", stdin=json.dumps(manifest))

    def seen() -> set[str]:
        return {resource for _, resource, verb, _ in used(plane, since)[0] if verb == "get"} & names.keys()

    while names:
        until(lambda: bool(seen()), lambda: f"nobody looked at the strangers' {', '.join(names)}")
        for resource in seen():
            where = ("--namespace", "team", "--grace-period=0", "--force")
            release.kubectl("delete", resource, names.pop(resource), *where)


def lose_a_pod(release: Release) -> None:
    """A pod that failed is deleted alone; those of a run that is over go together. The policy was opened by hand."""
    opened = ("patch", "networkpolicy", "tiny-workers", "--type", "merge", "-p", '{"spec": {"ingress": [{}]}}')
    release.kubectl("-n", "team", *opened)
    pod = ("--namespace", "team", "pod", "tiny-w1")

    def runs() -> bool:
        return release.kubectl("get", *pod, "-o", "jsonpath={.status.phase}", check=False).stdout == "Running"

    until(runs, lambda: "tiny-w1 does not run")
    ended = {"exitCode": 137, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}
    container = {"name": "worker", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
    status = {"phase": "Failed", "containerStatuses": [container | {"state": {"terminated": ended}}]}
    release.kubectl("patch", *pod, "--subresource", "status", "--type", "merge", "-p", json.dumps({"status": status}))


def give_up_a_queued_run(release: Release, name: str) -> None:
    """A queue is told that nothing more will come of a group."""
    run = run_manifest()
    run["metadata"]["name"] = name
    run["spec"] |= {"queue": {"name": "nobody-admits"}}
    release.kubectl("create", "-f", "-", stdin=json.dumps(run))

    def waits() -> bool:
        return bool(
            release.kubectl("-n", "team", "get", "pods", "-l", f"videotrain.dev/run={name}", "-o", "name").stdout
        )

    until(waits, lambda: "the queued run has no pods")
    release.kubectl("-n", "team", "patch", "vtr", name, "--type", "merge", "-p", '{"spec": {"suspend": true}}')


def set_a_budget(release: Release, name: str) -> None:
    """Of a team without runs, which is told so in its status."""
    budget: Json = yaml.safe_load((ROOT / "manifests" / "examples" / "budgets" / "team-video.yaml").read_text())
    budget["metadata"]["name"] = name
    release.kubectl("create", "-f", "-", stdin=json.dumps(budget))


def test_every_right_is_used_and_none_is_missing(
    mode: str, plane: AuditedControlPlane, release: Release, tmp_path: Path
) -> None:
    granted = documented(RUNS) | documented(CLUSTER) | documented(RELEASED)
    since = len(plane.requests()) if plane.audit_log.exists() else 0
    with release.operator(plane, tmp_path) as log:
        set_a_budget(release, f"team-{mode}")
        put_strangers_in_the_way(plane, release, since)
        lose_a_pod(release)
        give_up_a_queued_run(release, f"queued-{mode}")
        assert scrape(log, token(plane, "reader")) == FORBIDDEN

        def complete() -> bool:
            needed, refused = used(plane, since)
            return bool(refused) or needed >= granted

        until(complete, lambda: f"not used: {granted - used(plane, since)[0]}\n{log.read_text()[-6000:]}")
    needed, refused = used(plane, since)
    assert not refused
    assert needed == granted
