"""HTTP of the agent, over a real socket."""

import json
import logging
import socket
import struct
import threading
import urllib.request
from datetime import UTC, datetime

import pytest

from videotrain_api.records import AgentProgress
from videotrain_trainer.agent.server import AgentServer


@pytest.fixture
def progress():
    return AgentProgress(pod="demo-w0", pod_uid="u", at=datetime(2026, 1, 1, tzinfo=UTC), ready=True)


@pytest.fixture
def asked():
    return threading.Semaphore(0)


@pytest.fixture
def server(progress, asked):
    def metrics():
        asked.release()
        return b"x" * 20_000_000  # more than socket buffers take, so that the answer meets a closed connection

    server = AgentServer("127.0.0.1", 0, progress=lambda: progress, metrics=metrics, healthy=lambda: True)
    server.start()
    yield server
    server.close()


def port(server):
    return server._server.server_address[1]


def test_a_client_that_leaves_before_its_answer_makes_no_noise(server, asked, caplog, capfd):
    """Operators come and go while they ask, and the end of the log is what people see of a pod's end."""
    caplog.set_level(logging.DEBUG)
    with socket.create_connection(("127.0.0.1", port(server))) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert asked.acquire(timeout=60)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a reset
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(60)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert any("left before it had its answer" in record.message for record in caplog.records)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_progress_is_served(server, progress):
    with urllib.request.urlopen(f"http://127.0.0.1:{port(server)}/progress", timeout=60) as answer:
        assert AgentProgress.from_wire(json.load(answer)) == progress
