"""Traces of a few steps by torch's profiler, on demand: the agent puts the request where the worker looks for it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from videotrain_api.records import ProfileRequest
from videotrain_api.storage import layout
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext

log = logging.getLogger(__name__)


class _Trace(NamedTuple):
    """Steps that are being traced."""

    made: profile
    request: ProfileRequest
    first_step: int


class StepProfiler:
    """Traces steps of this rank when asked. Nothing else of a step depends on it, and no rank waits for another.

    Args:
        context: of the stage.
        store: takes the traces.
    """

    def __init__(self, context: StageContext, store: ObjectStore) -> None:
        self._context, self._store = context, store
        self._seen: tuple[int, int] | None = None
        self._running: _Trace | None = None
        self._begun = 0
        """Number of the newest request that was begun."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="profile")

    def before(self, step: int) -> None:
        """A step is about to be queued."""
        request = self._new_request() if self._running is None else None
        if request is None:
            return
        self._begun = request.number
        cuda = [ProfilerActivity.CUDA] if self._context.world.device.type == "cuda" else []
        self._running = _Trace(profile(activities=[ProfilerActivity.CPU, *cuda], record_shapes=True), request, step)
        self._running.made.start()
        log.info("tracing %d steps from step %d on", request.steps, step)

    def after(self, step: int) -> None:
        """A step was queued; after the last one that was asked for, the trace is made and stored in the background."""
        if self._running is not None and step - self._running.first_step + 1 >= self._running.request.steps:
            self._finish(self._running, step)

    def close(self, step: int) -> None:
        """The stage ends after this step: what was traced by then is stored."""
        if self._running is not None and step >= self._running.first_step:
            self._finish(self._running, step)
        self._thread.shutdown(wait=True)

    def _new_request(self) -> ProfileRequest | None:
        """A request that this rank has not begun, if the agent has put one there."""
        path = self._context.profile_request
        if path is None:
            return None
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        if self._seen == (mark := (found.st_ino, found.st_mtime_ns)):
            return None
        self._seen = mark
        request = ProfileRequest.model_validate_json(path.read_bytes())
        asked = request.number > self._begun and self._context.world.rank in request.ranks
        return request if asked else None

    def _finish(self, trace: _Trace, step: int) -> None:
        self._running = None
        trace.made.stop()  # waits for the device, which has still to do what was queued
        self._thread.submit(self._keep, trace, range(trace.first_step, step + 1))

    def _keep(self, trace: _Trace, steps: range) -> None:
        """In the thread. Whatever fails is told; a trace that is not there must not end a run."""
        context, rank, number = self._context, self._context.world.rank, trace.request.number
        prefix = context.config.paths.output
        uri = layout.profile_trace(prefix, number, context.generation, rank, steps[0], steps[-1])
        path, error = context.scratch / f"profile-{number}.json.gz", ""
        try:
            trace.made.export_chrome_trace(str(path))
            self._store.put(uri, path)
        except Exception as problem:
            log.exception("the trace of steps %d to %d is not stored", steps[0], steps[-1])
            error = f"{type(problem).__name__}: {problem}"[:500]
        finally:
            path.unlink(missing_ok=True)
        context.reporter.profiled(number, rank, steps, uri, error)
