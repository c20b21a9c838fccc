"""Who reads the operator's /metrics, on a real API server with the rights that the chart gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.chart import NAMESPACE
from support.controlplane import environment, program
from support.release import Release, scrape, token

from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.tools import helm as helm_program
from videotrain.controlplane.tools import kubectl as kubectl_program


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture(scope="module")
def release(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Release:
    home = tmp_path_factory.mktemp("helm")
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    kubectl = program(kubectl_program(), environment(plane))
    return Release(program(helm_program(), environment(plane) | folders), kubectl)


@pytest.mark.parametrize("switched_on", [True, False])
def test_metrics_are_for_those_who_may_get_that_path(
    switched_on: bool, plane: ControlPlane, release: Release, tmp_path_factory: pytest.TempPathFactory
) -> None:
    release.install({"monitoring": {"authorization": switched_on}, "webhook": {"enabled": False}})
    reader, stranger = token(plane, "reader"), token(plane, "stranger")
    if switched_on:
        role = ("clusterrole", "metrics-reader", "--verb=get", "--non-resource-url=/metrics")
        release.kubectl("create", *role)
        bound = ("metrics-reader", "--clusterrole=metrics-reader", f"--serviceaccount={NAMESPACE}:reader")
        release.kubectl("create", "clusterrolebinding", *bound)
    with release.operator(plane, tmp_path_factory.mktemp("pod")) as log:
        statuses = [scrape(log, bearer) for bearer in (reader, stranger, reader + "x", "")]
    assert statuses == ([200, 403, 401, 401] if switched_on else [200] * 4)
