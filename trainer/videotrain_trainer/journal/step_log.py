"""A line of the log for every so many steps."""

from __future__ import annotations

import logging
from datetime import datetime

from videotrain_api.records import SamplesRecord, StartedRecord, StepRecord, TrainerRecord, ValidationRecord

log = logging.getLogger(__name__)


class StepLog:
    """Record sink that logs steps, and losses of validation.

    Args:
        every: steps between two lines; the first of a generation and the last of a stage have one, too.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._total = 0
        self._since: datetime | None = None
        """When the first step behind the last line began."""
        self._steps = self._samples = self._tokens = 0

    def write(self, record: TrainerRecord) -> None:
        """Log it, if it is due."""
        if isinstance(record, StartedRecord):
            self._total, self._since = record.total_steps, None
            log.info("step %d of %d is where it begins", record.resumed_step, record.total_steps)
        elif isinstance(record, ValidationRecord):
            log.info("validation after step %d: loss %.4f on %d samples", record.step, record.loss, record.samples)
        elif isinstance(record, SamplesRecord):
            seconds = record.duration_us / 1e6
            log.info("samples after step %d: %d videos in %.1f s, %s", record.step, record.videos, seconds, record.uri)
        elif isinstance(record, StepRecord):
            self._step(record)

    def _step(self, record: StepRecord) -> None:
        first = self._since is None
        self._since = self._since or record.started_at
        self._steps, self._samples = self._steps + 1, self._samples + record.samples
        self._tokens += record.tokens
        if not (first or record.step % self._every == 0 or record.step == self._total):
            return
        seconds = max((record.finished_at - self._since).total_seconds(), 1e-9)
        log.info("%s", self._line(record, seconds))
        self._since, self._steps, self._samples, self._tokens = record.finished_at, 0, 0, 0

    def _line(self, record: StepRecord, seconds: float) -> str:
        waits = (record.data_stall_us + record.checkpoint_us) / 1e6
        parts = [f"{seconds / self._steps:.2f} s", f"{self._samples / seconds:.2f} samples/s"]
        if self._tokens:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        if record.loss is not None:
            parts.insert(0, f"loss {record.loss:.4f}")
        if record.gradient_norm is not None:
            parts.append(f"gradient norm {record.gradient_norm:.3g}")
        if record.learning_rate is not None:
            parts.append(f"learning rate {record.learning_rate:.3g}")
        if record.memory_bytes is not None:
            parts.append(f"memory {record.memory_bytes / 1e9:.1f} GB")
        if waits >= 0.005:
            parts.append(f"of the last one {waits:.2f} s waited")
        if record.bucket is not None:
            parts.append(record.bucket)
        return f"step {record.step} of {self._total}: {', '.join(parts)}"
