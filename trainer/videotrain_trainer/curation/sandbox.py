"""Decoding untrusted files in a process of its own: a decoder that crashes or hangs costs one file, not the stage.

Parent and child exchange lines of JSON over the child's standard input and output. The child ignores SIGTERM (a drain
is the parent's business) and dies with its parent.
"""

from __future__ import annotations

import json
import os
import queue
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
"""A file whose decoding makes no progress for so long is given up."""
TELL_SECONDS = 0.5
MODULE = "videotrain_trainer.curation.sandbox"


class Sandbox:
    """The parent's side: starts the child when it is needed and again after a crash."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def curate(
        self, path: Path, content: str, out: Path, task: CurateTask, progress: Callable[[float], None]
    ) -> dict[str, Any]:
        """As pipeline.curate_file; a crash or a hang is a drop with reason `decoder-crash` or `decoder-stuck`."""
        request = {"path": str(path), "content": content, "out": str(out), "task": task.to_wire()}
        child = self._ready()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            return self._answer(child, progress)
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

    def _answer(self, child: subprocess.Popen[str], progress: Callable[[float], None]) -> dict[str, Any]:
        while True:
            try:
                line = self._lines.get(timeout=STUCK_SECONDS)
            except queue.Empty:
                self.close()
                return _dropped("decoder-stuck", f"no progress for {STUCK_SECONDS:g} s")
            if line is None:
                return self._crashed(child)
            answer = json.loads(line)
            if "failed" in answer:
                raise OSError(answer["failed"]["errno"], answer["failed"]["text"])
            if "result" in answer:
                result: dict[str, Any] = answer["result"]
                return result
            progress(answer["progress"])

    def _crashed(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        code = child.wait()
        self._child = None
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
    return {"dropped": [reason, detail], "clips": []}


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """The child's side: one answer per request until the input ends."""
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
        except OSError as error:
            _say(answers, {"failed": {"errno": error.errno, "text": str(error)}})
        else:
            _say(answers, {"result": result})


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def main() -> None:
    """Entry point of the child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(sys.argv[1]))
    name_process("vt-decoder")
    # Libraries may print; only protocol lines go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import cv2

    cv2.setNumThreads(1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
