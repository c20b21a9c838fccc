"""One worker process: from the environment that torch's launcher and the agent give to an exit code.

Environment: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them, the
pod's own variables, ENV_GENERATION, ENV_CONFIG_FILE, ENV_RESTORE and ENV_SAVED_STEP. Whatever happens,
exit-<generation>-<local rank>.json tells it; only SIGKILL leaves that to the agent.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NoReturn

import torch
import torch.distributed as dist

from videotrain_api import vocabulary as names
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import WorkerExit
from videotrain_api.resource.stages import TASKS
from videotrain_api.vocabulary import ENV_VISIBLE_GPUS, ExitCode
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.worker.drain import SignalDrain
from videotrain_trainer.worker.exit_codes import classify, describe
from videotrain_trainer.worker.linux import die_with_parent, name_process
from videotrain_trainer.worker.pod import Pod, RunFiles, load_config, require, write_atomically
from videotrain_trainer.worker.record_file import RecordFile
from videotrain_trainer.worker.stage_context import CopyPlace, Outcome, StageContext, Task, World
from videotrain_trainer.worker.start_clock import StartClock

MODULES: dict[str, str] = {name: f"videotrain_trainer.tasks.{name}" for name in TASKS}
"""Modules by task, imported when the task runs; each has `run(context) -> Outcome`."""

PREFLIGHT = "videotrain_trainer.preflight.first_start"
"""Has `check_run(context, spec_file)`, which comes before the first work of a run."""

JOURNAL = "videotrain_trainer.journal.open"
"""Has `journal(context, run_uid)`, which tells of records beside keeping them."""

LEFT_BEFORE_START = 75
"""Status of a process that was asked to stop before its world existed (EX_TEMPFAIL). Not zero, so that torch's launcher
stops its siblings at once; the record says `drained`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerEnvironment:
    """What a worker process is told by its parents."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    generation: int
    config_file: Path
    restore: bool
    saved_step: int
    roster_at: datetime | None
    launched_at: datetime | None
    """None if nobody tells, as without an agent."""
    node: str
    files: RunFiles
    cache: Path
    pod: Pod
    run_uid: str = ""
    """Empty if nobody tells, as without an agent."""
    visible_devices: str = ""
    """CUDA_VISIBLE_DEVICES; empty if it is unset."""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> WorkerEnvironment:
        """Parse the environment.

        Raises:
            ConfigError: a variable is missing.
        """
        pod = Pod.from_environment(environment)
        return cls(
            rank=int(require(environment, "RANK")),
            world_size=int(require(environment, "WORLD_SIZE")),
            local_rank=int(require(environment, "LOCAL_RANK")),
            local_world_size=int(require(environment, "LOCAL_WORLD_SIZE")),
            generation=int(require(environment, names.ENV_GENERATION)),
            config_file=Path(require(environment, names.ENV_CONFIG_FILE)),
            restore=require(environment, names.ENV_RESTORE) == "1",
            saved_step=int(require(environment, names.ENV_SAVED_STEP)),
            roster_at=_time(environment.get(names.ENV_ROSTER_AT)),
            launched_at=_time(environment.get(names.ENV_LAUNCHED_AT)),
            node=environment.get(names.ENV_NODE_NAME) or socket.gethostname(),
            files=pod.files,
            cache=pod.cache,
            pod=pod,
            run_uid=environment.get(names.ENV_RUN_UID, ""),
            visible_devices=environment.get(ENV_VISIBLE_GPUS, ""),
        )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def set_up_logging(run: str, stage: str, generation: int, rank: int) -> None:
    """Log to standard error, each line with the run, stage, generation and rank that it belongs to."""
    where = f"run={run} stage={stage} generation={generation} rank={rank}".replace("%", "%%")
    form = f"%(asctime)s %(levelname)s {where} %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, stream=sys.stderr, force=True)


def print_into(pipe: Path) -> None:
    """Have this process and its children print into the agent's pipe, if there is one, native code included."""
    if pipe.is_fifo():
        # Open for reading, too: a pipe without a reader would end whoever prints.
        descriptor = os.open(pipe, os.O_RDWR)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    faulthandler.enable()  # a crash in native code says where


def choose_device(found: int, environment: WorkerEnvironment) -> torch.device:
    """The GPU with the worker's local rank, or the CPU where there is no GPU.

    NCCL refuses two ranks on one GPU, so every worker process of the pod has to have its own.

    Args:
        found: number of CUDA devices that PyTorch can use.
        environment: says how many processes share the pod, and whether it was given devices.

    Raises:
        ConfigError: there are GPUs, but fewer than worker processes; or the pod was given some and none can be used.
    """
    given = environment.visible_devices.strip()
    if found == 0 and given in ("", "-1"):
        return torch.device("cpu")
    if found < environment.local_world_size:
        origin = f" (CUDA_VISIBLE_DEVICES is {given!r})" if given else ""
        raise ConfigError(
            f"PyTorch {torch.__version__} finds {found} CUDA devices in the pod{origin}, and its "
            f"{environment.local_world_size} worker processes need one each; set spec.pool.gpusPerNode to the number "
            "of devices, or use the CPU: spec.pool.env: {CUDA_VISIBLE_DEVICES: ''}, or `videotrain local --device cpu`"
        )
    return torch.device("cuda", environment.local_rank)


