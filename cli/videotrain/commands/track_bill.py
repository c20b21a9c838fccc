"""`videotrain bill RUN --track`: the closed bill of a cluster's run to its experiment trackers."""

from __future__ import annotations

import sys

from videotrain.bills.sources import bill_of_run
from videotrain.bills.tracked import attach_bill
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.commands.cluster_store import FoundRun, found_run
from videotrain.errors import UsageError
from videotrain.objectstore.s3_client import StorageError
from videotrain_api.billing.document import RunBill
from videotrain_api.resource.tracking import Tracking


def track_bill(name: str, where: ClusterChoice, endpoint_url: str | None, tracking_uri: str | None) -> int:
    """Attach it with the keys of this account and its environment, and print a line for each tracker.

    Args:
        name: NAME or NAMESPACE/NAME.
        where: the cluster.
        endpoint_url: of the run's object store as it is reached from here; the run's if None.
        tracking_uri: of MLflow's server as it is reached from here; the run's if None.

    Returns:
        Exit code: 1 if a tracker did not take it.

    Raises:
        UsageError: there is no such run, it has no trackers or no closed bill, or something cannot be asked.
    """
    found = found_run(name, where)
    tracking = Tracking.from_wire(found.run["spec"].get("tracking") or {})
    if not tracking.to:
        raise UsageError(f"{name}: spec.tracking.to is empty, so there is no tracker to attach a bill to")
    if tracking_uri is not None:
        tracking = tracking.model_copy(update={"uri": tracking_uri})
    storage = found.storage
    if endpoint_url is not None:
        storage = storage.model_copy(update={"endpoint_url": endpoint_url})
    bill = _closed(name, found)
    try:
        keys = found.keys()
    except StorageError as error:
        raise UsageError(str(error)) from None
    done, lines = attach_bill(bill, tracking, storage, keys)
    for line in lines:
        (sys.stdout if done else sys.stderr).write(f"{line}\n")
    return 0 if done else 1


def _closed(name: str, found: FoundRun) -> RunBill:
    bill = bill_of_run(found.run, found.ledger)
    if bill is None or not bill.closed:
        phase = (found.run.get("status") or {}).get("phase", "new")
        raise UsageError(f"{name}: its bill is not closed: the run is {phase}; ask again when it has ended")
    return bill
