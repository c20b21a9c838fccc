"""What passes between agents on the way to a world's store, and what does not."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from videotrain_api.signing import PROOF_BYTES, Meeting
from videotrain_trainer.agent import gate as module
from videotrain_trainer.agent.gate import Gate, listen, loopback

KEY = b"k" * 32


class Echo:
    """A store that answers what it gets."""

    def __init__(self):
        self.listener = listen("127.0.0.1")
        self.seen = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection:
            while data := connection.recv(1 << 16):
                self.seen += data
                connection.sendall(data)


@pytest.fixture
def way():
    """Opens gates and closes them."""
    with contextlib.ExitStack() as stack:

        def opened(key=KEY):
            gate = Gate(key)
            stack.callback(gate.close)
            return gate

        yield opened


@pytest.fixture
def host(way):
    """A store behind a host's gate: the store, and the address of the gate."""
    store, outside = Echo(), listen("127.0.0.2")
    address = outside.getsockname()
    way().host(outside, store.listener.getsockname())
    return store, address


def guest(way, leader, key=KEY, seconds=10.0):
    inside = listen("127.0.0.1")
    address = inside.getsockname()
    gate = way(key)
    gate.guest(inside, leader, seconds)
    connection = socket.create_connection(address, timeout=20)
    return gate, connection


def test_what_a_member_sends_comes_through_and_back_whole(way, host):
    store, leader = host
    _, connection = guest(way, leader)
    data = bytes(range(256)) * 40_000
    threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
    received = b""
    while len(received) < len(data):
        received += connection.recv(1 << 16)
    assert received == data == store.seen


def test_a_member_of_another_world_is_shut_out_and_told(way, host):
    store, leader = host
    gate, connection = guest(way, leader, key=b"x" * 32)
    connection.sendall(b"secret?")
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(100) == b""
    assert store.seen == b""
    assert "do not prove to each other that they have the key" in gate.problem


@pytest.mark.parametrize("said", [b"", b"\x00", b"GET / HTTP/1.0\r\n\r\n", bytes(64), b"x" * 100_000])
def test_nothing_of_what_a_stranger_says_reaches_the_store(host, said):
    store, leader = host
    with socket.create_connection(leader, timeout=20) as connection:
        assert len(connection.recv(PROOF_BYTES, socket.MSG_WAITALL)) == PROOF_BYTES
        with contextlib.suppress(ConnectionError):
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1 << 16) == b""
    assert store.seen == b""


def test_a_proof_that_was_overheard_is_worth_nothing(host):
    store, leader = host
    with socket.create_connection(leader, timeout=20) as connection:
        meeting = Meeting(KEY, connection.recv(PROOF_BYTES, socket.MSG_WAITALL), b"n" * PROOF_BYTES)
        overheard = meeting.guest_nonce + meeting.guest_proof()
        connection.sendall(overheard)
        assert connection.recv(PROOF_BYTES, socket.MSG_WAITALL) == meeting.host_proof()
    with socket.create_connection(leader, timeout=20) as connection:
        connection.recv(PROOF_BYTES, socket.MSG_WAITALL)
        with contextlib.suppress(ConnectionError):
            connection.sendall(overheard + b"stolen")
            assert connection.recv(100) == b""
    assert b"stolen" not in store.seen


def test_a_guest_sends_a_host_that_proves_nothing_its_proof_and_no_more(way):
    with listen("127.0.0.3") as impostor:
        gate, connection = guest(way, impostor.getsockname())
        connection.sendall(b"for the store alone")
        host, _ = impostor.accept()
        with host:
            host.settimeout(20)
            host.sendall(bytes(PROOF_BYTES))
            assert len(host.recv(2 * PROOF_BYTES, socket.MSG_WAITALL)) == 2 * PROOF_BYTES
            host.sendall(bytes(PROOF_BYTES))
            assert host.recv(100) == b""
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert gate.problem is not None


def test_a_guest_waits_for_a_host_that_listens_later_or_is_busy(way, monkeypatch):
    monkeypatch.setattr(module, "MOST_UNPROVEN", 0)  # the host closes all connections at once
    store, outside = Echo(), listen("127.0.0.4")
    leader = outside.getsockname()
    way().host(outside, store.listener.getsockname())
    _, connection = guest(way, leader, seconds=60)
    connection.sendall(b"hello")
    monkeypatch.setattr(module, "MOST_UNPROVEN", 10)
    assert connection.recv(5, socket.MSG_WAITALL) == b"hello"


def test_a_host_that_never_comes_is_told_and_not_waited_for_longer(way, monkeypatch):
    monkeypatch.setattr(module, "PROOF_SECONDS", 0.2)
    with listen("127.0.0.5") as closed:
        leader = closed.getsockname()
    gate, connection = guest(way, leader, seconds=0.1)
    assert connection.recv(1) == b""
    assert "does not answer" in gate.problem


def test_a_closed_gate_drops_what_it_carried_and_listens_no_more():
    store, outside = Echo(), listen("127.0.0.6")
    leader = outside.getsockname()
    gate = Gate(KEY)
    gate.host(outside, store.listener.getsockname())
    connection = socket.create_connection(leader, timeout=20)
    assert connection.recv(PROOF_BYTES, socket.MSG_WAITALL)
    gate.close()
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(leader, timeout=5)


def test_pods_of_one_machine_keep_their_own_loopback_address():
    assert [loopback(address) for address in ("10.1.2.3", "127.64.0.7", "fd00::5", "::1")] == [
        "127.0.0.1",
        "127.64.0.7",
        "::1",
        "::1",
    ]
