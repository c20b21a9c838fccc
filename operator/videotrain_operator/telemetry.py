"""The operator's metrics: a view of the runs' statuses, named by the catalogue.

Run series are computed from the status at every scrape, so a restart of the operator resets nothing. GPU time and money
come from the bill, which may be corrected: time turns out to be lost, a pod to have ended earlier. Their counters never
fall for that; see `accounting/corrections.py`. Another process goes on from the stored status, which may know less than
the one before has told.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

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
from videotrain_api.money import MICROS
from videotrain_api.resource.status import Correction, CostStatus, GenerationStatus, RunStatus, amounts_of
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import CAUSES
from videotrain_api.schema import Json, ManifestError
from videotrain_api.vocabulary import LABEL_TEAM, WASTE_CAUSES, Phase
from videotrain_operator.accounting.corrections import counted

Sample = tuple[catalogue.Metric, tuple[str, ...], float]


@dataclass
class _Shown:
    """Counters of one run."""

    uid: str
    counters: dict[str, dict[str, tuple[int, int, int]]] = field(default_factory=dict)
    """Counted first, left and came since, by name, of each field of Corrections."""


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
        self._pass_counts[bisect_left(catalogue.RECONCILE_SECONDS_BUCKETS, seconds)] += 1
        self._pass_seconds += seconds
        for reason in event_reasons:
            self._events[reason] = self._events.get(reason, 0) + 1

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
                shown = self._show(labels, run["metadata"]["uid"], status.cost)
                counters = _counter_samples(shown, status.cost.currency)
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

    def _show(self, key: tuple[str, str], uid: str, cost: CostStatus) -> _Shown:
        shown = self._shown.get(key)
        if shown is None or shown.uid != uid:
            shown = self._shown[key] = _Shown(uid)
        for series, amounts in amounts_of(cost).items():
            correction = (getattr(cost.corrections, series) if cost.corrections else None) or Correction(
                out={}, into={}
            )
            counters = shown.counters.setdefault(series, {})
            # Each cause from the start: of a counter that begins with an amount, and then loses it to another, a rate
            # sees the loss alone.
            known = dict.fromkeys(WASTE_CAUSES, 0) if series == "waste_micros_by_cause" else {}
            first = known | counted(amounts, correction)
            for name in {**first, **counters}:
                told = (first.get(name, 0), correction.out.get(name, 0), correction.into.get(name, 0))
                highest, left, came = map(max, told, counters.get(name, (0, 0, 0)))
                # More than nothing after a status that was told and not stored, or that lost its corrections.
                excess = highest - left + came - amounts.get(name, 0)
                counters[name] = (highest, left + max(0, excess), came + max(0, -excess))
        return shown

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
        if stage.frames_per_step is not None:
            yield catalogue.RUN_FRAMES_PER_STEP, (stage.name,), stage.frames_per_step
        if stage.curation is not None:
            yield catalogue.CURATION_CLIPS, (stage.name,), stage.curation.clips
            for reason, count in sorted(stage.curation.dropped.items()):
                yield catalogue.CURATION_DROPPED, (stage.name, reason), count
        for measure, value in stage.evaluation.means() if stage.evaluation is not None else ():
            yield catalogue.EVALUATION, (stage.name, measure), value
    for kind in ("current", "ready", "min", "max"):
        yield catalogue.RUN_NODES, (kind,), getattr(status.nodes, kind)
    for cause in CAUSES:
        yield catalogue.RESTARTS, (cause,), getattr(status.restarts, cause)
    if status.throughput.mfu_percent is not None:
        yield catalogue.RUN_MFU_RATIO, (), status.throughput.mfu_percent / 100
    if status.throughput.samples_per_second is not None:
        yield catalogue.RUN_SAMPLES_PER_SECOND, (), status.throughput.samples_per_second
    for ended_by, seconds in recovery_seconds(status.generations).items():
        yield catalogue.RECOVERY_SECONDS, (ended_by,), seconds
    for node in status.suspect_nodes:
        yield catalogue.SUSPECT_NODE, (node.name,), 1
    yield from _saved_samples(status)
    budget = (run.get("spec") or {}).get("budget") or {}
    if budget.get("maxCost") is not None:
        yield catalogue.RUN_BUDGET, (_currency(run),), shown_amount(budget["maxCost"])
    if status.cost is not None:
        yield from _cost_samples(status.cost)


def shown_amount(text: str) -> float:
    """Not a number where somebody wrote none into a status: one run's must not end the page of all."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _info(run: Json) -> tuple[str, ...]:
    spec: Mapping[str, Json] = run.get("spec", {})
    model = str(spec.get("model", {}).get("preset", ""))
    autoencoder = str(spec.get("autoencoder", {}).get("preset", ""))
    team = str((run["metadata"].get("labels") or {}).get(LABEL_TEAM, ""))
    return (run["metadata"]["uid"], model, autoencoder, _currency(run), team)


def _currency(run: Json) -> str:
    return str(run.get("spec", {}).get("pool", {}).get("currency", "USD"))


