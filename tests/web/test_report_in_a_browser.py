"""Needs Chromium (Debian package `chromium`); not part of the default environments."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from videotrain.report import write_report
from videotrain.report.summary import write_summary

QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
FLAGS = f"--headless --no-sandbox --disable-gpu {QUIET} --enable-logging=stderr --virtual-time-budget=8000"
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

    def open_page(path, *more):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [program, *FLAGS.split(), *more, profile, "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


def train(run, **more):
    """Six generations of a stage with two pods, of which one loses its steps."""
    run.stage("curate", "curate")
    run.generation(run.stages[0], "Started", [0], 1, 4)
    stage = run.stage("i2v-64px-of-a-long-name", "train", 60)
    causes = {"StageStarted": "infrastructure", "NodeLost": "preemption", "Preempted": "hang", "Hang": "drained"}
    for number, (reason, cause) in enumerate([*causes.items(), ("Grow", "completed")]):
        first = 1 + 12 * number
        members = [0, 1] if number % 2 == 0 else [0]
        lost = first + 8 if cause == "infrastructure" else None
        run.generation(
            stage, reason, members, first, first + 11, cause=cause, lost_from=lost, loss=lambda step: 2 / step, **more
        )
        run.checkpoint(stage, first + 11)
    run.buckets = {"productive": 3, "lost": 1, "starting": 2}
    logs = run.workdir / "logs"
    logs.mkdir(parents=True)
    for pod in (0, 1):
        (logs / f"demo-w{pod}-12345678.log").write_text("a line\n" * 40 + "RuntimeError: " + "a long word " * 30)
    return stage


def succeeded(run):
    train(run)
    return run.run()


def failed(run):
    train(run)
    run.phase = "Failed"
    body = run.run()
    message = "3 application restarts are used up (spec.failurePolicy.limits): worker of pod demo-w1 failed"
    condition = {"type": "Failed", "status": "True", "reason": "RestartLimit", "message": message}
    body["status"]["conditions"] = [condition | {"lastTransitionTime": body["status"]["startTime"]}]
    return body


def running(run):
    stage = train(run)
    run.phase = "Running"
    stage["state"] = "Running"
    body = run.run()
    body["status"].pop("completionTime", None)
    for name in ("endedAt", "endCause"):
        body["status"]["generations"][-1].pop(name)
    return body


HARNESS = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe id="page" src="{source}" width="{width}" height="3000"></iframe><pre id="found"></pre><script>
const frame = document.getElementById("page");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const beside = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 1;
const apart = (a, b) => beside(a, b) || beside(b, a);
const name = (each) => each.id || each.className || each.tagName;
function look() {{
  const page = frame.contentDocument, found = [];
  const parts = page.querySelectorAll("main > *, .plot, .scroll, .cards, .card, details");
  const blocks = [...parts].filter((each) => each.checkVisibility({{ contentVisibilityAuto: true }}));
  for (const a of blocks) for (const b of blocks)
    if (a !== b && !a.contains(b) && !b.contains(a) && !apart(a.getBoundingClientRect(), b.getBoundingClientRect()))
      found.push(`${{name(a)}} over ${{name(b)}}`);
  for (const plot of page.querySelectorAll(".js-plotly-plot")) {{
    const place = plot.getBoundingClientRect();
    for (const svg of plot.querySelectorAll("svg.main-svg")) {{
      const drawn = svg.getBoundingClientRect();
      if (drawn.bottom > place.bottom + 1 || drawn.right > place.right + 1) found.push(`figure out of ${{name(plot)}}`);
    }}
    const labels = [...plot.querySelectorAll(".annotation-text")].map((each) => each.getBoundingClientRect());
    labels.forEach((a, i) => labels.slice(i + 1).forEach((b) => {{
      if (!apart(a, b)) found.push(`labels of ${{name(plot)}}`);
    }}));
  }}
  if (page.documentElement.scrollWidth > frame.clientWidth) found.push(`wider than ${{frame.clientWidth}}`);
  return {{ found, plots: page.querySelectorAll(".js-plotly-plot").length }};
}}
frame.addEventListener("load", async () => {{
  await pause(500);
  const seen = [look()];
  for (const width of {others}) {{
    frame.width = width;
    frame.contentWindow.dispatchEvent(new Event("resize"));  // without a screen, Chromium tells none
    await pause(500);
    seen.push(look());
  }}
  document.getElementById("found").textContent = JSON.stringify(seen);
}});
</script>"""


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("state", [succeeded, failed, running])
def test_nothing_overlaps_on_a_screen_a_phone_and_after_a_resize(tmp_path, browse, state, width):
    run = synthetic_module().SyntheticRun(tmp_path / "w")
    body = state(run)
    write_summary(run.workdir, body, run.objects)
    report = write_report(run.workdir, body)
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS.format(source=report.as_uri(), width=width, others=[1820 - width, width]))
    page, console = browse(harness, "--allow-file-access-from-files", "--window-size=1500,3200")
    assert console == []
    seen = json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', page, re.S)[1]))
    assert seen == [{"found": [], "plots": 2}] * 3
    said = re.sub(r"<script.*?</script>", "", report.read_text(), flags=re.S)
    assert ("Why it failed" in said) == (state is failed)
    assert 'href="logs/demo-w0-12345678.log"' in said


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
