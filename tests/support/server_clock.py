"""A clock that was told the time once."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from videotrain_operator.cluster.clock import Clock


def server_clock() -> Clock:
    """As the operator has it once the API server has answered."""
    clock, now = Clock(), time.monotonic()
    clock.note(datetime.now(UTC), now, now)
    return clock
