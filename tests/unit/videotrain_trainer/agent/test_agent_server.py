"""HTTP of the agent, over a real socket."""

import http.client
import json
import logging
import socket
import struct
import threading
import time
from datetime import UTC, datetime

import pytest

from videotrain_api.records import AgentProgress
from videotrain_api.signing import HEADER_SIGNATURE, KEY_BYTES, WINDOW_US, Answer, Request, SignatureError
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

    server = AgentServer(
        "127.0.0.1",
        0,
        key=KEY,
        progress=lambda: progress,
        metrics=metrics,
        healthy=lambda: True,
        take_roster=lambda _: None,
    )
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


KEY = b"k" * KEY_BYTES
PAGE = "/progress"


def now_us():
    return time.time_ns() // 1000


def ask(server, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=60)
    connection.request("GET", PAGE, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def signed(key=KEY, *, ahead_us=0, nonce="n1", recipient="127.0.0.1"):
    return Request(recipient=recipient, method="GET", target=PAGE).sign(key, time_us=now_us() + ahead_us, nonce=nonce)


def test_progress_is_told_under_the_runs_key(server, progress):
    status, headers, body = ask(server, signed())
    assert status == 200
    assert AgentProgress.from_wire(json.loads(body)) == progress
    Answer(status=200, etag=progress.tag(), body=body).verify(KEY, "n1", headers)
    with pytest.raises(SignatureError):
        Answer(status=200, etag=progress.tag(), body=body).verify(KEY, "n2", headers)


@pytest.mark.parametrize(
    "headers",
    [{}, signed(b"x" * KEY_BYTES), signed(recipient="127.0.0.2"), signed() | {HEADER_SIGNATURE: "\xff"}],
    ids=["unsigned", "another key", "for another pod", "no text"],
)
def test_nobody_else_is_told_anything(server, headers):
    status, _, body = ask(server, headers)
    assert status == 401
    assert b"demo-w0" not in body


def test_a_request_is_taken_once(server):
    headers = signed()
    assert [ask(server, headers)[0] for _ in range(2)] == [200, 401]


def test_a_request_at_another_time_learns_the_clock_of_this_node(server):
    status, headers, body = ask(server, signed(ahead_us=2 * WINDOW_US))
    assert status == 401
    there_us = Answer(status=401, body=body).verify(KEY, "n1", headers)
    assert abs(there_us - now_us()) < WINDOW_US
