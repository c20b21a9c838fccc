"""SPDY/3.1 as `kubectl port-forward` speaks it; tests/cluster/test_process_node_commands.py has the real one."""

from __future__ import annotations

import struct
import zlib

import pytest
from support.spdy_client import Client

from videotrain.kubelet.spdy import (
    DICTIONARY,
    Connection,
    Echo,
    Opened,
    Received,
    Reset,
    SpdyError,
    data_frame,
    reset_frame,
)


def test_the_dictionary_is_that_of_the_standard() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_frames_are_understood_however_they_are_cut(size: int) -> None:
    client, ping = Client(), struct.pack(">HHII", 0x8003, 6, 4, 9)
    sent = client.open(1, fin=True, streamtype="error", port="80", requestid="0")
    sent += client.open(3, streamtype="data", port="80", requestid="0")
    sent += data_frame(3, b"hello") + ping + data_frame(3, b"", last=True) + reset_frame(1)
    connection = Connection()
    events = [event for at in range(0, len(sent), size) for event in connection.feed(sent[at : at + size])]
    assert events == [
        Opened(1, {"streamtype": "error", "port": "80", "requestid": "0"}),
        Received(1, b"", True),
        Opened(3, {"streamtype": "data", "port": "80", "requestid": "0"}),
        Received(3, b"hello", False),
        Echo(ping),
        Received(3, b"", True),
        Reset(1),
    ]


def test_a_stream_is_accepted_with_headers_that_can_be_unpacked() -> None:
    connection, unpack = Connection(), zlib.decompressobj(zdict=DICTIONARY)
    for stream in (1, 3):
        frame = connection.accept(stream)
        kind, length, found = struct.unpack_from(">III", frame)
        assert (kind, length, found) == (0x80030002, len(frame) - 8, stream)
        assert unpack.decompress(frame[12:]) == struct.pack(">I", 0)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">HHI", 0x8002, 1, 10) + bytes(10),
        struct.pack(">HHI", 0x8003, 1, 2) + bytes(2),
        struct.pack(">HHI", 0x8003, 1, 14) + bytes(14),
    ],
    ids=["version", "short", "headers"],
)
def test_what_is_no_spdy_is_refused(sent: bytes) -> None:
    with pytest.raises(SpdyError):
        list(Connection().feed(sent))
