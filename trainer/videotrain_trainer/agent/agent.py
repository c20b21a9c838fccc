"""The long-running process of a worker pod: obeys rosters, one generation after the other.

It exits on SIGTERM, or when a roster says that the run is over: status 0 if the workers could leave regularly (or there
were none), 143 if they had to be killed or had failed, or if their work is not complete and a queue is to replace the
pod. A failed generation does not end it; it waits for the next roster.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from datetime import UTC, datetime

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.cost.gpus import KNOWN, unknown
from videotrain_api.records import AgentProgress, GenerationProgress, Roster
from videotrain_api.vocabulary import PORT_AGENT, ExitCode
from videotrain_trainer.agent.exits import silent_exit
from videotrain_trainer.agent.failure_logs import FailureLogs
from videotrain_trainer.agent.forkserver_client import ForkServerClient
from videotrain_trainer.agent.generation import Generation
from videotrain_trainer.agent.metrics import AgentMetrics
from videotrain_trainer.agent.roster import RosterError, Rosters
from videotrain_trainer.agent.server import AgentServer
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.worker.linux import adopt_orphans, gpu_kinds, raise_file_limit
from videotrain_trainer.worker.pod import Pod, load_config, write_atomically

TICK_SECONDS = 0.1
"""How often roster, records and processes are looked at."""
LONGEST_PROBLEM = 4000
"""Characters of what /progress says about problems; the log holds all."""
STUCK_SECONDS = 120.0
"""A main thread that has not looked around for so long is not healthy."""

log = logging.getLogger(__name__)


class Agent:
    """Keeps the pod's workers in step with the newest roster."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._rosters = Rosters(pod.roster_file)
        self._metrics = AgentMetrics(pod)
        self._failures = FailureLogs(pod.name, self._metrics.failure_not_stored)
        self._pending: Roster | None = None
        self._current: Generation | None = None
        self._refused: GenerationProgress | None = None
        self._previous: GenerationProgress | None = None
        self._roster_error: str | None = None
        self._terminating = threading.Event()
        self._ticked = time.monotonic()
        self._answer = AgentProgress(pod=pod.name, pod_uid=pod.uid, at=datetime.now(UTC), ready=False)

    def run(self) -> int:
        """Work until SIGTERM; the exit code.

        Raises:
            ConfigError: the pod has no signing key, or its address cannot be served on.
        """
        adopt_orphans()
        signal.signal(signal.SIGTERM, lambda *_: self._terminating.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for whoever started the pods
        for kind in unknown(gpu_kinds()):
            log.warning("no MFU is told: the peak of GPUs of kind %r is not known; known: %s", kind, ", ".join(KNOWN))
        self._pod.files.directory.mkdir(parents=True, exist_ok=True)
        self._key = self._pod.signing_key()
        raise_file_limit()
        self._server = self._serve()
        self._fork_server = ForkServerClient(self._pod.cache)
        self._server.start()
        try:
            return self._work()
        finally:
            self._fork_server.close()
            self._server.close()

    def _serve(self) -> AgentServer:
        try:
            return AgentServer(
                self._pod.address,
                PORT_AGENT,
                key=self._key,
                progress=self._progress,
                metrics=self._metrics.text,
                healthy=lambda: time.monotonic() - self._ticked < STUCK_SECONDS,
                take_roster=self._rosters.offer,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on the pod's address {self._pod.address}:{PORT_AGENT}: {error}"
            ) from error

    def _work(self) -> int:
        while True:
            # Asked before the tick, which then does what leaving asked for: drains take many ticks.
            if self._terminating.is_set() and self._leave():
                break
            self._tick()
            time.sleep(TICK_SECONDS)
        self._failures.wait()
        state = self._current.snapshot().state if self._current else None
        unfinished = self._pod.replaceable and state != "succeeded"
        return ExitCode.TERMINATED if unfinished or state == "failed" else ExitCode.OK

    def _leave(self) -> bool:
        """Drain what runs; whether it is over."""
        self._pending = None
        if self._current is None or self._current.finished:
            return True
        self._current.drain()
        return False

    def _tick(self) -> None:
        # First, so that /healthz tells of a tick that hangs in what follows.
        self._ticked = time.monotonic()
        # A pod that was told to end takes no new orders; `_leave` has dropped the one that waited.
        if not self._terminating.is_set():
            self._read_roster()
        # Before poll, which judges by what has been heard: a worker's own account of its end must not come too late.
        # What an older generation still says is dropped with it.
        for message in self._fork_server.messages():
            if self._current and message.generation == self._current.roster.generation:
                self._current.hear(message)
        # Relies on the messages; leaves `finished` true once every process of the generation is gone.
        if self._current:
            self._current.poll()
        # After the messages, which are lost with a dead server's channel; before obey, which may want to start workers.
        self._fork_server.restart_if_dead()
        # Relies on `finished`: a newer roster stops what runs and only then, in a later tick, starts.
        self._obey()
        # Last, so that an answer shows all of this tick and never half of it.
        self._publish()

    def _read_roster(self) -> None:
        try:
            roster = self._rosters.newer()
        except RosterError as error:
            log.exception("the roster is not usable")
            self._roster_error = str(error)
            return
        if roster is not None:
            log.info("roster of generation %s: %s, %s", roster.generation, roster.action, roster.reason)
            self._pending, self._roster_error = roster, None

    def _obey(self) -> None:
        roster = self._pending
        if roster is None:
            return
        known = self._current.roster.generation if self._current else self._refused and self._refused.generation
        if roster.action == "run" and known == roster.generation:
            # The same world with a request for traces; whether it runs, has ended or was refused, it stays what it is.
            self._pending = None
            if self._current:
                self._current.ask_for_profile(roster.profile)
            return
        if self._current and not self._current.finished:
            self._current.stop(roster)
            return
        self._pending = None
        if roster.action == "leave":
            self._terminating.set()
        elif roster.action == "run" and roster.rank(self._pod.uid) is not None:
            self._start(roster)

    def _start(self, roster: Roster) -> None:
        if self._current or self._refused:
            self._previous = self._refused or (self._current.snapshot() if self._current else None)
        self._current, self._refused = None, None
        try:
            config = self._config_of(roster)
        except ConfigError as error:
            log.error("generation %s is refused: %s", roster.generation, error)  # noqa: TRY400
            self._refused = _refusal(roster, ExitCode.CONFIG, str(error))
            return
        generation = Generation(roster, config, self._pod, self._key, self._fork_server, self._metrics, self._failures)
        try:
            generation.start()
        except OSError as error:
            log.exception("generation %s cannot be started", roster.generation)
            self._refused = _refusal(roster, ExitCode.INTERNAL, f"its ports cannot be listened on: {error}")
            return
        self._current = generation

    def _config_of(self, roster: Roster) -> StageConfig:
        file = self._pod.config_file(roster.stage)
        if roster.config is not None:
            file = self._pod.files.config(roster.generation, roster.stage)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, roster.config)
        config = load_config(file)
        if config.hash() != roster.config_hash:
            raise ConfigError(
                f"{file} has the hash {config.hash()}, but the roster of generation {roster.generation} asks for "
                f"{roster.config_hash}; the pod was made for another configuration of the run and must be replaced"
            )
        return config

    def _publish(self) -> None:
        current = self._current.snapshot() if self._current else self._refused
        problems = [self._roster_error] if self._roster_error else []
        problems += self._current.errors if self._current else []
        if self._refused and self._refused.exit and self._refused.generation == self._rosters.generation:
            problems.append(self._refused.exit.message)
        self._answer = AgentProgress(
            pod=self._pod.name,
            pod_uid=self._pod.uid,
            at=datetime.now(UTC),
            ready=self._fork_server.ready,
            roster_generation=self._rosters.generation,
            current=current,
            previous=self._previous,
            error="; ".join(problems)[:LONGEST_PROBLEM] or None,
        )
        if current:
            self._metrics.progress(current)
        self._server.notify()

    def _progress(self) -> AgentProgress:
        return self._answer


def _refusal(roster: Roster, code: ExitCode, message: str) -> GenerationProgress:
    now = datetime.now(UTC)
    end = silent_exit(roster, 0, 0, now, code, message)
    return GenerationProgress(
        generation=roster.generation, stage=roster.stage, state="failed", launched_at=now, ended_at=now, exit=end
    )