class Worker:
    """A worker process between its start and its exit record."""

    def __init__(self, environment: WorkerEnvironment) -> None:
        self._environment = environment
        self._start = StartClock(environment.roster_at)
        self._start.passed("order", environment.launched_at or environment.roster_at)
        self._start.passed("launch")
        self._sink = RecordFile(environment.files, environment.generation, environment.local_rank)
        self._drain = SignalDrain(self._leave_early)
        self._stage = environment.config_file.stem
        self._config_hash = ""
        self._announce()

    def _announce(self) -> None:
        """Take stack requests, then publish the process id: whoever reads it may send signals."""
        files, generation, local_rank = (
            self._environment.files,
            self._environment.generation,
            self._environment.local_rank,
        )
        self._stacks = files.stacks(generation, local_rank).open("a")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        write_atomically(files.worker(generation, local_rank), f"{os.getpid()}\n")

    def run(self) -> ExitCode:
        """Do the stage and record how it ended. Never raises."""
        try:
            config = load_config(self._environment.config_file)
            self._config_hash = config.hash()
            outcome = self._run_stage(config)
        except BaseException as error:
            log.exception("worker failed")
            return self._record(classify(error), "failed", describe(error))
        return self._record(ExitCode.OK, outcome, "")

    def _run_stage(self, config: StageConfig) -> Outcome:
        environment = self._environment
        set_up_logging(config.run, config.stage.name, environment.generation, environment.rank)
        task: Task = importlib.import_module(MODULES[config.stage.task]).run
        device = choose_device(torch.cuda.device_count() if torch.cuda.is_available() else 0, environment)
        # A backstop only: the operator sees a step counter that stands still first and has the stacks captured.
        timeout = timedelta(seconds=2 * max(config.start_seconds, config.hang_seconds))
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=timeout, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=timeout)
        self._start.passed("join")
        self._drain.started(device)
        if self._drain.agreed():
            outcome: Outcome = "drained"
        else:
            context = self._context(config, device)
            importlib.import_module(PREFLIGHT).check_run(context, environment.pod.spec_file)
            self._start.passed("check")
            # A pod without a frozen spec is of no run that anybody would look for in the store.
            run_uid = environment.run_uid if environment.pod.spec_file.is_file() else ""
            with importlib.import_module(JOURNAL).journal(context, run_uid) as told:
                outcome = task(told)
        dist.destroy_process_group()
        return outcome

    def _context(self, config: StageConfig, device: torch.device) -> StageContext:
        environment = self._environment
        scratch = environment.files.scratch(environment.generation, environment.local_rank)
        scratch.mkdir(parents=True, exist_ok=True)
        environment.cache.mkdir(parents=True, exist_ok=True)
        world = World(
            rank=environment.rank, size=environment.world_size, local_rank=environment.local_rank, device=device
        )
        return StageContext(
            config=config,
            world=world,
            generation=environment.generation,
            restore=environment.restore,
            saved_step=environment.saved_step,
            node=environment.node,
            records=self._sink,
            drain=self._drain,
            scratch=scratch,
            cache=environment.cache,
            copies=self._copies(config),
            profile_request=environment.files.profile_request(environment.generation),
            start=self._start,
        )

    def _copies(self, config: StageConfig) -> CopyPlace | None:
        """Where copies of the state lie, if any are kept; those of another stage are of no use, and give room."""
        environment = self._environment
        folder = environment.pod.root / names.DIR_COPIES
        if environment.local_rank == 0 and folder.is_dir():
            for path in folder.iterdir():
                if not path.name.startswith(f"{config.stage.name}."):
                    path.unlink(missing_ok=True)
        if config.checkpoint.peer_copies is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        key = environment.pod.signing_key()
        return CopyPlace(folder=folder, key=key, node_ranks=environment.local_world_size)

    def _record(self, code: ExitCode, outcome: Literal[Outcome, "failed"], message: str) -> ExitCode:
        self._sink.write(
            WorkerExit(
                generation=self._environment.generation,
                stage=self._stage,
                config_hash=self._config_hash,
                local_rank=self._environment.local_rank,
                at=datetime.now(UTC),
                code=code,
                outcome=outcome,
                step=self._sink.step,
                message=message,
            )
        )
        return code

    def _leave_early(self) -> NoReturn:
        self._record(ExitCode.OK, "drained", "asked to stop before the world was complete")
        os._exit(LEFT_BEFORE_START)


def run() -> ExitCode:
    """Be the worker that the environment describes. Never raises."""
    try:
        environment = WorkerEnvironment.read()
    except ConfigError as error:
        log.error("%s", error)  # noqa: TRY400 - there is no file to record it in, and a traceback says no more
        return error.exit_code
    parent = multiprocessing.parent_process()
    die_with_parent(os.getppid() if parent is None or parent.pid is None else parent.pid)
    print_into(environment.files.output(environment.generation, environment.local_rank))
    name_process(f"vt-worker-{environment.local_rank}")
    return Worker(environment).run()


def entry() -> None:
    """Entry point of workers that torch's launcher forks: returns on success, ends the process otherwise."""
    code = run()
    if code != ExitCode.OK:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # destructors of a broken process group may wait for ever
