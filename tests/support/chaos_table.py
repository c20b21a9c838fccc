"""The outcomes as a table, for the terminal and for docs/reference/faults.md.

Rows may come from several test runs (`pytest -k`), each with runs, bills and orders of its own:
`VIDEOTRAIN_CHAOS_PARTS` names a file that keeps the rows of those whose accounts were right, and the last one writes
the page.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from support.chaos_cells import MOST_LOST, Cell
from support.chaos_faults import FAULTS
from support.chaos_lane import EVERY_STEPS, GRACE_SECONDS, HANG_SECONDS, PHASES, START_SECONDS, STEP_SECONDS
from support.chaos_rig import LEASE_SECONDS, NODE_GRACE_SECONDS

from videotrain.controlplane import versions

PARTS = "VIDEOTRAIN_CHAOS_PARTS"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "faults.md"
ROWS = [*(fault.title for fault in FAULTS.values()), "namespace deleted"]
Outcomes = Mapping[str, Cell | BaseException]


class Table:
    """Outcomes by fault and phase."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rows: dict[str, Outcomes] = {}
        """Of this test run alone."""
        self.accounts_checked = False
        """Bills and sample orders were found to be right at the end."""

    def add(self, title: str, outcomes: Outcomes) -> None:
        """Add a row, and show it."""
        self._rows[title] = outcomes
        print(f"\n{_line(title, outcomes)}", flush=True)
        if any(not isinstance(outcome, Cell) for outcome in outcomes.values()):
            print(self.explain(title), flush=True)

    def explain(self, title: str) -> str:
        """What was seen in the cells of a row that failed."""
        failed = {phase: error for phase, error in self._rows[title].items() if not isinstance(error, Cell)}
        return "\n\n".join(
            f"{title} x {phase}: {type(error).__name__}: {error}"[:30_000] for phase, error in failed.items()
        )

    def publish(self) -> None:
        """Show everything, keep it as a part, and write the page if that is wanted and all that it says is so."""
        cells = [cell for row in self._rows.values() for cell in row.values()]
        right = self.accounts_checked and all(isinstance(cell, Cell) for cell in cells)
        parts = self._with_other_parts(right)
        rows = {title: row for part in parts for title, row in part["rows"].items()}
        ordered = {title: rows[title] for title in ROWS if title in rows}
        text = _text(ordered, sum(part["seconds"] for part in parts), len(parts))
        print(f"\n{text}")
        if os.environ.get("VIDEOTRAIN_WRITE_DOCS") == "1" and right and len(ordered) == len(ROWS):
            PAGE.write_text(text)

    def _with_other_parts(self, right: bool) -> list[dict[str, Any]]:
        """This run's rows behind those of earlier ones, which are kept only if they are right."""
        path = os.environ.get(PARTS)
        parts = json.loads(Path(path).read_text()) if path and Path(path).exists() else []
        for part in parts:
            part["rows"] = {t: {phase: Cell(**c) for phase, c in row.items()} for t, row in part["rows"].items()}
        parts.append({"rows": self._rows, "seconds": time.monotonic() - self._began})
        if path and right:
            Path(path).write_text(json.dumps(parts, default=asdict))
        return parts


def _text(rows: Mapping[str, Outcomes], seconds: float, parts: int) -> str:
    head = f"| Fault | {' | '.join(PHASES)} |\n|---|{'---|' * len(PHASES)}"
    lines = [_line(title, outcomes) for title, outcomes in rows.items()]
    seen = [f"| {title} | {_event(outcomes)} |" for title, outcomes in rows.items() if _event(outcomes)]
    return "\n".join([_MEANING, head, *lines, "", _CHECKS, *seen, "", _setting(seconds, parts)])


def _line(title: str, outcomes: Outcomes) -> str:
    cells = [str(outcomes[phase]) if isinstance(outcomes[phase], Cell) else "FAILED" for phase in PHASES]
    return f"| {title} | {' | '.join(cells)} |"


