"""`videotrain-trainer bill`: the bill of a run to its experiment trackers."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

HELP = "attach the closed bill of a run to its experiment trackers"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = (
        "Attach a bill to the trackers that a run told: a file and the cost in W&B and MLflow, an artifact in Trackio, "
        "tables in TensorBoard. Those that have it are left alone. Keys are the environment's; `videotrain local` and "
        "`videotrain bill RUN --track` do this."
    )
    parser.add_argument("bill", type=Path, metavar="BILL.json", help="as `videotrain bill RUN -o json` prints it")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="JSON with storage and tracking, as in the spec"
    )


def run(options: argparse.Namespace) -> int:
    """Attach it, and print a line for each tracker.

    Returns:
        1 if a tracker did not take it.

    Raises:
        TrainerError: a file is not what it should be, the bill is open, or the storage cannot be used.
    """
    from videotrain_api.billing.document import BillError, read_bill
    from videotrain_api.resource.tracking import TRACKER_PACKAGES, Tracking
    from videotrain_api.resource.trainrun import Storage
    from videotrain_api.schema import ManifestError
    from videotrain_trainer.errors import ConfigError
    from videotrain_trainer.journal.bill import attach_bill

    try:
        bill, config = read_bill(_json(options.bill)), _json(options.config)
        storage, tracking = Storage.from_wire(config["storage"]), Tracking.from_wire(config["tracking"])
    except (OSError, ValueError, KeyError, TypeError, BillError, ManifestError) as error:
        raise ConfigError(f"{options.bill} with {options.config}: {error}") from None
    lines = []
    failed = False
    # Packages of trackers greet on stdout, which is for the answer.
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="videotrain-bill-") as scratch:
        for one in attach_bill(bill, tracking, storage, Path(scratch)):
            if one.error is None:
                lines.append(f"{one.tracker}: {'had the bill already' if one.before else 'bill attached'}\n")
                continue
            failed = True
            why = str(one.error).replace("\n", " ")
            if isinstance(one.error, ModuleNotFoundError):
                package = TRACKER_PACKAGES[one.tracker]
                why += f": videotrain-trainer[{one.tracker}] brings {package}"
            lines.append(f"{one.tracker}: no bill attached: {type(one.error).__name__}: {why}\n")
    sys.stdout.writelines(lines)
    return int(failed)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
