"""Spans as a collector gets them: OTLP over HTTP, read by OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.bill_lives import Process, UnreliableCluster, told_passes
from support.planner_builders import at

from videotrain_operator.manager.traces import PATH, NoTraces, OtlpTraces, traces

PHASES = ["detect", "roster", "stop", "start", "load", "first step"]


class Collector:
    """What was sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def take(self, body: bytes) -> None:
        """A request of the exporter."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def called(self, name: str) -> list[Span]:
        """Spans of a name, oldest first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda s: s.start_time_unix_nano)


@contextmanager
def collector() -> Iterator[tuple[str, Collector]]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == PATH
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def told(span: Span) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


async def test_each_pass_is_a_span_and_each_recovery_a_trace_of_its_parts() -> None:
    process = Process(UnreliableCluster(1, pools=False))
    with collector() as (address, found):
        spans = OtlpTraces(address)
        passes = await told_passes(process, spans, 40)
        process.cluster.fail_worker(process.cluster.pods()[0]["metadata"]["name"], 1)
        passes += await told_passes(process, spans, 60)
        spans.close()
    assert found.services == {"videotrain-operator"}
    assert len(found.called("reconcile")) == passes
    assert {told(span)["run.name"] for span in found.called("reconcile")} == {"demo"}
    (recovery,) = found.called("recovery")
    assert told(recovery)["run.cause"] == "application"
    parts = [span for span in found.spans if span.parent_span_id == recovery.span_id]
    parts.sort(key=lambda span: PHASES.index(span.name))
    assert [span.name for span in parts] == PHASES
    assert all(span.trace_id == recovery.trace_id for span in parts)
    edges = [parts[0].start_time_unix_nano, *(span.end_time_unix_nano for span in parts)]
    assert edges == sorted(edges)
    assert [span.start_time_unix_nano for span in parts] == edges[:-1]
    assert (edges[0], edges[-1]) == (recovery.start_time_unix_nano, recovery.end_time_unix_nano)
    assert edges[-1] > edges[0]


async def test_a_process_that_takes_over_tells_no_recovery_again() -> None:
    process = Process(UnreliableCluster(1, pools=False))
    with collector() as (address, found):
        first = OtlpTraces(address)
        await told_passes(process, first, 40)
        process.cluster.fail_worker(process.cluster.pods()[0]["metadata"]["name"], 1)
        await told_passes(process, first, 60)
        first.close()
        second = OtlpTraces(address)
        await told_passes(process, second, 5)
        second.close()
    assert len(found.called("recovery")) == 1


async def test_of_a_run_that_is_gone_nothing_is_kept() -> None:
    process = Process(UnreliableCluster(1, pools=False))
    with collector() as (address, _):
        told = OtlpTraces(address)
        await told_passes(process, told, 2)
        ((namespace, run),) = told._told
        told.forget(namespace, run)
        assert not told._told
        told.close()


def test_a_failed_pass_is_a_span_with_its_exception() -> None:
    with collector() as (address, found):
        spans = OtlpTraces(address)
        spans.failed("default", "demo", ValueError("no such thing"), at(3))
        spans.close()
    (span,) = found.spans
    assert span.status.code == Status.STATUS_CODE_ERROR and span.status.message == "no such thing"
    (event,) = span.events
    assert {a.key: a.value.string_value for a in event.attributes}["exception.type"] == "ValueError"


def test_without_an_address_nothing_is_made_and_nothing_of_opentelemetry_is_imported() -> None:
    assert isinstance(traces(""), NoTraces)
    check = (
        "import sys; from videotrain_operator.manager.traces import traces; traces(''); "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
