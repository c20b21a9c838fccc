"""A real OpenTelemetry Collector on this machine: OTLP over HTTP comes in, its file exporter writes what came."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.error import HTTPError

from google.protobuf.json_format import Parse
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData
from support.go_programs import built
from support.processes import until

from videotrain.controlplane.component import Component
from videotrain.processes.addresses import free_ports

MODULE: Final = Path(__file__).with_name("collector_module")
READY_SECONDS: Final = 120.0


class OtelCollector:
    """Built once on a machine: two minutes of one core."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs yet.

        Args:
            folder: of its own.
        """
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._folder, self._written = folder, folder / "spans.jsonl"
        self._process = Component("collector", folder / "component", folder / "collector.log")

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            BuildError: there is no Go, or its modules cannot be fetched.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "collector.yaml"
        configuration.write_text(json.dumps(self._configuration()))  # JSON is YAML
        program = built("otel-collector", MODULE, {"collector": "."}) / "collector"
        self._process.start([str(program), f"--config=file:{configuration}"], {"PATH": "/usr/bin:/bin"})
        until(lambda: self._process.check() or self._answers(), f"it answers; see {self._process.log}", READY_SECONDS)

    def stop(self) -> None:
        """End it."""
        self._process.kill()

    def services(self) -> set[str]:
        """Who has told spans so far."""
        attributes = (a for resource in self._resources() for a in resource.resource.attributes)
        return {a.value.string_value for a in attributes if a.key == "service.name"}

    def spans(self) -> list[Span]:
        """What it has written so far, oldest first."""
        found = (span for r in self._resources() for scope in r.scope_spans for span in scope.spans)
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def _resources(self) -> Iterator[ResourceSpans]:
        text = self._written.read_text() if self._written.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may not be whole yet
                yield from Parse(line, TracesData()).resource_spans

    def _configuration(self) -> dict[str, object]:
        return {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": self.url.removeprefix("http://")}}}},
            "exporters": {"file": {"path": str(self._written), "flush_interval": "200ms"}},
            "service": {
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        }

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/v1/traces", timeout=5).close()
        except HTTPError:
            return True  # spans are posted; that a GET is refused is an answer
        except OSError:
            return False
        return True
