"""Tests against a real control plane: etcd, API server, controllers and scheduler of one Kubernetes version."""

import sys
from pathlib import Path

import pytest
import pytest_asyncio
from support.controlplane import (  # noqa: F401 - fixtures
    OPERATOR,
    admin,
    control_plane,
    helm,
    kubectl,
    namespace,
)
from support.fault_proxy import FaultProxy
from support.operator_bench import bench  # noqa: F401 - a fixture

from videotrain.controlplane.build import binary

sys.path.insert(
    0, str(Path(__file__).parents[2] / "benchmarks")
)  # scripts, not a package: their helpers lie beside them


def pytest_collection_finish(session: pytest.Session):
    """Build the control plane before the first test: on a new machine that outlasts the time limit of one test."""
    here = any(item.path.is_relative_to(Path(__file__).parent) for item in session.items)
    if session.config.option.collectonly or not here:
        return
    with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        binary()


@pytest_asyncio.fixture
async def proxy(control_plane, bench, tmp_path):  # noqa: F811 - the fixtures above
    """Stands between operators and the API server, and answers some requests badly."""
    async with FaultProxy(control_plane.kubeconfig(OPERATOR, ()), tmp_path) as proxy:
        yield proxy
        # While the proxy goes, the operators would complain.
        bench.operators.end_all()
