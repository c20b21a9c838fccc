"""What an agent exposes to Prometheus: the records of its workers as series of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from videotrain_api import metrics as catalogue
from videotrain_api.records import (
    CheckpointRecord,
    GenerationProgress,
    HousekeepingRecord,
    StartedRecord,
    StepRecord,
    TrainerRecord,
    ValidationRecord,
    WorkerExit,
)
from videotrain_trainer.worker.pod import Pod

_STATES: tuple[str, ...] = get_args(GenerationProgress.model_fields["state"].annotation)
_MICROS = 1_000_000
_PARTS = ("forward", "backward", "communication", "optimizer")
"""Of a step; waiting for data and checkpoints have series of their own."""


def _size_class(bucket: str) -> str:
    """`256px/33f` of `256px/33f/16:9`: a series for every shape would be too many."""
    return "/".join(bucket.split("/")[:2])


class AgentMetrics:
    """Series of one agent. Counters count since the agent's start, over all of its generations; gauges end with their
    stage, or the last value of a stage that is over would look like one of now.
    """

    def __init__(self, pod: Pod) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._base = {"namespace": pod.namespace, "run": pod.run, "pod": pod.name}
        self._stage = ""
        self._families = {metric.name: self._family(metric) for metric in catalogue.emitted_by("agent")}

    def _family(self, metric: catalogue.Metric) -> Counter | Gauge | Histogram:
        if metric.kind == "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=self._registry)
        if metric.kind == "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
        return Histogram(metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)

    def _set(self, metric: catalogue.Metric, stage: str, value: float | None, **labels: str) -> None:
        if stage != self._stage:
            for other in self._families.values():
                if isinstance(other, Gauge):
                    other.clear()
            self._stage = stage
        family = self._families[metric.name]
        assert isinstance(family, Gauge)
        if value is not None:
            family.labels(**self._base, stage=stage, **labels).set(value)

    def _add(self, metric: catalogue.Metric, stage: str, value: float, **labels: str) -> None:
        family = self._families[metric.name]
        assert isinstance(family, Counter)
        family.labels(**self._base, stage=stage, **labels).inc(value)

    def record(self, record: TrainerRecord, ranks: range = range(0)) -> None:
        """Count one record of the pod's local rank 0.

        Args:
            record: of the pod's current generation.
            ranks: of the pod's workers in its world.
        """
        if isinstance(record, StepRecord):
            self._step(record, ranks)
        elif isinstance(record, StartedRecord):
            self._set(catalogue.STEPS_PLANNED, record.stage, record.total_steps)
            self._set(catalogue.WORLD_SIZE, record.stage, record.world_size)
            self._set(catalogue.STEP, record.stage, record.resumed_step)
            self._add(catalogue.CHECKPOINT_SKIPPED, record.stage, len(record.skipped_checkpoints))
            if record.attention is not None:
                self._set(catalogue.ATTENTION, record.stage, 1, kernel=record.attention)
        elif isinstance(record, ValidationRecord):
            self._validation(record)
        elif isinstance(record, CheckpointRecord):
            self._add(catalogue.CHECKPOINT_COMMITS, record.stage, 1)
            self._set(catalogue.CHECKPOINT_LAST_STEP, record.stage, record.step)
            self._set(catalogue.CHECKPOINT_BYTES, record.stage, record.bytes)

        elif isinstance(record, HousekeepingRecord):
            self._add(catalogue.HOUSEKEEPING_FAILURES, record.stage, 1, task=record.task)

    def failure_not_stored(self, stage: str) -> None:
        """Count that the end of a failed generation could not be stored; from any thread."""
        self._add(catalogue.HOUSEKEEPING_FAILURES, stage, 1, task="failures")

    def _validation(self, record: ValidationRecord) -> None:
        self._set(catalogue.VALIDATION_LOSS, record.stage, record.loss)
        classes: dict[str, list[float]] = {}
        for bucket, loss in record.bucket_losses.items():
            classes.setdefault(_size_class(bucket), []).append(loss)
        for name, losses in classes.items():
            self._set(catalogue.VALIDATION_BUCKET_LOSS, record.stage, sum(losses) / len(losses), bucket=name)

    def _step(self, record: StepRecord, ranks: range) -> None:
        stage = record.stage
        self._set(catalogue.STEP, stage, record.step)
        self._set(catalogue.LOSS, stage, record.loss)
        if record.bucket is not None:
            self._set(catalogue.BUCKET_LOSS, stage, record.loss, bucket=_size_class(record.bucket))
        self._set(catalogue.GRADIENT_NORM, stage, record.gradient_norm)
        self._set(catalogue.LEARNING_RATE, stage, record.learning_rate)
        self._set(catalogue.WORLD_SPREAD_RATIO, stage, record.world_spread)
        self._set(catalogue.STRAGGLER_RATIO, stage, record.straggler_ratio)
        # A series per rank would be thousands; a pod that is often the slowest is looked at as a whole anyway.
        self._add(catalogue.SLOWEST_STEPS, stage, float(record.slowest_rank in ranks))
        for part in _PARTS:
            self._add(catalogue.STEP_PART_SECONDS, stage, (getattr(record, f"{part}_us") or 0) / _MICROS, part=part)
        self._add(catalogue.SAMPLES, stage, record.samples)
        self._add(catalogue.TOKENS, stage, record.tokens)
        self._add(catalogue.MODEL_FLOPS, stage, record.model_flops)
        self._add(catalogue.DATA_STALL_SECONDS, stage, record.data_stall_us / _MICROS)
        extra = {"second": record.second_requests or 0, "again": record.repeated_requests or 0}
        for kind, count in {"first": (record.sample_requests or 0) - sum(extra.values()), **extra}.items():
            self._add(catalogue.SAMPLE_REQUESTS, stage, count, kind=kind)
        for outcome, reads in {"hit": record.cache_hits, "miss": record.cache_misses}.items():
            self._add(catalogue.SAMPLE_CACHE_READS, stage, reads or 0, outcome=outcome)
        self._set(catalogue.SAMPLE_CACHE_BYTES, stage, record.cache_bytes)
        if record.slowest_sample_us is not None:
            self._set(catalogue.SLOWEST_SAMPLE_SECONDS, stage, record.slowest_sample_us / _MICROS)
        if record.stored_bytes is not None:
            self._add(catalogue.STORED_SAMPLE_BYTES, stage, record.stored_bytes)
        self._add(catalogue.CHECKPOINT_STALL_SECONDS, stage, record.checkpoint_us / _MICROS)
        family = self._families[catalogue.STEP_SECONDS.name]
        assert isinstance(family, Histogram)
        seconds = (record.finished_at - record.started_at).total_seconds()
        family.labels(**self._base, stage=stage).observe(seconds)

    def exits(self, records: Iterable[WorkerExit]) -> None:
        """Count the ends of workers."""
        for record in records:
            self._add(catalogue.WORKER_EXITS, record.stage, 1, code=str(record.code))

    def progress(self, progress: GenerationProgress) -> None:
        """Show the state of the pod's current generation."""
        stage = progress.stage
        self._set(catalogue.GENERATION, stage, progress.generation)
        for state in _STATES:
            self._set(catalogue.WORKER_STATE, stage, float(state == progress.state), state=state)
        self._set(catalogue.SAMPLES_PER_SECOND, stage, progress.samples_per_second)
        self._set(catalogue.TOKENS_PER_SECOND, stage, progress.tokens_per_second)
        self._set(catalogue.MFU_RATIO, stage, progress.mfu)
        self._set(catalogue.HFU_RATIO, stage, progress.hfu)
        self._set(catalogue.USEFUL_MFU_RATIO, stage, progress.useful_mfu)
        self._set(catalogue.MEMORY_PEAK_BYTES, stage, progress.memory_bytes)

    def text(self) -> bytes:
        """The exposition in the Prometheus text format."""
        return generate_latest(self._registry)
