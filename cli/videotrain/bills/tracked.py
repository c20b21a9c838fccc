"""The closed bill of a run, attached to its experiment trackers by the trainer, which has their packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from videotrain.errors import UsageError
from videotrain.extras import needs
from videotrain.objectstore.s3_client import SESSION_TOKEN, Credentials
from videotrain.processes.programs import TRAINER, find_program
from videotrain_api.billing.document import RunBill, bill_text
from videotrain_api.resource.tracking import Tracking
from videotrain_api.resource.trainrun import Storage

LONGEST_SECONDS: Final = 300.0
"""For all trackers; a server that is away is given up sooner by its package."""


def attach_bill(bill: RunBill, tracking: Tracking, storage: Storage, keys: Credentials) -> tuple[bool, list[str]]:
    """Attach it where it is not attached yet.

    Args:
        bill: closed.
        tracking: of the run; its keys are this process's environment.
        storage: of the run, as it is reached from here.
        keys: of the storage.

    Returns:
        Whether all trackers have it, and a line for each.

    Raises:
        UsageError: the trainer is not installed.
    """
    program = find_program(TRAINER)
    if program is None:
        raise UsageError(needs("local", f"the program {TRAINER} beside {sys.executable} or on PATH", "bill --track"))
    reached = storage.model_copy(update={"credentials_secret": None})
    config = {"storage": reached.to_wire(), "tracking": tracking.to_wire()}
    own = {name: value for name, value in os.environ.items() if name != SESSION_TOKEN}  # perhaps of other keys
    environment = own | keys.environment()
    with tempfile.TemporaryDirectory(prefix="videotrain-bill-") as folder:
        bill_file, config_file = Path(folder) / "bill.json", Path(folder) / "config.json"
        bill_file.write_text(bill_text(bill), encoding="utf-8")
        config_file.write_text(json.dumps(config), encoding="utf-8")
        command = [program, "bill", str(bill_file), "--config", str(config_file)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False, [f"trackers did not take the bill in {LONGEST_SECONDS:g} s"]
    lines = done.stdout.splitlines()
    if done.returncode and not any("no bill attached" in line for line in lines):
        lines.append((done.stderr.strip().splitlines() or [f"{TRAINER} bill ended with {done.returncode}"])[-1])
    return done.returncode == 0, lines
