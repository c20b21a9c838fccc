"""Spans of passes and of recoveries for an OpenTelemetry collector; made only where an address is set.

A pass is one span. A recovery is a trace of its own, made when the first step after the fault was finished:

    recovery   from the fault to the first step after it
      detect     until the operator ended the generation
      roster     until the next roster was published
      stop       until agents had stopped what was left of the old world and ordered the new one's workers
      start      until the workers began to load their state
      load       until they were ready to train
      first step until that step was finished
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from videotrain_api.schema import Json
from videotrain_operator.reconcile import Outcome
from videotrain_operator.telemetry import Recovery, recoveries

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

EXTRA: Final = "videotrain-operator[otlp]"
SERVICE: Final = "videotrain-operator"
PATH: Final = "/v1/traces"
TIMEOUT_SECONDS: Final = 5
_NANOSECONDS: Final = 1_000_000_000


class MissingExtra(Exception):
    """The packages of OpenTelemetry are not installed."""


class Traces(Protocol):
    """Who is told of passes."""

    def passed(self, outcome: Outcome) -> None:
        """A pass succeeded."""

    def failed(self, namespace: str, run: str, error: Exception, at: datetime) -> None:
        """A pass failed."""

    def forget(self, namespace: str, run: str) -> None:
        """A run is gone."""

    def close(self) -> None:
        """Send what is left; takes some seconds if the collector does not answer."""


class NoTraces:
    """Nothing is made."""

    def passed(self, outcome: Outcome) -> None:
        """Do nothing."""

    def failed(self, namespace: str, run: str, error: Exception, at: datetime) -> None:
        """Do nothing."""

    def forget(self, namespace: str, run: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class OtlpTraces:
    """Spans go to a collector by OTLP over HTTP, in batches, from a thread of their own.

    While it does not answer, newest spans are kept as far as the SDK's queue holds them; passes never wait for it.
    """

    def __init__(self, endpoint: str) -> None:
        """Nothing is sent yet.

        Args:
            endpoint: such as `http://collector:4318`.

        Raises:
            MissingExtra: the message says what to install.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingExtra(f"--otlp-endpoint={endpoint} needs {EXTRA}: pip install '{EXTRA}' ({error})") from error
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, timeout=TIMEOUT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer(__name__)
        self._told: dict[tuple[str, str], tuple[str, int]] = {}
        """By namespace and name: uid, and the newest generation whose recovery was told, by whichever process."""

    def passed(self, outcome: Outcome) -> None:
        """A pass is a span; so is a recovery that has ended since the pass before."""
        head, status = outcome.run["metadata"], outcome.plan.status
        end = _nanoseconds(outcome.at) + int(outcome.seconds * _NANOSECONDS)
        attributes = _attributes(head) | {
            "run.phase": status.phase,
            "run.generation": status.generation,
            "run.events": [event.reason for event in outcome.plan.events],
            "run.writes": len(outcome.plan.apply),
        }
        span = self._tracer.start_span("reconcile", start_time=_nanoseconds(outcome.at), attributes=attributes)
        span.end(end)
        self._tell_recoveries(head, list(recoveries(status.generations)))

    def failed(self, namespace: str, run: str, error: Exception, at: datetime) -> None:
        """A span without duration with the exception."""
        from opentelemetry.trace import Status, StatusCode

        moment = _nanoseconds(at)
        attributes = {"k8s.namespace.name": namespace, "run.name": run}
        span = self._tracer.start_span("reconcile", start_time=moment, attributes=attributes)
        span.record_exception(error, timestamp=moment)
        span.set_status(Status(StatusCode.ERROR, str(error)[:200]))
        span.end(moment)

    def forget(self, namespace: str, run: str) -> None:
        """A run of the same name is another one."""
        self._told.pop((namespace, run), None)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _tell_recoveries(self, head: Json, found: list[Recovery]) -> None:
        key, uid = (head.get("namespace", "default"), head["name"]), head["uid"]
        newest = max((recovery.generation for recovery in found), default=0)
        known_uid, told = self._told.get(key, ("", 0))
        self._told[key] = (uid, max(newest, told) if uid == known_uid else newest)
        if uid != known_uid:
            return  # the process that led before has told them
        for recovery in found:
            if recovery.generation > told:
                self._tell(head, recovery)

    def _tell(self, head: Json, recovery: Recovery) -> None:
        from opentelemetry.trace import set_span_in_context

        attributes = _attributes(head) | {
            "run.generation": recovery.generation,
            "run.cause": recovery.cause,
        }
        begin, end = _nanoseconds(recovery.failed_at), _nanoseconds(recovery.first_step_at)
        root = self._tracer.start_span("recovery", start_time=begin, attributes=attributes)
        context = set_span_in_context(root)
        for name, until in recovery.phases():
            child = self._tracer.start_span(name, context=context, start_time=begin)
            begin = max(begin, _nanoseconds(until))
            child.end(begin)
        root.end(end)


def _attributes(head: Json) -> dict[str, str | int | list[str]]:
    return {"k8s.namespace.name": head.get("namespace", "default"), "run.name": head["name"]}


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1_000


def traces(endpoint: str) -> Traces:
    """Those that go to a collector; none if `endpoint` is empty.

    Raises:
        MissingExtra: the message says what to install.
    """
    return OtlpTraces(endpoint) if endpoint else NoTraces()
