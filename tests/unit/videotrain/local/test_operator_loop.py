"""What the operator of a local run serves. Whole runs are in tests/local."""

import socket
from pathlib import Path
from unittest.mock import Mock

import aiohttp
import pytest
import yaml

from videotrain.local.operator_loop import MetricsPortError, Operating
from videotrain_api.resource.trainrun import VideoTrainingRun

DEMO = Path(__file__).parents[4] / "manifests" / "examples" / "demo.yaml"


@pytest.fixture
def operating(tmp_path):
    run = VideoTrainingRun.from_wire(yaml.safe_load(DEMO.read_text()))
    return lambda port: Operating(Mock(), run, Mock(), Mock(), tmp_path, port)


async def test_its_metrics_can_be_read_while_it_runs(operating, monkeypatch):
    async def read(self):
        async with aiohttp.ClientSession() as session, session.get(self._endpoints["operator"]) as answer:
            return {"status": answer.status, "text": await answer.text()}

    monkeypatch.setattr(Operating, "_with_agents", read)
    seen = await operating(0).run()
    assert seen["status"] == 200
    assert "# HELP videotrain_" in seen["text"]


async def test_a_port_that_is_taken_is_named(operating):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MetricsPortError, match=rf"--metrics-port {port}: .*; use another one, or 0"):
            await operating(port).run()
