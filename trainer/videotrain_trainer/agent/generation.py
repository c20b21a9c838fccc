"""One generation in this pod: launch, watch, drain, kill, and the account of how it ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from psutil import Process

from videotrain_api import vocabulary as names
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import GenerationProgress, ProfileRequest, Roster, WorkerExit
from videotrain_api.signing import derive_world_key
from videotrain_api.stacks import MOST_TOLD, joined
from videotrain_api.vocabulary import ExitCode, GenerationReason
from videotrain_trainer.agent import exits, tree
from videotrain_trainer.agent.failure_logs import FailureLogs
from videotrain_trainer.agent.failure_text import WorkerEnd, failure_text, is_telling
from videotrain_trainer.agent.forkserver_client import ForkServerClient
from videotrain_trainer.agent.gate import Gate, listen, loopback
from videotrain_trainer.agent.messages import Launched, LaunchMessage, LaunchOrder, WorkerDeath, WorkersFailed
from videotrain_trainer.agent.metrics import AgentMetrics
from videotrain_trainer.agent.output import WorkerOutput
from videotrain_trainer.agent.progress import ProgressFold
from videotrain_trainer.agent.tail import RecordTail
from videotrain_trainer.worker.linux import gpu_kinds
from videotrain_trainer.worker.pod import Pod, write_atomically

log = logging.getLogger(__name__)


class Generation:
    """The workers of one generation in this pod. Driven by `poll` from the agent's main thread."""

    def __init__(
        self,
        roster: Roster,
        config: StageConfig,
        pod: Pod,
        key: bytes,
        fork_server: ForkServerClient,
        metrics: AgentMetrics,
        failures: FailureLogs,
    ) -> None:
        """Start nothing yet.

        Args:
            roster: names this pod as a member.
            config: of the stage.
            pod: this pod.
            key: the run's signing key, by which members know each other.
            fork_server: starts the workers.
            metrics: of the agent.
            failures: stores what is left of a generation that fails.
        """
        self.roster = roster
        self.errors: list[str] = []
        """What went wrong in watching it, for people."""
        self.finished = False
        """Every process of it is gone."""
        self._config = config
        self._pod = pod
        self._key = key
        self._gate: Gate | None = None
        self._fork_server = fork_server
        self._metrics = metrics
        self._failures = failures
        self._fold = ProgressFold(roster.generation, roster.stage, datetime.now(UTC), gpu_kinds())
        first, workers = (roster.rank(pod.uid) or 0) * roster.processes_per_node, roster.processes_per_node
        self._ranks = range(first, first + workers)
        self._tail = RecordTail(pod.files.records(roster.generation, 0))
        self._output: WorkerOutput | None = None
        self._fork_server_pid: int | None = None
        self._launcher_pid: int | None = None
        self._launcher_gone = False
        self._deaths: dict[int, WorkerDeath] = {}
        self._launch_failure: WorkersFailed | None = None
        self._signalled: set[int] = set()
        self._drain_until: float | None = None
        self._killed: tuple[ExitCode, str] | None = None
        self._kill_began = 0.0

    def start(self) -> None:
        """Have the fork server launch the workers; `hear` learns what came of it.

        Raises:
            OSError: the pod's address or port cannot be listened on.
        """
        roster, pod = self.roster, self._pod
        rank, now = roster.rank(pod.uid), datetime.now(UTC)
        assert rank is not None, "the agent starts generations of which its pod is a member"
        environment = {
            names.ENV_GENERATION: str(roster.generation),
            names.ENV_CONFIG_FILE: str(self._config_file()),
            names.ENV_RESTORE: "1" if roster.restore else "0",
            names.ENV_SAVED_STEP: str(roster.saved_step),
            names.ENV_RUN_UID: roster.run_uid,
            names.ENV_ROSTER_AT: (roster.created_at or now).isoformat(),
            names.ENV_LAUNCHED_AT: now.isoformat(),
            "PYTHONUNBUFFERED": "1",
        }
        if pod.address.startswith("127.") or pod.address == "::1":
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        self.ask_for_profile(roster.profile)
        with contextlib.closing(self._open_store()) as store:
            order = LaunchOrder(
                generation=roster.generation,
                run_id=f"{roster.run_uid}-{roster.generation}",
                address=pod.address,
                store=store.getsockname()[:2],
                node_rank=rank,
                nodes=len(roster.members),
                processes_per_node=roster.processes_per_node,
                join_seconds=self._config.start_seconds,
                log_directory=str(pod.files.launcher(roster.generation)),
                environment=environment,
            )
            self._open_output()
            try:
                self._fork_server.launch(order, store if rank == 0 else None)
            except OSError:
                self._close_output()
                raise
        self._fork_server_pid = self._fork_server.pid

    def _open_output(self) -> None:
        paths = [self._pod.files.output(self.roster.generation, rank) for rank in range(len(self._ranks))]
        try:
            self._output = WorkerOutput(paths)
        except OSError as error:
            log.warning("workers print into the pod's log alone, and no end of it is kept: %s", error)

    def _close_output(self) -> None:
        if self._output:
            self._output.close()

    def _config_file(self) -> Path:
        roster, pod = self.roster, self._pod
        edited = roster.config is not None
        return pod.files.config(roster.generation, roster.stage) if edited else pod.config_file(roster.stage)

    def _open_store(self) -> socket.socket:
        """A socket on the loopback interface: where the store is to listen, or where the way to it begins."""
        roster, address = self.roster, self._pod.address
        inside, leader = listen(loopback(address)), (roster.members[0].address, roster.port)
        if len(roster.members) > 1:
            self._gate = Gate(derive_world_key(self._key, roster.run_uid, roster.generation))
            if roster.rank(self._pod.uid) == 0:
                self._gate.host(listen(*leader), inside.getsockname()[:2])
            else:
                self._gate.guest(inside.dup(), leader, self._config.start_seconds)
        return inside

    def hear(self, message: LaunchMessage) -> None:
        """Take a message about this generation."""
        if isinstance(message, Launched):
            self._launcher_pid = message.pid
        elif isinstance(message, WorkersFailed):
            self._deaths = {death.local_rank: death for death in message.deaths}
            self._launch_failure = message if message.code else None
            fallen = [record for record in self._exits() if message.code or record.local_rank in self._deaths]
            if any(record.outcome == "failed" for record in fallen):
                self._fold.state, self._fold.exit = "failed", exits.root_cause(fallen)
        else:
            self._launcher_gone = True

    def poll(self) -> None:
        """Read records, carry on with what was ordered, and notice the end."""
        if self.finished:
            return
        self._read_records()
        if self._gate and self._gate.problem and self._gate.problem not in self.errors:
            self.errors.append(self._gate.problem)
        if self._fork_server.pid != self._fork_server_pid or not self._fork_server.alive():
            self._launcher_gone = True  # it dies with its fork server
        if self._launcher_gone:
            self._sweep()
        elif self._killed is not None:
            self._kill_again()
        elif self._drain_until is not None:
            self._drain()

    def stop(self, newer: Roster) -> None:
        """Make way for a newer roster: drain if it allows that and there is something to save, else kill."""
        if self._killed is not None:
            return
        if newer.drain and self._fold.state != "failed":
            self.drain()
        elif newer.reason == GenerationReason.HANG:
            self._capture_stacks()
            self.kill(ExitCode.HANG, f"no progress since {self._fold.last_sign_at.isoformat()}; stacks were captured")
        else:
            self.kill(ExitCode.FENCED, f"stopped without a drain for generation {newer.generation} ({newer.reason})")

    def drain(self) -> None:
        """Ask the workers to finish their step, save and leave; they are killed after the stage's grace period."""
        if self._drain_until is None and not self.finished:
            self._drain_until = time.monotonic() + self._config.grace_seconds
            if self._fold.state in ("starting", "running"):
                self._fold.state = "draining"

    def ask_for_profile(self, request: ProfileRequest | None) -> None:
        """Hand a request for traces to the workers, which look for it before each step."""
        if request is not None and not self.finished and set(request.ranks) & set(self._ranks):
            text = json.dumps(request.to_wire())
            write_atomically(self._pod.files.profile_request(self.roster.generation), text)

    def kill(self, code: ExitCode, message: str) -> None:
        """SIGKILL every process of the generation; `code` and `message` go to workers that leave no record."""
        log.info("killing generation %s: %s", self.roster.generation, message)
        self._killed = (code, message)
        self._kill_began = time.monotonic()
        self._kill_again()

    def snapshot(self) -> GenerationProgress:
        """What /progress tells about this generation now."""
        return self._fold.snapshot()

    def _read_records(self) -> None:
        records, bad = self._tail.read()
        self.errors += [str(error) for error in bad]
        for record in records:
            self._fold.apply(record)
            self._metrics.record(record, self._ranks)

    def _worker_pids(self) -> dict[int, int]:
        """Process ids of the live workers that have announced themselves, by local rank."""
        living = {process.pid for process in self._members()}
        found: dict[int, int] = {}
        for local_rank in range(self.roster.processes_per_node):
            with contextlib.suppress(FileNotFoundError):
                pid = int(self._pod.files.worker(self.roster.generation, local_rank).read_text())
                if pid in living:
                    found[local_rank] = pid
        return found

    def _announced(self) -> bool:
        """A worker has run, though it may have left since."""
        worker = self._pod.files.worker
        ranks = range(self.roster.processes_per_node)
        return any(worker(self.roster.generation, local_rank).exists() for local_rank in ranks)

    def _members(self) -> list[Process]:
        return tree.members(self._launcher_pid, self._fork_server.pid)

    def _drain(self) -> None:
        assert self._drain_until is not None
        for pid in set(self._worker_pids().values()) - self._signalled:
            self._signalled.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not self._announced() and len(self._members()) <= 1:
            self.kill(ExitCode.OK, "asked to stop before the workers were started")
        elif time.monotonic() > self._drain_until:
            self.kill(ExitCode.KILLED, f"still there graceSeconds={self._config.grace_seconds} after SIGTERM")

    def _kill_again(self) -> None:
        left = self._members()
        tree.kill(left)
        if left and time.monotonic() - self._kill_began > 10:
            self.errors = [f"SIGKILL does not end {left}; generation {self.roster.generation} blocks its successor"]

    def _capture_stacks(self) -> None:
        found = {}
        for local_rank, pid in self._worker_pids().items():
            file = self._pod.files.stacks(self.roster.generation, local_rank)
            found[local_rank] = tree.capture_stacks(pid, file)
        self._fold.stacks = joined(found, MOST_TOLD)

    def _sweep(self) -> None:
        """The launcher is gone: whatever it left behind goes too, then the account is made."""
        left = self._members()
        if left:
            self._kill_began = self._kill_began or time.monotonic()
            self._kill_again()
            return
        if self._gate:
            self._gate.close()
        self._read_records()
        if self._tail.torn:
            log.warning("the last record of generation %s is incomplete: %r", self.roster.generation, self._tail.torn)
        ends = self._exits()
        self._metrics.exits(ends)
        self._fold.state = exits.end_state(ends, self.roster.processes_per_node)
        self._fold.exit = exits.root_cause(ends)
        self._fold.ended_at = datetime.now(UTC)
        self._tell_end(ends)
        self.finished = True
        self._pod.files.tidy(self.roster.generation, self.roster.processes_per_node)

    def _tell_end(self, ends: list[WorkerExit]) -> None:
        """Store what a failed generation leaves in this pod, if no other pod has more to say."""
        self._close_output()
        if self._fold.state == "failed" and is_telling(ends, self._ranks.start):
            node = os.environ.get(names.ENV_NODE_NAME, "")
            text = failure_text(self.roster, self._pod.name, node, map(self._words, sorted(ends, key=_by_local_rank)))
            self._failures.store(self._config, self.roster, text)

    def _words(self, end: WorkerExit) -> WorkerEnd:
        file = self._pod.files.stacks(self.roster.generation, end.local_rank)
        stacks = file.read_bytes() if file.exists() else b""
        output = self._output.tail(end.local_rank) if self._output else b""
        return WorkerEnd(self._ranks[end.local_rank], end, output, stacks)

    def _exits(self) -> list[WorkerExit]:
        """An exit record of every worker, in its own words where it left some."""
        found = []
        for local_rank in range(self.roster.processes_per_node):
            with contextlib.suppress(FileNotFoundError):
                text = self._pod.files.exit(self.roster.generation, local_rank).read_bytes()
                found.append(WorkerExit.model_validate_json(text))
        known = {record.local_rank for record in found}
        return found + [self._silent_exit(rank) for rank in range(self.roster.processes_per_node) if rank not in known]

    def _silent_exit(self, local_rank: int) -> WorkerExit:
        at = datetime.now(UTC)
        if local_rank in self._deaths:
            death = self._deaths[local_rank]
            at, code, message = death.at, exits.status_code(death.exit_code), exits.death_message(death)
        elif self._launch_failure is not None:
            code, message = self._launch_failure.code, self._launch_failure.message
        elif self._killed is not None:
            code, message = self._killed
        elif self._deaths:
            code, message = ExitCode.TERMINATED, "stopped because another worker of the pod had failed"
        else:
            code, message = ExitCode.KILLED, "the launcher ended without a word: killed by the kernel or from outside"
        return exits.silent_exit(self.roster, local_rank, self._fold.step, at, code, message)


def _by_local_rank(end: WorkerExit) -> int:
    return end.local_rank
