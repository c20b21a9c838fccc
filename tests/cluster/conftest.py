"""Tests against a real control plane: etcd, API server, controllers and scheduler of one Kubernetes version."""

import sys
from pathlib import Path

from support.controlplane import (  # noqa: F401 - fixtures
    admin,
    control_plane,
    helm,
    kubectl,
    namespace,
)
from support.operator_bench import bench  # noqa: F401 - a fixture

sys.path.insert(
    0, str(Path(__file__).parents[2] / "benchmarks")
)  # scripts, not a package: their helpers lie beside them
