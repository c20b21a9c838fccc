"""Stores how failed generations ended beside the run's results, where they outlive its pods."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import Roster
from videotrain_api.storage import layout

MOST_STORED: Final = 20
"""Objects that one agent stores; a world that fails so often says the same again."""
LEAVE_SECONDS: Final = 5.0
"""How long a pod that is to end waits for what is being stored."""

log = logging.getLogger(__name__)


class FailureLogs:
    """Writes one object for a generation and pod, each by a thread, so that the next generation does not wait for it.

    Args:
        pod: name of this pod.
        failed: told the stage of each object that could not be stored.
    """

    def __init__(self, pod: str, failed: Callable[[str], None]) -> None:
        self._pod, self._failed = pod, failed
        self._threads: list[threading.Thread] = []

    def store(self, config: StageConfig, roster: Roster, text: str) -> None:
        """Begin to store the text; nothing is raised."""
        if len(self._threads) >= MOST_STORED:
            log.warning("the end of generation %s is not stored: %s were", roster.generation, MOST_STORED)
            return
        name = f"failure-{roster.generation}"
        self._threads.append(threading.Thread(target=self._put, args=(config, roster, text), name=name, daemon=True))
        self._threads[-1].start()

    def wait(self, seconds: float = LEAVE_SECONDS) -> None:
        """Give what is being stored so much time; what is not done then is lost, and that is logged."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("%s is not stored within %g s; the pod's own log has its end", thread.name, seconds)

    def _put(self, config: StageConfig, roster: Roster, text: str) -> None:
        run = config.run.rpartition("/")[2]
        uri = layout.failure_log(config.storage.uri, run, roster.run_uid, roster.generation, self._pod)
        try:
            from videotrain_trainer.storage import ObjectStore  # which an agent needs for nothing else

            ObjectStore(config.storage).put_once(uri, gzip.compress(text.encode(), mtime=0))
        except Exception:  # whatever it is, the agent has a generation to look after
            log.exception("the end of generation %s is not stored", roster.generation)
            self._failed(roster.stage)
        else:
            log.info("stored the end of generation %s: %s", roster.generation, uri)
