"""The operator's metrics: a view of the runs' statuses, named by the catalogue.

Run series are computed from the status at every scrape, so a restart of the operator resets nothing. GPU time and money
come from the ledger, which may be corrected: time turns out to be lost, a pod to have ended earlier. Their counters
never fall for that as long as this process lives; see `accounting/counters.py`. Another process begins with what the
ledger says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from videotrain_api import metrics as catalogue
from videotrain_api.resource.status import CostStatus, GenerationStatus, RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import CAUSES
from videotrain_api.schema import Json, ManifestError
from videotrain_api.vocabulary import Phase
from videotrain_operator.accounting.counters import raised

Sample = tuple[catalogue.Metric, tuple[str, ...], float]


@dataclass
class _Shown:
    """Counters of one run."""

    uid: str
    gpu_microseconds: dict[str, int] = field(default_factory=dict)
    """By bucket."""
    micros: dict[str, int] = field(default_factory=dict)
    """By bucket."""
    stages: dict[str, int] = field(default_factory=dict)
    """Micros by stage."""
    waste: dict[str, int] = field(default_factory=dict)
    """Micros by cause."""


@dataclass(eq=False)
class OperatorMetrics(Collector):
    """What the operator knows. Register it, tell it about every pass, and let it be scraped."""

    _runs: dict[tuple[str, str], Json] = field(default_factory=dict)
    _shown: dict[tuple[str, str], _Shown] = field(default_factory=dict)
    _errors: dict[str, int] = field(default_factory=dict)
    _events: dict[str, int] = field(default_factory=dict)
    _conflicts: int = 0
    _requests: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _unreconciled: set[tuple[str, str]] = field(default_factory=set)
    _unreadable: dict[tuple[str, str], int] = field(default_factory=dict)
    _nodes_untrusted: str | None = None
    _sources: list[Callable[[], Iterable[Sample]]] = field(default_factory=list)
    _pass_counts: list[int] = field(default_factory=lambda: [0] * (len(catalogue.RECONCILE_SECONDS_BUCKETS) + 1))
    _pass_seconds: float = 0.0

    def note_pass(
        self, run: Json, status: Json, seconds: float, event_reasons: Iterable[str], unreadable: int = 0
    ) -> None:
        """A pass succeeded.

        Args:
            run: the run object.
            status: the status that the pass computed.
            seconds: how long the pass took.
            event_reasons: reason of each event that was emitted.
            unreadable: how many values that others wrote could not be read.
        """
        head = run["metadata"]
        key = (head.get("namespace", "default"), head["name"])
        self._unreconciled.discard(key)
        self._unreadable[key] = unreadable
        self._runs[key] = dict(run) | {"status": status}
        self._show(key, head["uid"], status.get("cost") or {})
        self._pass_counts[bisect_left(catalogue.RECONCILE_SECONDS_BUCKETS, seconds)] += 1
        self._pass_seconds += seconds
        for reason in event_reasons:
            self._events[reason] = self._events.get(reason, 0) + 1

    def _show(self, key: tuple[str, str], uid: str, cost: Json) -> None:
        shown = self._shown.get(key)
        if shown is None or shown.uid != uid:
            shown = self._shown[key] = _Shown(uid)
        shown.gpu_microseconds = raised(shown.gpu_microseconds, cost.get("gpuMicrosecondsByBucket") or {})
        shown.micros = raised(shown.micros, cost.get("microsByBucket") or {})
        shown.stages = raised(shown.stages, {s["name"]: s["totalMicros"] for s in cost.get("stages") or ()})
        shown.waste = raised(shown.waste, cost.get("wasteMicrosByCause") or {})

    def note_conflict(self) -> None:
        """A write was refused because the object had changed."""
        self._conflicts += 1

    def note_error(self, error: Exception) -> None:
        """Count a pass that failed, by the kind of its error."""
        name = type(error).__name__
        self._errors[name] = self._errors.get(name, 0) + 1

    def note_unreconciled(self, namespace: str, name: str) -> None:
        """Pass after pass over a run fails; the next that succeeds makes it good."""
        self._unreconciled.add((namespace, name))

    def note_request(self, verb: str, kind: str, code: int) -> None:
        """The API server was asked.

        Args:
            verb: get, list, watch, create, apply, patch, put or delete.
            kind: of the object.
            code: HTTP status; 0 if there was no answer.
        """
        key = (verb, kind, str(code))
        self._requests[key] = self._requests.get(key, 0) + 1

    def note_node_trust(self, reason: str) -> None:
        """Take note of why lost nodes are not believed.

        Args:
            reason: empty while nodes are trusted. Until the first call the series is absent: a replica that waits
                decides nothing about nodes.
        """
        self._nodes_untrusted = reason

    def add_source(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Samples that are computed at every scrape."""
        self._sources.append(source)

    def forget(self, namespace: str, name: str) -> None:
        """A run is gone; its series end."""
        self._runs.pop((namespace, name), None)
        self._shown.pop((namespace, name), None)
        self._unreadable.pop((namespace, name), None)
        self._unreconciled.discard((namespace, name))

    def forget_runs(self) -> None:
        """Somebody else leads: the series of all runs are his to tell. What was shown is not forgotten."""
        self._runs.clear()
        self._unreadable.clear()
        self._unreconciled.clear()
        self._nodes_untrusted = None

    def text(self) -> bytes:
        """Everything in the Prometheus text format; see `videotrain_api.metrics.CONTENT_TYPE`."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Family]:
        """The families of one scrape."""
        samples: list[Sample] = []
        for (namespace, name), run in sorted(self._runs.items()):
            status = _parsed(run["status"])
            labels = (namespace, name)
            samples += [(m, labels + more, value) for m, more, value in _run_samples(run, status)]
            if status.cost is not None:
                counters = _counter_samples(self._shown[namespace, name], status.cost.currency)
                samples += [(m, labels + more, value) for m, more, value in counters]
        for key in sorted(self._runs.keys() | self._unreconciled):
            samples.append((catalogue.RUN_RECONCILED, key, float(key not in self._unreconciled)))
        samples += [(catalogue.RUN_UNREADABLE, key, count) for key, count in sorted(self._unreadable.items())]
        samples += [(catalogue.RECONCILE_ERRORS, (name,), count) for name, count in sorted(self._errors.items())]
        samples += [(catalogue.EVENTS, (reason,), count) for reason, count in sorted(self._events.items())]
        samples.append((catalogue.API_CONFLICTS, (), self._conflicts))
        samples += [(catalogue.API_REQUESTS, key, count) for key, count in sorted(self._requests.items())]
        if self._nodes_untrusted is not None:
            samples.append((catalogue.NODES_UNTRUSTED, (), float(bool(self._nodes_untrusted))))
        for source in self._sources:
            samples += source()
        yield from _families(samples)
        yield self._histogram()

    def _histogram(self) -> Family:
        metric = catalogue.RECONCILE_SECONDS
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        total, buckets = 0, []
        for bound, count in zip(
            [*map(str, catalogue.RECONCILE_SECONDS_BUCKETS), "+Inf"], self._pass_counts, strict=True
        ):
            total += count
            buckets.append((bound, total))
        family.add_metric([], buckets, sum_value=self._pass_seconds)
        return family


def _parsed(status: Json) -> RunStatus:
    """A status of ours; it may have kept fields of another version."""
    try:
        return RunStatus.from_wire(status)
    except ManifestError:
        return read_status(status).status


def _run_samples(run: Json, status: RunStatus) -> Iterator[Sample]:
    """All series of one run; the labels come after namespace and name."""
    yield catalogue.RUN_INFO, _info(run), 1
    for phase in Phase:
        yield catalogue.RUN_PHASE, (phase.value,), float(status.phase == phase)
    yield catalogue.RUN_GENERATION, (), status.generation
    for stage in status.stages:
        yield catalogue.RUN_STEP, (stage.name,), stage.step
        if stage.name == status.stage:
            yield catalogue.RUN_STAGE, (stage.name, stage.task), 1
        if stage.total_steps is not None:
            yield catalogue.RUN_STEPS_PLANNED, (stage.name,), stage.total_steps
        if stage.curation is not None:
            yield catalogue.CURATION_CLIPS, (stage.name,), stage.curation.clips
            for reason, count in sorted(stage.curation.dropped.items()):
                yield catalogue.CURATION_DROPPED, (stage.name, reason), count
    for kind in ("current", "ready", "min", "max"):
        yield catalogue.RUN_NODES, (kind,), getattr(status.nodes, kind)
    for cause in CAUSES:
        yield catalogue.RESTARTS, (cause,), getattr(status.restarts, cause)
    if status.throughput.mfu_percent is not None:
        yield catalogue.RUN_MFU_RATIO, (), status.throughput.mfu_percent / 100
    if status.throughput.samples_per_second is not None:
        yield catalogue.RUN_SAMPLES_PER_SECOND, (), status.throughput.samples_per_second
    recovery = recovery_seconds(status.generations)
    if recovery is not None:
        yield catalogue.RECOVERY_SECONDS, (), recovery
    if status.cost is not None:
        yield from _cost_samples(status.cost)


def _info(run: Json) -> tuple[str, ...]:
    spec: Mapping[str, Json] = run.get("spec", {})
    model = str(spec.get("model", {}).get("preset", ""))
    autoencoder = str(spec.get("autoencoder", {}).get("preset", ""))
    return (run["metadata"]["uid"], model, autoencoder, str(spec.get("pool", {}).get("currency", "USD")))


def _counter_samples(shown: _Shown, currency: str) -> Iterator[Sample]:
    for bucket, amount in shown.gpu_microseconds.items():
        yield catalogue.GPU_SECONDS, (bucket,), amount / 1_000_000
    for bucket, micros in shown.micros.items():
        yield catalogue.COST_MICROS, (bucket, currency), micros
    for stage, micros in shown.stages.items():
        yield catalogue.STAGE_COST_MICROS, (stage, currency), micros
    for cause, micros in shown.waste.items():
        yield catalogue.WASTE_MICROS, (cause, currency), micros


def _cost_samples(cost: CostStatus) -> Iterator[Sample]:
    yield catalogue.COST_RATE_PER_HOUR, (cost.currency,), float(cost.rate_per_hour)
    if cost.forecast is not None:
        yield catalogue.FORECAST_COST, (cost.currency,), float(cost.forecast)
    for bound, amount in (("low", cost.forecast_low), ("high", cost.forecast_high)):
        if amount is not None:
            yield catalogue.FORECAST_COST_BOUND, (bound, cost.currency), float(amount)
    for stage in cost.expected_stages:
        if stage.total is not None:
            yield catalogue.STAGE_FORECAST_COST, (stage.name, cost.currency), float(stage.total)
    if cost.budget_percent is not None:
        yield catalogue.BUDGET_RATIO, (), cost.budget_percent / 100
    if cost.goodput_percent is not None:
        yield catalogue.GOODPUT_RATIO, (), cost.goodput_percent / 100


def recovery_seconds(generations: Iterable[GenerationStatus]) -> float | None:
    """From the last fault to the first step after it; None if there was none."""
    newest: float | None = None
    failed_at = None
    for generation in generations:
        facts = generation.progress
        if failed_at is not None and facts is not None and facts.first_step_at is not None:
            newest, failed_at = (facts.first_step_at - failed_at).total_seconds(), None
        if generation.end_cause in CAUSES and failed_at is None:
            failed = facts.exit.at if facts is not None and facts.exit is not None else None
            failed_at = failed or (facts.last_step_at if facts is not None else None) or generation.ended_at
    return newest


def _families(samples: Iterable[Sample]) -> Iterator[Family]:
    """One family per metric, in the order of the catalogue."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample[0].name, []).append(sample)
    for metric in catalogue.emitted_by("operator"):
        found = by_name.get(metric.name)
        if found:
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for _, labels, value in found:
                family.add_metric(labels, value)
            yield family
