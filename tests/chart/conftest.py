"""Rendering of the chart by the real helm, without a cluster."""

from __future__ import annotations

import pytest
from support.chart import Chart

from videotrain.controlplane.tools import helm as helm_program


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """The chart; helm keeps its caches in a folder of this session."""
    return Chart(helm_program(), tmp_path_factory.mktemp("helm"))
