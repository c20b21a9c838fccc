"""The chart's rules are such that Prometheus accepts, over series that exist, and each alert fires when it should."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.alert_cases import CASES, Case
from support.promtool import promtool

from videotrain_api.generate.alerts import ALERTS, RUNBOOKS, rules
from videotrain_api.generate.dcgm import DCGM
from videotrain_api.generate.recordings import BY_NAME
from videotrain_api.metrics import CATALOGUE

ROOT = Path(__file__).parents[4]
HEADINGS = ["What it means", "How to look", "What to do", "What it costs meanwhile"]


@pytest.fixture(scope="module")
def rules_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.json"  # JSON is YAML
    path.write_text(json.dumps(rules()))
    return path


def ask_promtool(*arguments: str | Path) -> None:
    done = subprocess.run([promtool(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules(rules_file: Path) -> None:
    ask_promtool("check", "rules", "--lint=all", "--lint-fatal", rules_file)


def test_an_alert_asks_for_series_that_are_exposed_or_recorded() -> None:
    for alert in ALERTS:
        names = set(re.findall(r"\b(?:\w+:)?(?:videotrain|DCGM)_\w+(?::\w+)?", alert.expression))
        assert names
        assert names <= CATALOGUE.keys() | DCGM.keys() | BY_NAME.keys(), alert.name


def test_every_alert_has_cases_that_fire_and_that_do_not() -> None:
    assert {case.alert for case in CASES if case.fires is not None} == {alert.name for alert in ALERTS}
    assert {case.alert for case in CASES if case.fires is None} == {alert.name for alert in ALERTS}


def test_alerts_fire_when_they_should_and_not_else(tmp_path: Path) -> None:
    files = []
    for alert in ALERTS:
        # Of all rules those that matter: each is evaluated for every minute of every case.
        rule = {"alert": alert.name, "expr": alert.expression, "for": f"{alert.minutes}m"}
        used = [
            {"record": name, "expr": known.expression} for name, known in BY_NAME.items() if name in alert.expression
        ]
        path = tmp_path / f"{alert.name}.rules.json"
        path.write_text(json.dumps({"groups": [{"name": "of-the-case", "rules": [*used, rule]}]}))
        tests = [case_for_promtool(case) for case in CASES if case.alert == alert.name]
        files.append(tmp_path / f"{alert.name}.json")
        files[-1].write_text(json.dumps({"rule_files": [str(path)], "evaluation_interval": "1m", "tests": tests}))
    ask_promtool("test", "rules", *files)


def case_for_promtool(case: Case) -> dict[str, Any]:
    expected = [] if case.fires is None else [{"exp_labels": case.fires}]
    asked = {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected}
    inputs = [{"series": series, "values": values} for series, values in case.series.items()]
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": [asked]}


def test_time_that_a_fault_lost_is_no_productive_time(rules_file: Path, tmp_path: Path) -> None:
    """A fault takes ten minutes of one GPU back; its rate is that of the time which is not lost."""
    run = 'namespace="lab", run="demo"'
    series = {f'videotrain_gpu_seconds_total{{{run}, bucket="productive"}}': "0+60x60"}
    series |= {f'videotrain_gpu_seconds_total{{{run}, bucket="lost"}}': "0x60"}
    for bucket, direction, values in (
        ("productive", "out", "0x20 600x60"),
        ("productive", "in", "0x60"),
        ("lost", "out", "0x60"),
        ("lost", "in", "0x20 600x60"),
    ):
        labels = f'{run}, bucket="{bucket}", direction="{direction}"'
        series[f"videotrain_gpu_seconds_corrected_total{{{labels}}}"] = values
    name = "namespace_run:videotrain_goodput:ratio1h"
    # Of 55 minutes that are seen, ten are lost.
    samples = [{"labels": f"{name}{{{run}}}", "value": round(1 - 600 / (55 * 60), 12)}]
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [{"expr": f"round({name}, 1e-12)", "eval_time": "55m", "exp_samples": samples}],
    }
    samples[0]["labels"] = f"{{{run}}}"
    path = tmp_path / "tests.json"
    path.write_text(json.dumps({"rule_files": [str(rules_file)], "evaluation_interval": "1m", "tests": [test]}))
    ask_promtool("test", "rules", path)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_has_a_page_that_says_what_to_do(alert: Any) -> None:
    page = (ROOT / RUNBOOKS / f"{alert.name}.md").read_text()
    assert page.startswith(f"# {alert.name}\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == HEADINGS
    assert all(len(part.split()) > 2 for part in re.split(r"^#+ .*$", page, flags=re.MULTILINE)[2:])


def test_there_is_no_page_of_an_alert_that_is_gone() -> None:
    pages = {path.stem for path in (ROOT / RUNBOOKS).glob("VideoTrain*.md")}
    assert pages == {alert.name for alert in ALERTS}
