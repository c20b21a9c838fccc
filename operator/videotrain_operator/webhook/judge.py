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
import signal
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from videotrain_api.render.defaults import NO_DEFAULTS, parse_defaults
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy
from videotrain_api.schema import Json
from videotrain_operator.webhook.review import BadReview, Outcome, answer

CHILDREN: Final = 2
"""Reviews that are judged at the same time."""
MEMORY_BYTES: Final = 256 * 1024**2
"""Address space of a child: it begins with 55 MiB, and two objects of 1.5 MiB, the most that etcd stores, fit."""
CPU_SECONDS: Final = 4.0
"""Of one review; an ordinary one takes a hundredth, and the most expensive ones that fit take two."""
NICE: Final = 10
"""The operator's own work goes first."""
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
"""A child that ended is made anew after a pause, twice as long each time; the other goes on."""
LARGEST_ANSWER: Final = 1024**2
MOST_LINES: Final = 5
LONGEST_LINE: Final = 4000
"""Of a child's log, which tells of faults in the checks; a traceback is one line."""
LONGEST_PRINT: Final = 1000
"""Of what it prints itself, such as a panic of a library."""
_LENGTH: Final = struct.Struct("!I")
_PART: Final = 256 * 1024
_log = logging.getLogger(__name__)


class JudgeDied(Exception):
    """The child ended before it answered, or gave the review up."""


@dataclass
class _Place:
    child: asyncio.subprocess.Process | None = None
    arguments: tuple[str, ...] = ()
    """With which it was started."""
    failures: int = 0
    """In a row."""


class Judges:
    """Up to CHILDREN children, each started when it is first needed. Use it as an async context manager."""

    def __init__(
        self,
        children: int = CHILDREN,
        *,
        cpu_seconds: float = CPU_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        pod_policy: PodPolicy = DEFAULT_POD_POLICY,
    ) -> None:
        """Nothing is started before the first review.

        Args:
            children: how many.
            cpu_seconds: of one review.
            memory_bytes: address space of a child.
            pod_policy: what worker pods have to keep to.
        """
        self._limits = (pod_policy, str(cpu_seconds), str(memory_bytes))
        self._arguments = (*self._limits, "{}")
        self._places = [_Place() for _ in range(children)]
        self._free: asyncio.Queue[_Place] = asyncio.Queue()
        for place in self._places:
            self._free.put_nowait(place)
        self._told: set[asyncio.Task[None]] = set()
        self.died = 0
        """Children that ended or had to be killed."""

    def take_defaults(self, defaults: RunDefaults) -> None:
        """Judge by other defaults of the cluster from the next review on."""
        self._arguments = (*self._limits, json.dumps(defaults.to_wire()))

    async def __aenter__(self) -> Judges:
        return self

    async def __aexit__(self, *_: object) -> None:
        for place in self._places:
            if place.child is not None and place.child.returncode is None:
                place.child.kill()
                await place.child.wait()
        await asyncio.gather(*self._told)

    async def judge(self, body: bytes | bytearray) -> tuple[Outcome, Json]:
        """The answer to a review; cancel it to give it up, which ends the child.

        Raises:
            BadReview: the body is no review.
            JudgeDied: there is no answer: the child ended, or the review needs more than its limits.
        """
        async with self._child() as child:
            said = await _exchange(child, body)
        for line in said["log"]:
            _log.error("webhook judge: %s", line)
        if "bad" in said:
            raise BadReview(said["bad"])
        if "failed" in said:
            raise JudgeDied(said["failed"])
        return said["outcome"], said["review"]

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[asyncio.subprocess.Process]:
        place = await self._free.get()
        pause = 0.0
        try:
            if place.child is not None and place.arguments != self._arguments:
                with suppress(ProcessLookupError):
                    place.child.kill()
                place.child = None
            if place.child is None or place.child.returncode is not None:
                place.arguments = self._arguments
                place.child = await _started(place.arguments)
                told = asyncio.create_task(_tell(place.child))
                self._told.add(told)
                told.add_done_callback(self._told.discard)
            yield place.child
            place.failures = 0
        except BaseException:  # also when it is given up: what it still says would answer the next review
            self.died += 1
            if place.child is not None:
                with suppress(ProcessLookupError):
                    place.child.kill()
            place.child = None
            pause = min(FIRST_PAUSE_SECONDS * 2**place.failures, LONGEST_PAUSE_SECONDS)
            place.failures = min(place.failures + 1, 16)
            raise
        finally:
            asyncio.get_running_loop().call_later(pause, self._free.put_nowait, place)


