"""Child processes that judge reviews: whatever a manifest does to its reader, the operator goes on.

A child that dies, or that takes too long and is killed, costs the one review that it had; the next one gets a new
child. Run as a program, this module is such a child: it reads reviews from standard input and writes answers to
standard output, each behind its length.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO, Final

from videotrain_api.schema import Json
from videotrain_operator.webhook.review import BadReview, Outcome, answer

CHILDREN: Final = 2
"""Reviews that are judged at the same time."""
MEMORY_BYTES: Final = 1024**3
"""Address space of a child; a manifest that wants more ends its child and not the operator's pod."""
LARGEST_ANSWER: Final = 1024**2
_LENGTH: Final = struct.Struct("!I")
_log = logging.getLogger(__name__)


class JudgeDied(Exception):
    """The child ended before it answered."""


class Judges:
    """Up to CHILDREN children, each started when it is first needed. Use it as an async context manager."""

    def __init__(self, children: int = CHILDREN) -> None:
        self._children: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        for _ in range(children):
            self._children.put_nowait(None)
        self.died = 0
        """Children that ended or had to be killed."""

    async def __aenter__(self) -> Judges:
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self._children.empty():
            await _end(self._children.get_nowait())

    async def judge(self, body: bytes) -> tuple[Outcome, Json]:
        """The answer to a review; cancel it to give it up, which ends the child.

        Raises:
            BadReview: the body is no review.
            JudgeDied: the child ended.
        """
        async with self._child() as child:
            assert child.stdin is not None, "made with pipes"
            assert child.stdout is not None, "made with pipes"
            try:
                child.stdin.write(_LENGTH.pack(len(body)) + body)
                await child.stdin.drain()
                (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
                if length > LARGEST_ANSWER:
                    raise JudgeDied(f"an answer of {length} bytes")
                said = json.loads(await child.stdout.readexactly(length))
            except (OSError, asyncio.IncompleteReadError) as error:
                raise JudgeDied(f"the process that judged the review ended with {await child.wait()}") from error
        if "bad" in said:
            raise BadReview(said["bad"])
        return said["outcome"], said["review"]

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[asyncio.subprocess.Process]:
        child = await self._children.get()
        try:
            if child is None or child.returncode is not None:
                child = await _started()
            yield child
        except BadReview:
            raise
        except BaseException:  # also when it is given up: what it still says would answer the next review
            self.died += 1
            if child is not None:
                with suppress(ProcessLookupError):
                    child.kill()
            child = None
            raise
        finally:
            self._children.put_nowait(child)


async def _started() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _end(child: asyncio.subprocess.Process | None) -> None:
    if child is not None and child.returncode is None:
        child.kill()
        await child.wait()


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end, which they do with the operator."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while head := requests.read(_LENGTH.size):
        body = requests.read(*_LENGTH.unpack(head))
        try:
            outcome, review = answer(body)
            said: Json = {"outcome": outcome, "review": review}
        except BadReview as error:
            said = {"bad": str(error)[:1000]}
        text = json.dumps(said).encode()
        answers.write(_LENGTH.pack(len(text)) + text)
        answers.flush()


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    main(sys.stdin.buffer, own)
