"""Decoding untrusted files in a process of its own: a decoder that crashes or hangs costs one file, not the stage.

Parent and child exchange lines of JSON over the child's standard input and output. The child ignores SIGTERM (a drain
is the parent's business) and dies with its parent.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.worker.linux import die_with_parent, name_process

STUCK_SECONDS = 120.0
"""A file whose decoding comes no further for so long is given up."""
LEAST_SECONDS = 600.0
PLAYED_BYTES = 8192
"""A file may take LEAST_SECONDS and a second for each so many bytes: as long as it would play at 64 kbit/s."""
MOST_MEMORY = 4 * 1024**3
"""Bytes that the child may have of its own; at most half of what the container has."""
KILLS = 3
"""A child that is killed from outside, as by a kernel that runs out of memory, says nothing about its file: so many may
begin it."""
OUT_OF_MEMORY = "decoder-memory"
MOST_FILES = 128
"""Files that the child may have open."""
TELL_SECONDS = 0.5
MODULE = "videotrain_trainer.curation.sandbox"


class _Killed(Exception):
    """The child was killed from outside."""


class Sandbox:
    """The parent's side: starts the child when it is needed and again after a crash."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def curate(
        self, path: Path, content: str, out: Path, task: CurateTask, progress: Callable[[float], None]
    ) -> dict[str, Any]:
        """As pipeline.curate_file; what goes wrong in the child is a drop.

        Its reasons are `decoder-crash`, `decoder-stuck`, `decoder-slow` and `decoder-memory`.
        """
        for _ in range(KILLS - 1):
            try:
                return self._once(path, content, out, task, progress)
            except _Killed:
                continue
        try:
            return self._once(path, content, out, task, progress)
        except _Killed:
            return _dropped("decoder-crash", f"the decoder process was killed, {KILLS} times")

    def _once(
        self, path: Path, content: str, out: Path, task: CurateTask, progress: Callable[[float], None]
    ) -> dict[str, Any]:
        request = {"path": str(path), "content": content, "out": str(out), "task": task.to_wire()}
        child = self._ready()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            allowed = LEAST_SECONDS + path.stat().st_size / PLAYED_BYTES
            return self._answer(child, progress, allowed)
        except BrokenPipeError:
            return self._crashed(child)
        except BaseException:
            self.close()  # the answer to this request must not be taken for that to the next
            raise

    def close(self) -> None:
        """Kill the child process, if one runs; the next call starts another."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _answer(
        self, child: subprocess.Popen[str], progress: Callable[[float], None], allowed: float
    ) -> dict[str, Any]:
        best, began = -1.0, time.monotonic()
        risen = began
        while True:
            left = min(risen + STUCK_SECONDS, began + allowed) - time.monotonic()
            if left <= 0:  # also while lines come that tell of nothing new
                self.close()
                if time.monotonic() >= began + allowed:
                    return _dropped("decoder-slow", f"not done after {allowed:.0f} s, the most for its size")
                return _dropped("decoder-stuck", f"no progress for {STUCK_SECONDS:g} s")
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                continue
            if line is None:
                return self._crashed(child)
            answer = json.loads(line)
            if "failed" in answer:
                raise OSError(answer["failed"]["errno"], answer["failed"]["text"])
            if "result" in answer:
                result: dict[str, Any] = answer["result"]
                if result["dropped"] and result["dropped"][0] == OUT_OF_MEMORY:
                    self.close()  # the next file gets an empty process
                return result
            if answer["progress"] > best:
                best, risen = answer["progress"], time.monotonic()
            progress(answer["progress"])

    def _crashed(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        code = child.wait()
        self._child = None
        if code == -signal.SIGKILL:
            raise _Killed
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _dropped("decoder-crash", f"the decoder process ended with {cause}")

    def _ready(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-m", MODULE, str(os.getpid())]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._lines = queue.Queue()
            threading.Thread(target=_pump, args=(self._child.stdout, self._lines), daemon=True).start()
        return self._child


def _dropped(reason: str, detail: str) -> dict[str, Any]:
    return {"dropped": [reason, detail, None, None], "clips": []}


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """The child's side: one answer per request until the input ends."""
    import cv2

    from videotrain_trainer.curation.pipeline import curate_file

    told_at = 0.0

    def tell(share: float) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_SECONDS:
            told_at = time.monotonic()
            _say(answers, {"progress": share})

    for line in requests:
        asked = json.loads(line)
        task = CurateTask.model_validate(asked["task"])
        try:
            result = curate_file(Path(asked["path"]), asked["content"], Path(asked["out"]), task, tell)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            limit = resource.getrlimit(resource.RLIMIT_DATA)[0] // 2**20
            result = _dropped(OUT_OF_MEMORY, f"decoding needs more than {limit} MiB")
            _say(answers, {"result": result})
        except OSError as error:
            _say(answers, {"failed": {"errno": error.errno, "text": str(error)}})
        else:
            _say(answers, {"result": result})


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def container_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this container may use; the machine's if nothing limits it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = groups / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            return min(machine, int(text))
    return machine


def _limit_itself() -> None:
    """Keep one file from costing the stage, also where the kernel ends a whole container for its memory.

    That is how Kubernetes sets up containers with cgroup v2 (memory.oom.group).
    """
    memory = min(MOST_MEMORY, container_memory() // 2)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Entry point of the child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(sys.argv[1]))
    name_process("vt-decoder")
    _limit_itself()
    # Libraries may print; only protocol lines go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import cv2

    cv2.setNumThreads(1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
