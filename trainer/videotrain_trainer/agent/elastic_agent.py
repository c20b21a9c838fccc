"""torchrun without its command line: torchelastic's local agent for one generation, forked by the fork server."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from videotrain_trainer.agent.messages import LaunchOrder, WorkerDeath, WorkersFailed
from videotrain_trainer.agent.rendezvous import RosterRendezvous
from videotrain_trainer.worker.exit_codes import classify, describe
from videotrain_trainer.worker.main import entry

STOP_SECONDS = 5
"""Time that the siblings of a failed worker get. Their collectives fail at once; one that is busy without them may need
longer, and is killed."""

EXIT_BARRIER_SECONDS = 5.0
"""How long launchers whose workers have ended wait for each other. Nothing depends on it, since the world has agreed to
end; a pod that was killed meanwhile must not hold up the others for torch's 300 s."""

Report = Callable[[WorkersFailed], None]

log = logging.getLogger(__name__)


class ReportingAgent(LocalElasticAgent):
    """torchelastic's agent that tells every failed worker at once.

    The original keeps the status of one failed worker only, which may be one that merely lost its peer, and tells it
    after it has waited up to 30 s for the siblings.
    """

    def __init__(self, spec: WorkerSpec, report: Callable[[list[WorkerDeath]], None], **options: Any) -> None:
        super().__init__(spec, **options)
        self._report = report
        self._reported = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        deaths = _deaths(self._pcontext._pc.processes)  # type: ignore[union-attr]
        if deaths and not self._reported:
            self._reported = True
            self._report(deaths)
            self._shutdown(signal.SIGTERM, STOP_SECONDS)
        result: RunResult = super()._monitor_workers(worker_group)
        return result


def _deaths(processes: Sequence[BaseProcess]) -> list[WorkerDeath]:
    now = datetime.now(UTC)
    return [
        WorkerDeath(local_rank=local_rank, exit_code=process.exitcode, at=now)
        for local_rank, process in enumerate(processes)
        if process.exitcode
    ]


def launch(order: LaunchOrder, store: int | None, method: str, report: Report) -> bool:
    """Run the generation's workers of this pod to their end.

    Args:
        order: What to start.
        store: Descriptor of the socket on which the world's store listens, if that is in this pod.
        method: How to start worker processes: `fork` or `spawn`.
        report: Takes what went wrong, at most once.

    Returns:
        Every local worker succeeded.
    """
    # The videotrain agent alone stops workers: a SIGTERM to the pod's whole process group must not race it.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # ranks follow from the roster, nothing to negotiate

    def failed(deaths: list[WorkerDeath]) -> None:
        report(WorkersFailed(generation=order.generation, deaths=deaths, code=0, message=""))

    try:
        agent = ReportingAgent(
            _spec(order, store),
            failed,
            logs_specs=DefaultLogsSpecs(log_dir=order.log_directory),
            start_method=method,
            exit_barrier_timeout=EXIT_BARRIER_SECONDS,
        )
        return not agent.run().is_failed()
    except Exception as error:
        log.exception("the launcher of generation %s failed", order.generation)
        code, message = classify(error), f"launcher: {describe(error)}"
        report(WorkersFailed(generation=order.generation, deaths=[], code=code, message=message))
        return False


def _spec(order: LaunchOrder, store: int | None) -> WorkerSpec:
    timeout = timedelta(seconds=order.join_seconds)
    return WorkerSpec(
        role="trainer",
        local_world_size=order.processes_per_node,
        entrypoint=entry,
        rdzv_handler=RosterRendezvous(order.store, store, order.node_rank, order.nodes, order.run_id, timeout),
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=order.address,
        event_log_handler="null",
    )
