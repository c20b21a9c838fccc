"""Agents that say whatever they like: what an operator may meet, since their image is the user's."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from videotrain_api.signing import HEADER_NONCE, Answer

NOW_US = 1_700_000_000_000_000


@dataclass(frozen=True)
class Asked:
    """A question, and the key that its run's agents have."""

    nonce: str
    key: bytes

    def whole(self, body: bytes, status: int = 200, more: str = "", etag: str = "") -> bytes:
        """A signed answer with its length, and more headers."""
        headers = Answer(status=status, body=body, etag=etag).sign(self.key, self.nonce, time_us=NOW_US)
        headers |= {"ETag": etag} if etag else {}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n{head}{more}\r\n".encode() + body


Say = Callable[[asyncio.StreamWriter, Asked], Awaitable[None]]


class Agent:
    """A TCP server that says whatever it is told to."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.say: Say
        self.requests: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question and close the connection."""
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await self.say(writer, Asked(headers[HEADER_NONCE], self.key))
            await writer.drain()
        writer.close()


def saying(make: Callable[[Asked], bytes]) -> Say:
    """Say something once."""

    async def say(writer: asyncio.StreamWriter, asked: Asked) -> None:
        writer.write(make(asked))

    return say


def for_ever(head: bytes, part: bytes) -> Say:
    """Say something, and more as long as somebody listens."""

    async def say(writer: asyncio.StreamWriter, asked: Asked) -> None:
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()

    return say


def slowly(part: bytes) -> Say:
    """A byte at a time, for ever."""

    async def say(writer: asyncio.StreamWriter, asked: Asked) -> None:
        for number in itertools.count():
            writer.write(part[number : number + 1] or b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    return say


async def nothing(writer: asyncio.StreamWriter, asked: Asked) -> None:
    """Say nothing, and hold the connection."""
    await asyncio.Event().wait()


BOMB = gzip.compress(bytes(10**8))
OK = b"HTTP/1.1 200 OK\r\n"
HOSTILE: dict[str, Say] = {
    "100,000 levels": saying(lambda asked: asked.whole(b"[" * 100_000 + b"]" * 100_000)),
    "levels without end": for_ever(OK + b"\r\n", b'{"a":' * 1000),
    "a body without end": for_ever(OK + b"\r\n", b" " * 65536),
    "1 GB by its length": for_ever(OK + b"Content-Length: 1000000000\r\n\r\n", b" " * 65536),
    "chunks without end": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 1000),
    "headers without end": for_ever(OK, b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(100))),
    "a header without end": for_ever(OK + b"X: ", b"a" * 65536),
    "hints without end": for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "a length that is wrong": saying(lambda asked: OK + b"Content-Length: 500\r\n\r\n{}"),
    "a length that is no number": saying(lambda asked: OK + b"Content-Length: -1\r\n\r\n{}"),
    "NaN": saying(lambda asked: asked.whole(b'{"pod": "a", "podUid": "u", "at": NaN}')),
    "a surrogate": saying(lambda asked: asked.whole(b'{"pod": "\\ud800"}')),
    "a number of 5,000 digits": saying(lambda asked: asked.whole(b"[%s]" % (b"9" * 5000))),
    "no HTTP": saying(lambda asked: b"\x16\x03\x01\x00\x00"),
    "a bomb": saying(lambda asked: asked.whole(BOMB, more="Content-Encoding: gzip\r\n")),
    "a redirect": saying(lambda asked: asked.whole(b"", 302, "Location: /elsewhere\r\n")),
    "a colour of a terminal": saying(lambda asked: asked.whole(b'{"\\u001b[31m\\n2026 ERROR forged": 1}')),
    "silence": nothing,
    "a byte at a time of the head": slowly(OK + b"X: "),
    "a byte at a time of the body": slowly(OK + b"Content-Length: 100000\r\n\r\n{"),
    "cookies without end": saying(lambda asked: asked.whole(b"{}", more="Set-Cookie: a=b\r\n" * 10_000)),
    "an old version of HTTP": saying(lambda asked: b"HTTP/0.9 200 OK\r\n\r\n{}"),
    "a version of HTTP that is none": saying(lambda asked: b"HTTP/9999.1 200 OK\r\n\r\n{}"),
    "two lengths": saying(lambda asked: OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "length and chunks": saying(lambda asked: OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a chunk of 2^63 bytes": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n", b" " * 65536),
    "trailers without end": for_ever(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 1000),
    "another protocol": saying(lambda asked: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + b"a" * 9999),
    "1e400": saying(lambda asked: asked.whole(b'{"pod": "a", "podUid": "u", "at": 1e400}')),
    "keys twice": saying(lambda asked: asked.whole(b'{"pod": "a", "pod": {}, "podUid": "u"}')),
    "no UTF-8": saying(lambda asked: asked.whole(b'{"pod": "\xff\xfe"}')),
    "a tag that is no UTF-8": saying(lambda asked: OK + b"ETag: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}"),
    "100 MB of keys": for_ever(OK + b"\r\n", b'"a":1,' * 10_000),
    **{
        f"a bomb of {name}": saying(
            lambda asked, name=name: asked.whole(b"\x00" * 1000, more=f"Content-Encoding: {name}\r\n")  # type: ignore[misc]
        )
        for name in ("br", "zstd", "deflate", "gzip, gzip, br")
    },
}
"""Ways to answer, none of which is progress."""
