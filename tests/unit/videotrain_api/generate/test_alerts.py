"""The chart's alerts are rules that Prometheus accepts, over series that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from support.promtool import promtool

from videotrain_api.generate.alerts import ALERTS, rules
from videotrain_api.metrics import CATALOGUE


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"  # JSON is YAML
    path.write_text(json.dumps(rules()))
    done = subprocess.run([promtool(), "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_asks_for_series_that_the_operator_exposes() -> None:
    for alert in ALERTS:
        names = set(re.findall(r"videotrain_\w+", alert.expression))
        assert names
        assert names <= CATALOGUE.keys()
