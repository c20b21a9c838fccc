"""The side of SPDY/3.1 that opens streams, as `kubectl` does."""

from __future__ import annotations

import struct
import zlib

from videotrain.kubelet.spdy import DICTIONARY


def header_block(**headers: str) -> bytes:
    words = [word.encode() for pair in headers.items() for word in pair]
    return struct.pack(">I", len(headers)) + b"".join(struct.pack(">I", len(word)) + word for word in words)


class Client:
    """It shares one compression over all of its headers."""

    def __init__(self) -> None:
        self._pack = zlib.compressobj(zdict=DICTIONARY)

    def open(self, stream: int, *, fin: bool = False, **headers: str) -> bytes:
        packed = self._pack.compress(header_block(**headers)) + self._pack.flush(zlib.Z_SYNC_FLUSH)
        body = struct.pack(">IIBB", stream, 0, 0, 0) + packed
        return struct.pack(">HHI", 0x8003, 1, int(fin) << 24 | len(body)) + body