def _saved_samples(status: RunStatus) -> Iterator[Sample]:
    """Of the current stage, if it trains: others keep each unit of work as it is done."""
    stage = next((s for s in status.stages if s.name == status.stage and s.state == "Running"), None)
    if stage is None or stage.task not in ("train", "autoencoder"):
        return
    own = [g.progress.saved for g in status.generations if g.stage == stage.name and g.progress is not None]
    captured = [point.captured_at for saved in own for point in saved]
    since = max(captured, default=stage.started_at)
    if since is not None:
        yield catalogue.RUN_SAVED_AT, (stage.name,), since.timestamp()


_COUNTERS: Final = (
    ("gpu_microseconds_by_bucket", catalogue.GPU_SECONDS, catalogue.GPU_SECONDS_CORRECTED),
    ("micros_by_bucket", catalogue.COST_MICROS, catalogue.COST_CORRECTED_MICROS),
    ("stages", catalogue.STAGE_COST_MICROS, catalogue.STAGE_COST_CORRECTED_MICROS),
    ("waste_micros_by_cause", catalogue.WASTE_MICROS, catalogue.WASTE_CORRECTED_MICROS),
)
"""Fields of Corrections, with what shows the amounts and what their corrections."""


def _counter_samples(shown: _Shown, currency: str) -> Iterator[Sample]:
    """Each counter has its two corrections from the start, so that queries find all three."""
    for name, metric, correction in _COUNTERS:
        counters, time = shown.counters[name], metric.unit == "seconds"
        of, per = (() if time else (currency,)), (MICROS if time else 1)
        for key, (amount, left, came) in counters.items():
            yield metric, (key, *of), amount / per
            yield correction, (key, *of, "out"), left / per
            yield correction, (key, *of, "in"), came / per


def _cost_samples(cost: CostStatus) -> Iterator[Sample]:
    yield catalogue.COST_RATE_PER_HOUR, (cost.currency,), shown_amount(cost.rate_per_hour)
    if cost.forecast is not None:
        yield catalogue.FORECAST_COST, (cost.currency,), shown_amount(cost.forecast)
    for bound, amount in (("low", cost.forecast_low), ("high", cost.forecast_high)):
        if amount is not None:
            yield catalogue.FORECAST_COST_BOUND, (bound, cost.currency), shown_amount(amount)
    for stage in cost.expected_stages:
        if stage.total is not None:
            yield catalogue.STAGE_FORECAST_COST, (stage.name, cost.currency), shown_amount(stage.total)
    if cost.budget_percent is not None:
        yield catalogue.BUDGET_RATIO, (), cost.budget_percent / 100
    if cost.goodput_percent is not None:
        yield catalogue.GOODPUT_RATIO, (), cost.goodput_percent / 100


class Recovery(NamedTuple):
    """A world that was lost and the next one's way to its first step."""

    generation: int
    """The next one."""
    cause: str
    """Of the end of the one before."""
    failed_at: datetime
    ended_at: datetime
    """When the operator ended the generation."""
    created_at: datetime
    """When the next roster was published."""
    launched_at: datetime
    """When agents ordered the next workers."""
    started_at: datetime
    """When these were ready to train."""
    load_us: int
    """Of the time before: reading the state, microseconds."""
    first_step_at: datetime

    def phases(self) -> list[tuple[str, datetime]]:
        """Names and ends of the parts, in their order; the first begins at `failed_at`."""
        return [
            ("detect", self.ended_at),
            ("roster", self.created_at),
            ("stop", self.launched_at),
            ("start", self.started_at - timedelta(microseconds=self.load_us)),
            ("load", self.started_at),
            ("first step", self.first_step_at),
        ]


def recoveries(generations: Iterable[GenerationStatus]) -> Iterator[Recovery]:
    """Those that are over, oldest first. A world that fails before its first step is part of the recovery."""
    failed_at, ended_at, cause = None, None, ""
    for generation in generations:
        facts = generation.progress
        if failed_at is not None and ended_at is not None and facts is not None and facts.first_step_at is not None:
            yield Recovery(
                generation=generation.number,
                cause=cause,
                failed_at=failed_at,
                ended_at=ended_at,
                created_at=generation.created_at,
                launched_at=facts.launched_at,
                started_at=facts.started_at or facts.first_step_at,
                load_us=facts.load_us or 0,
                first_step_at=facts.first_step_at,
            )
            failed_at = None
        if generation.end_cause in CAUSES and failed_at is None:
            failed = facts.exit.at if facts is not None and facts.exit is not None else None
            failed_at = failed or (facts.last_step_at if facts is not None else None) or generation.ended_at
            ended_at, cause = generation.ended_at or failed_at, generation.end_cause


def recovery_seconds(generations: Iterable[GenerationStatus]) -> dict[str, float]:
    """By cause, from the last fault of that cause to the first step after it; of those that are over."""
    return {r.cause: (r.first_step_at - r.failed_at).total_seconds() for r in recoveries(generations)}


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
