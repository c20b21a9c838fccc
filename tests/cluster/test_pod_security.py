"""Our reading of the Pod Security Standards is that of a real API server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.plane_objects import create_namespace
from support.planner_builders import manifest
from support.pod_breaches import ALLOWED, BASELINE, OURS, RESTRICTED_ONLY

from videotrain.controlplane.api import RequestError
from videotrain.controlplane.plane import ControlPlane
from videotrain_api.render.merge import strategic_merge
from videotrain_api.render.pod import render_pod
from videotrain_api.rules.pod_security import PodPolicy, breaches
from videotrain_api.validation import parse_run

LEVELS: tuple[PodPolicy, ...] = ("baseline", "restricted")
ENFORCE = "pod-security.kubernetes.io/enforce"
NO_PODS = {"host process of windows", "privileged", "proc mount"}
"""Not valid at all here (a pod of Linux, no --allow-privileged, no user namespaces), so the standard is never asked."""
KNOWN = {name: spec for name, (spec, _) in (BASELINE | RESTRICTED_ONLY).items() if name not in NO_PODS} | ALLOWED


@pytest.fixture(scope="module")
def strict(control_plane: ControlPlane) -> dict[PodPolicy, str]:
    """A namespace for each level."""
    found: dict[PodPolicy, str] = {}
    for level in LEVELS:
        found[level] = f"standard-{level}"
        create_namespace(control_plane, found[level])
        labels = {"metadata": {"labels": {ENFORCE: level, f"{ENFORCE}-version": "latest"}}}
        path = f"/api/v1/namespaces/{found[level]}"
        control_plane.api().request("PATCH", path, labels, "application/merge-patch+json")
    return found


def refused(plane: ControlPlane, namespace: str, pod: dict[str, Any]) -> bool:
    """Whether the server refuses a pod by its standard."""
    placed = pod | {"metadata": pod["metadata"] | {"namespace": namespace}}
    try:
        plane.api().request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", placed)
    except RequestError as error:
        if "violates PodSecurity" not in str(error):
            raise
        return True
    return False


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_pod_is_refused_by_both_or_by_none(
    control_plane: ControlPlane, strict: dict[PodPolicy, str], name: str, level: PodPolicy
) -> None:
    pod = render_pod(parse_run(manifest(podTemplate={"spec": KNOWN[name]})), 0, "config")
    assert refused(control_plane, strict[level], pod) is bool(breaches(pod, level))


SOURCES: dict[str, Any] = {
    "configMap": {"name": "c"}, "secret": {"secretName": "s"}, "emptyDir": {}, "downwardAPI": {},
    "csi": {"driver": "d"}, "projected": {"sources": []}, "persistentVolumeClaim": {"claimName": "c"},
    "nfs": {"server": "s", "path": "/"},
    "iscsi": {"targetPortal": "1.2.3.4:3260", "iqn": "iqn.2001-04.com.example:a", "lun": 0}, "fc": {"wwids": ["w"]},
    "rbd": {"monitors": ["m"], "image": "i"}, "cephfs": {"monitors": ["m"]}, "hostPath": {"path": "/"},
    "flexVolume": {"driver": "a/b"}, "image": {"reference": "i"}, "gcePersistentDisk": {"pdName": "p"},
    "awsElasticBlockStore": {"volumeID": "v"}, "azureFile": {"secretName": "s", "shareName": "s"},
}  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("source", SOURCES)
def test_kinds_of_volumes(
    control_plane: ControlPlane, strict: dict[PodPolicy, str], source: str, level: PodPolicy
) -> None:
    template = {"spec": {"volumes": [{"name": "more", source: SOURCES[source]}]}}
    pod = render_pod(parse_run(manifest(podTemplate=template)), 0, "config")
    assert refused(control_plane, strict[level], pod) is bool(breaches(pod, level))


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(st.lists(st.sampled_from(sorted(KNOWN)), min_size=2, max_size=5), st.sampled_from(LEVELS))
def test_whatever_is_combined(
    control_plane: ControlPlane, strict: dict[PodPolicy, str], names: list[str], level: PodPolicy
) -> None:
    pod = render_pod(parse_run(manifest()), 0, "config")
    for name in names:
        pod["spec"] = strategic_merge(pod["spec"], KNOWN[name])
    assert refused(control_plane, strict[level], pod) is bool(breaches(pod, level))


@pytest.mark.parametrize("name", [name for name in OURS if "account" not in name and "class" not in name])
def test_what_we_ask_for_beyond_the_standards_is_ours_alone(
    control_plane: ControlPlane, strict: dict[PodPolicy, str], name: str
) -> None:
    pod = render_pod(parse_run(manifest(podTemplate={"spec": OURS[name][0]})), 0, "config")
    assert not refused(control_plane, strict["restricted"], pod)
    assert breaches(pod, "baseline")
