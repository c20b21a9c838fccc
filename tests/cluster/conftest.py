"""Tests against a real control plane: etcd, API server, controllers and scheduler of one Kubernetes version."""

from support.controlplane import (  # noqa: F401 - fixtures
    admin,
    control_plane,
    helm,
    kubectl,
    namespace,
)
