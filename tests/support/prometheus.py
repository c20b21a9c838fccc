"""A real Prometheus, built from its Go module once on a machine, and what it answers."""

from __future__ import annotations

import json
import math
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode

from support.go_programs import built
from support.processes import until

from videotrain.controlplane.component import Component
from videotrain.processes.addresses import free_ports

NAME: Final = "prometheus"
MODULE: Final = Path(__file__).with_name("prometheus_module")
PROGRAMS: Final = ("promtool", "prometheus")
PACKAGE: Final = "github.com/prometheus/prometheus/cmd"
READY_SECONDS: Final = 120.0
Json = dict[str, Any]


def programs() -> Path:
    """The folder with both programs, which are built if it lacks them: four minutes of one core.

    Raises:
        BuildError: there is no Go, or its modules cannot be fetched.
    """
    # Without its ways of finding targets in clouds, which are most of its code.
    return built(NAME, MODULE, {name: f"{PACKAGE}/{name}" for name in PROGRAMS}, ["-tags", "remove_all_sd"])


class Prometheus:
    """A server on this machine that scrapes every second."""

    def __init__(self, folder: Path, jobs: Sequence[Json], rules: Path | None = None) -> None:
        """Nothing runs yet.

        Args:
            folder: of its own.
            jobs: scrape configurations.
            rules: a file of rules.
        """
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._process = Component("prometheus", folder / "component", folder / "prometheus.log")
        self._configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "scrape_configs": list(jobs),
            "rule_files": [str(rules)] if rules else [],
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "prometheus.json"  # JSON is YAML
        configuration.write_text(json.dumps(self._configuration))
        program = programs() / "prometheus"
        flags = [f"--config.file={configuration}", f"--storage.tsdb.path={self._folder / 'data'}"]
        flags += [f"--web.listen-address={self.url.removeprefix('http://')}", "--web.cors.origin=.*"]
        self._process.start([str(program), *flags], {"HOME": str(self._folder), "PATH": "/usr/bin:/bin"})
        until(lambda: self._process.check() or self._ready(), f"it answers; see {self._process.log}", READY_SECONDS)

    def stop(self) -> None:
        """End it."""
        self._process.kill()

    def forget(self) -> None:
        """Delete what it has stored."""
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str | float) -> Any:
        """`data` of an answer of its API, such as `ask("query", query="up")`."""
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def vector(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and values of an instant query, without those that are no number."""
        found = self.ask("query", query=query)["result"]
        samples = [(item["metric"], float(item["value"][1])) for item in found]
        return [(labels, value) for labels, value in samples if not math.isnan(value)]

    def matrix(self, query: str, start: float, end: float) -> list[tuple[Mapping[str, str], list[float]]]:
        """Labels and numbers of a query over a time; no series without any."""
        found = self.ask("query_range", query=query, start=start, end=end, step=max(1.0, (end - start) / 250))["result"]
        series = [(item["metric"], [float(value) for _, value in item["values"]]) for item in found]
        numbers = [(labels, [v for v in values if not math.isnan(v)]) for labels, values in series]
        return [(labels, values) for labels, values in numbers if values]
