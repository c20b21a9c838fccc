"""SPDY/3.1 as far as `kubectl port-forward` speaks it: streams, their headers, data and ends. Pure.

Source of the frames and of the dictionary: draft-mbelshe-httpbis-spdy-00.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_REST: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY: Final = (
    b"".join(struct.pack(">I", len(word)) + word.replace("_", " ").encode() for word in _WORDS.split()) + _REST.encode()
)
"""What both sides compress headers with."""
_CONTROL: Final = 0x8003
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY, _HEADERS = 1, 2, 3, 6, 7, 8
_FIN: Final = 1
_CANCEL: Final = 5
LARGEST_CHUNK: Final = 16 * 1024
"""Bytes of one data frame of ours."""
MOST_HEADERS: Final = 64 * 1024
"""Bytes of unpacked headers of one stream."""


class SpdyError(ValueError):
    """What came is no SPDY/3.1."""


class Opened(NamedTuple):
    """The other side opened a stream."""

    stream: int
    headers: dict[str, str]


class Received(NamedTuple):
    """Data came on a stream."""

    stream: int
    data: bytes
    last: bool
    """The other side sends no more on it."""


class Reset(NamedTuple):
    """The other side wants nothing more of a stream."""

    stream: int


class Echo(NamedTuple):
    """A ping: the frame is to be sent back as it is."""

    frame: bytes


Event = Opened | Received | Reset | Echo


@dataclass
class Connection:
    """The serving side of one connection: frames to events, and answers to frames."""

    _waiting: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._unpack = zlib.decompressobj(zdict=DICTIONARY)
        self._pack = zlib.compressobj(zdict=DICTIONARY)

    def feed(self, data: bytes) -> Iterator[Event]:
        """What the bytes that came next say.

        Raises:
            SpdyError: they are no SPDY/3.1.
        """
        self._waiting += data
        while len(self._waiting) >= 8:
            head, flags_and_length = struct.unpack_from(">II", self._waiting)
            length = flags_and_length & 0xFFFFFF
            if len(self._waiting) < 8 + length:
                return
            frame = bytes(self._waiting[: 8 + length])
            del self._waiting[: 8 + length]
            if head >> 31:
                yield from self._control(head, frame)
            else:
                yield Received(head, frame[8:], bool(flags_and_length >> 24 & _FIN))

    def _control(self, head: int, frame: bytes) -> Iterator[Event]:
        if head >> 16 != _CONTROL:
            raise SpdyError(f"version {head >> 16 & 0x7FFF} of SPDY; 3 is spoken here")
        kind, body = head & 0xFFFF, frame[8:]
        if kind == _SYN_STREAM:
            stream = _stream_of(body)
            yield Opened(stream, self._headers(body[10:]))
            if frame[4] & _FIN:
                yield Received(stream, b"", True)
        elif kind in (_SYN_REPLY, _HEADERS):
            self._headers(body[4:])  # headers share one compression, so all are unpacked
        elif kind == _RST_STREAM:
            yield Reset(_stream_of(body))
        elif kind == _PING:
            yield Echo(frame)

    def _headers(self, packed: bytes) -> dict[str, str]:
        try:
            block = self._unpack.decompress(packed, MOST_HEADERS)
            (count,) = struct.unpack_from(">I", block)
            place, words = 4, []
            for _ in range(2 * count):
                (length,) = struct.unpack_from(">I", block, place)
                words.append(block[place + 4 : place + 4 + length].decode())
                place += 4 + length
        except (zlib.error, struct.error, UnicodeDecodeError) as error:
            raise SpdyError(f"headers that cannot be read: {error}") from error
        return {name.lower(): value for name, value in zip(words[::2], words[1::2], strict=True)}

    def accept(self, stream: int) -> bytes:
        """Frame that accepts a stream."""
        packed = self._pack.compress(struct.pack(">I", 0)) + self._pack.flush(zlib.Z_SYNC_FLUSH)
        return _control_frame(_SYN_REPLY, struct.pack(">I", stream) + packed)


def data_frame(stream: int, data: bytes, *, last: bool = False) -> bytes:
    """Frame with data of a stream, LARGEST_CHUNK bytes at most; the last one ends our side of it."""
    return struct.pack(">II", stream, (_FIN if last else 0) << 24 | len(data)) + data


def reset_frame(stream: int) -> bytes:
    """Frame that gives a stream up."""
    return _control_frame(_RST_STREAM, struct.pack(">II", stream, _CANCEL))


def _stream_of(body: bytes) -> int:
    if len(body) < 4:
        raise SpdyError("a frame without a stream")
    return int.from_bytes(body[:4], "big") & 0x7FFFFFFF


def _control_frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">HHI", _CONTROL, kind, len(body)) + body
