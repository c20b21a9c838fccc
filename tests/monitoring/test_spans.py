"""Spans of passes and recoveries in a real OpenTelemetry Collector, as its file exporter writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bill_lives import Process, UnreliableCluster, told_passes
from support.otel_collector import OtelCollector
from support.processes import until

from videotrain_operator.manager.traces import OtlpTraces

WRITTEN_SECONDS = 60.0


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[OtelCollector]:
    made = OtelCollector(tmp_path / "collector")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.timeout(900)
async def test_a_real_collector_takes_every_span_of_a_life_with_a_recovery(collector: OtelCollector) -> None:
    process = Process(UnreliableCluster(1, pools=False))
    spans = OtlpTraces(collector.url)
    passes = await told_passes(process, spans, 40)
    process.cluster.fail_worker(process.cluster.pods()[0]["metadata"]["name"], 1)
    passes += await told_passes(process, spans, 60)
    spans.close()
    # The exporter writes a moment after it has answered.
    until(lambda: len(collector.spans()) >= passes + 7, "all spans are written", WRITTEN_SECONDS)
    assert collector.services() == {"videotrain-operator"}
    found = collector.spans()
    assert Counter(span.name for span in found) == {
        "reconcile": passes, "recovery": 1, "detect": 1, "roster": 1, "stop": 1, "start": 1, "load": 1, "first step": 1,
    }  # fmt: skip
    (recovery,) = [span for span in found if span.name == "recovery"]
    parts = [span for span in found if span.parent_span_id == recovery.span_id]
    assert len(parts) == 6 and {span.trace_id for span in parts} == {recovery.trace_id}
    assert parts[0].start_time_unix_nano == recovery.start_time_unix_nano
    assert parts[-1].end_time_unix_nano == recovery.end_time_unix_nano