def _event(outcomes: Outcomes) -> str:
    cell = outcomes["running"]
    if not isinstance(cell, Cell) or not cell.event:
        return ""
    _, _, rest = cell.event.partition(" ")
    reason, _, message = rest.partition(": ")
    return f"`{reason}` | {message.replace('|', '/').replace('`', '')}"


_MEANING = """\
# What faults do to a run

Every fault is done to a run in every phase of its life. A cell says:

- how it ends: the run *goes on*, or it is *suspended* as its user had asked, or it is *gone*;
- which counter of `status.restarts` rises, by one and no other (`spec.failurePolicy.limits` bounds each);
- *lost*: how many steps were done and had to be done again;
- seconds from the fault to the first step after it. Where nothing is restarted: the longest pause between two steps. Of
  a run that is being suspended: until it holds no node (outages of 60 s included). Of a namespace: until it is gone.

The phases are:

- *starting*: the workers are ready for their first step, which no one has done;
- *running*: steps go on, and the newest checkpoint is some steps old;
- *checkpointing*: a checkpoint has begun and is not complete;
- *suspending*: `spec.suspend` was set, and the workers save before they leave.

## Outcomes
"""


_CHECKS = f"""\
In each cell but those of the deleted namespace it was checked besides that

- no worker of a generation did a step after one of a later generation had, and no two rosters had the same number;
- every generation went on exactly where a complete checkpoint was;
- a graceful end lost no step, any other at most {MOST_LOST} (a checkpoint is written while steps go on, so the newest
  complete one may be the one before);
- the run came back to two nodes.

Of a deleted namespace nothing was left, neither objects nor processes.

At the end, in every run, the samples that went into the weights were those of a run that nothing had happened to, in
the same order. The buckets of every entry of the bill added up to the time between its ends, to the microsecond; the
entries of a pod followed each other without gap or overlap, except where its ledger had been deleted; and the total was
the time that all pods had held nodes, where all of them had told of their end.

## What a person sees

The event in `kubectl describe vtr` (column *running*):

| Fault | Reason | Message |
|---|---|---|"""


def _setting(seconds: float, parts: int) -> str:
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}) and {memory:.0f} GiB of memory"
    runs = "" if parts == 1 else f" and {parts} test runs, each with every check"
    names = ("videotrain-operator", "videotrain-trainer", "torch", "deepspeed")
    software = ", ".join(f"{name} {version(name)}" for name in names)
    return f"""\
## How this was measured

Written by `VIDEOTRAIN_WRITE_DOCS=1 pytest tests/cluster/test_chaos.py` on {datetime.now(UTC):%Y-%m-%d}, in
{seconds / 60:.0f} minutes{runs}, on one machine with {machine}, without a GPU, beside other work.
The seconds are of that machine and vary from run to run: most of them are the starts of processes, and a run with a
large checkpoint takes as much longer as it takes to load that.

- Real: the API server, etcd, controllers and scheduler of Kubernetes {versions.KUBERNETES}; two replicas of the
  operator, which share a lease of {LEASE_SECONDS} s; in every pod the agent, the fork server and a worker that
  trains with `gloo`; an S3 server. Python {platform.python_version()}, {software}.
- Not real: nodes. Their kubelets are the process nodes of this project, which run containers as processes. A node
  without power is one whose processes are killed and whose Lease is no longer renewed; the control plane declares it
  lost after {NODE_GRACE_SECONDS} s, where Kubernetes' default is 50 s. A container that ends with a code, or because
  memory is short, is one whose processes are killed and whose end is reported so. A component of the control plane that
  ends by itself is started again, as a kubelet does (after an outage of the API server, the scheduler of Kubernetes
  1.37.1 may end when it finds another pod under a name that it knew).
- Small: the model. Four runs live through all faults, each in a phase of its own. A run has two nodes of one worker
  (`nodes.min` is 1) out of three that it may use. A step takes {STEP_SECONDS} s, every {EVERY_STEPS}th is saved,
  `hangSeconds` is {HANG_SECONDS}, `startSeconds` {START_SECONDS}, `graceSeconds` {GRACE_SECONDS}.

Half a minute in the column *suspending* is that grace: a worker whose peer was killed while both save cannot complete
the checkpoint alone.
"""
