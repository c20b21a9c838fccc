"""One table of what a step costs, in counts: `tests/trainer/speed/counts.json`.

A test counts and calls `check` with a section of its own. A change of any count is a line of the diff;
`VIDEOTRAIN_REWRITE_GOLDEN=1 pytest tests/trainer/speed` writes the sections anew.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "trainer" / "speed" / "counts.json"
Rows = Mapping[str, Any]
"""Counts by name: numbers, or rows of the next level."""


def check(section: str, counted: Rows) -> None:
    """The section of the table says what was counted.

    Args:
        section: name that no other test uses.
        counted: integers, or numbers rounded to what holds on every machine.
    """
    if os.environ.get("VIDEOTRAIN_REWRITE_GOLDEN") == "1":
        _write(section, counted)
    table = json.loads(TABLE.read_text())
    assert table.get(section) == json.loads(json.dumps(counted)), (
        f"{section}: VIDEOTRAIN_REWRITE_GOLDEN=1 pytest tests/trainer/speed shows the change as a diff"
    )


def _write(section: str, counted: Rows) -> None:
    with TABLE.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        table = json.loads(file.read() or "{}") | {section: counted}
        file.truncate(0)
        file.write(json.dumps(table, indent=2, sort_keys=True) + "\n")