async def _started(arguments: tuple[str, ...]) -> asyncio.subprocess.Process:
    command, pipe = (sys.executable, "-m", __name__, *arguments), asyncio.subprocess.PIPE
    # A panic of pydantic's core that has no memory left for its backtrace would hang instead of ending the child.
    environment = os.environ | {"RUST_BACKTRACE": "0"}
    try:
        return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    except OSError as error:
        raise JudgeDied(f"no process could be started: {error}") from error


async def _tell(child: asyncio.subprocess.Process) -> None:
    """Log the beginning of what a child prints beside its answers, such as the end of a parser without memory."""
    assert child.stderr is not None, "made with pipes"
    lines = 0
    while part := await child.stderr.read(LONGEST_PRINT):
        if lines < MOST_LINES:
            _log.error("webhook judge printed: %s", repr(part.decode(errors="backslashreplace"))[:LONGEST_PRINT])
        lines += 1


async def _exchange(child: asyncio.subprocess.Process, body: bytes | bytearray) -> Json:
    assert child.stdin is not None, "made with pipes"
    assert child.stdout is not None, "made with pipes"
    try:
        child.stdin.write(_LENGTH.pack(len(body)))
        for start in range(0, len(body), _PART):
            child.stdin.write(body[start : start + _PART])
            await child.stdin.drain()
        (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        if length > LARGEST_ANSWER:
            raise JudgeDied(f"an answer of {length} bytes")
        said: Json = json.loads(await child.stdout.readexactly(length))
    except (OSError, asyncio.IncompleteReadError) as error:
        raise JudgeDied(f"the process that judged the review ended with {await child.wait()}") from error
    return said


class _TooLong(BaseException):
    """The review has used up its time. No fault of the checks, so nothing that handles those may handle it."""


class _Lines(logging.Handler):
    """Keeps what is logged while a review is judged, bounded and in lines that a manifest cannot forge."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.kept) < MOST_LINES:
            self.kept.append(repr(self.format(record)[-LONGEST_LINE:]))


def main(
    requests: BinaryIO,
    answers: BinaryIO,
    pod_policy: PodPolicy,
    cpu_seconds: float,
    memory_bytes: int,
    defaults: RunDefaults = NO_DEFAULTS,
) -> None:
    """Answer until the requests end, which they do with the operator."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGPROF, _stop)
    lines = _Lines()
    logging.basicConfig(handlers=[lines])
    while head := requests.read(_LENGTH.size):
        body = requests.read(*_LENGTH.unpack(head))
        lines.kept = []
        said = _judged(body, pod_policy, cpu_seconds, memory_bytes, defaults) | {"log": lines.kept}
        text = json.dumps(said).encode()
        answers.write(_LENGTH.pack(len(text)) + text)
        answers.flush()


def _judged(body: bytes, pod_policy: PodPolicy, cpu_seconds: float, memory_bytes: int, defaults: RunDefaults) -> Json:
    try:
        with _limited(cpu_seconds):
            outcome, review = answer(body, pod_policy, defaults)
    except BadReview as error:
        return {"bad": str(error)[:1000]}
    except _TooLong:
        return {"failed": f"it took more than {cpu_seconds:g} s of CPU"}
    except MemoryError:
        return {"failed": f"it took more than {memory_bytes // 2**20} MiB of memory"}
    return {"outcome": outcome, "review": review}


@contextmanager
def _limited(cpu_seconds: float) -> Iterator[None]:
    """A timer of this review's own: RLIMIT_CPU counts whole seconds of the process, by a clock that it cannot read."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _stop(*_: object) -> None:
    raise _TooLong


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed is no answer
    policy, seconds, memory, run_defaults = sys.argv[1:]
    main(
        sys.stdin.buffer,
        own,
        cast(PodPolicy, policy),
        float(seconds),
        int(memory),
        parse_defaults(json.loads(run_defaults)),
    )
