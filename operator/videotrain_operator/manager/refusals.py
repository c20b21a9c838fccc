"""What the API server refuses for good is put on record where people look: in the run's conditions."""

from __future__ import annotations

from datetime import datetime

from videotrain_api.reasons import Reason
from videotrain_api.resource.stored_status import read_status, with_unknown_fields
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Condition
from videotrain_operator.kube.client import ApiError
from videotrain_operator.planner.conditions import make_condition, with_condition


def status_of_refusal(run: Json, error: ApiError, now: datetime) -> Json:
    """The stored status with the refusal as condition Scheduled = False; the next pass that succeeds replaces it.

    Args:
        run: the object as it is stored.
        error: the answer to a write that the run needs.
        now: aware.
    """
    status = read_status(run.get("status")).status
    generation = run["metadata"].get("generation")
    new = make_condition(
        Condition.SCHEDULED, False, error.reason or Reason.REFUSED, str(error), generation=generation, now=now
    )
    told = status.model_copy(update={"conditions": with_condition(status.conditions, new)})
    return with_unknown_fields(run.get("status"), told.to_wire())
