"""Needs Chromium (Debian package `chromium`); not part of the default environments."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from videotrain.report import write_report
from videotrain.report.summary import write_summary

QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
FLAGS = f"--headless --no-sandbox --disable-gpu {QUIET} --enable-logging=stderr --virtual-time-budget=5000"
SYNTHETIC = Path(__file__).parents[1] / "unit/videotrain/conftest.py"


def synthetic_module():
    spec = importlib.util.spec_from_file_location("synthetic_run", SYNTHETIC)
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def browse(tmp_path):
    """Opens a file and returns (page after its scripts ran, messages of the console)."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed: apt-get install chromium, or leave tests/web out"

    def open_page(path):
        command = [program, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


def test_curves_and_timeline_are_drawn_without_an_error(tmp_path, browse):
    run = synthetic_module().SyntheticRun(tmp_path / "w")
    train = run.stage("train", "train", 12)
    run.generation(train, "Started", [0, 1], 1, 8, cause="infrastructure", lost_from=5, loss=lambda step: 2 / step)
    run.generation(train, "NodeLost", [0], 6, 12, loss=lambda step: 2 / step)
    run.buckets = {"productive": 3, "lost": 1}
    write_summary(run.workdir, run.run(), run.objects)
    page, console = browse(write_report(run.workdir, run.run()))
    assert console == []
    body = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert body.count("js-plotly-plot") == 2
    assert body.count('class="trace scatter') == 2 + 1 + 2  # loss and mean, the lost branch, two worlds
    assert body.count('class="point"') == 2 * 3 + 1 * 2  # starting, work and lost; the second world lost nothing
