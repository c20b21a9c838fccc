"""From a stage context to a run that is ready for its next step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import TypeAdapter

from videotrain_api.storage import layout
from videotrain_trainer.checkpoint.catalog import find_steps, stored_steps, withdraw
from videotrain_trainer.checkpoint.copies import CopyFolder
from videotrain_trainer.checkpoint.copy_maker import CopyMaker
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.checkpoint.save import CheckpointWriter
from videotrain_trainer.checkpoint.state import Member
from videotrain_trainer.data.loader import MicroBatchLoader
from videotrain_trainer.data.sample_order import OrderState
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.weights import Weights, open_weights
from videotrain_trainer.node_cache import NodeCache
from videotrain_trainer.parallel.data_parallel import Share, share_of
from videotrain_trainer.parallel.engine import Engine, engine_options
from videotrain_trainer.parallel.gradient_check import check_gradients
from videotrain_trainer.parallel.neighbours import NextPod
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.reconstruction.joint_engine import AdversarialEngine, build_engine
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.training.copy_proof import ProofLog
from videotrain_trainer.training.first_weights import fill_first_weights
from videotrain_trainer.training.order_check import TrainedSteps
from videotrain_trainer.training.profiling import StepProfiler
from videotrain_trainer.training.resume import Resumed, resume
from videotrain_trainer.training.stage_check import check_stage
from videotrain_trainer.training.start_log import start_lines
from videotrain_trainer.training.step import Grows, Objective, QueuedStep, Stepper
from videotrain_trainer.training.step_result import Wishes
from videotrain_trainer.training.timing import Spans
from videotrain_trainer.worker.stage_context import StageContext, World

log = logging.getLogger(__name__)

_YES_OR_NO: Final = TypeAdapter(bool)
_STEPS: Final = TypeAdapter(list[int])
MakeObjective = Callable[[StageContext, ObjectStore], Objective]


@dataclass
class TrainingRun:
    """Everything that the loop works with."""

    context: StageContext
    store: ObjectStore
    objective: Objective
    engine: Engine | AdversarialEngine
    peers: WorldPeers
    loader: MicroBatchLoader[Any, Any]
    stepper: Stepper
    writer: CheckpointWriter
    profiler: StepProfiler
    spans: Spans
    state: OrderState
    """Order after the last step that was queued."""
    samples: int
    """Consumed up to the last step that was read."""
    saved_step: int
    """Step of the newest checkpoint that was begun."""
    finished_at: datetime
    """End of the last step that was read, or of what came after it."""
    proof: ProofLog
    """Of what this rank trained on, for copies of the state in memory."""
    copies: CopyMaker | None
    """None if the stage keeps none."""
    unread: QueuedStep | None = None
    """The last step that was queued, until it is read."""
    trained_steps: TrainedSteps = field(default_factory=TrainedSteps)
    save_began: float = field(default_factory=time.monotonic)
    """When that checkpoint was begun, or training went on from it."""

    @property
    def prefix(self) -> str:
        """Of the stage in the object store."""
        return self.context.config.paths.output

    def save_is_due(self) -> bool:
        """Whether a checkpoint is due by the clock; always False but on rank 0, whose clock is the world's."""
        every = self.context.config.checkpoint.every_seconds
        return self.context.world.rank == 0 and every is not None and time.monotonic() - self.save_began >= every

    def wishes(self) -> Wishes:
        """What this process asks the world for."""
        return Wishes(drain=self.context.drain.requested(), save=self.save_is_due())

    def copy_is_due(self) -> bool:
        """Whether the state after the last step is to be copied to the next pod's memory."""
        policy = self.context.config.checkpoint.peer_copies
        return self.copies is not None and policy is not None and self.state.step % policy.every_steps == 0

    def wait_until_stored(self) -> None:
        """Until the last checkpoint is complete and the last copy has gone where it is to go.

        Raises:
            TrainerError: the checkpoint failed.
        """
        self.writer.wait()
        if self.copies is not None:
            self.copies.wait()

    def forget_copies(self) -> None:
        """Free the memory of copies: the stage is complete."""
        if self.copies is not None:
            self.copies.forget()

    def close(self) -> None:
        """Stop threads; a checkpoint that is still being written stays incomplete."""
        self.writer.close()
        self.loader.close()
        self.profiler.close(self.state.step)


def is_finished(context: StageContext, store: ObjectStore) -> bool:
    """Whether the stage's final weights are there. Collective."""
    found = None
    if context.world.rank == 0:
        found = context.restore and store.exists(layout.final_weights(context.config.paths.output))
    return WorldPeers().from_first(_YES_OR_NO, found)


def prepare(context: StageContext, store: ObjectStore, make_objective: MakeObjective) -> TrainingRun:
    """Build the model, load the newest checkpoint and tell that the workers are ready. Collective.

    Raises:
        TrainerError: configuration, data, storage or checkpoints are not usable.
    """
    peers, world, clock = WorldPeers(), context.world, context.start
    check_stage(context.config, world.size)
    complete = _claim(context, store, peers)
    clock.passed("claim")
    objective = make_objective(context, store)
    task = objective.task
    clock.passed("data")
    objective.compile_ahead()
    clock.passed("compile")
    first = None if complete else objective.first_weights()
    options = engine_options(task)
    check = check_gradients(objective.check_model(world), options, world, peers)
    log.info("gradient check passed: %s", check)
    clock.passed("gradients")
    engine = build_engine(objective, options, world)
    clock.passed("engine")
    resumed = resume(context, store, _member(context), objective, engine.shards, complete, peers)
    if first is not None and not resumed.from_copies:
        fill_first_weights(first, engine.shards, peers)
    engine.refresh()
    step = resumed.order.step
    engine.shards.set_optimizer_step(step)
    clock.passed("copies" if resumed.from_copies else "checkpoint" if resumed.stored else "weights")
    run = _assemble(context, store, objective, engine, peers, resumed)
    clock.passed("ready")
    if world.rank == 0:
        for line in start_lines(objective.module, task, objective.data, objective.attention, world):
            log.info("%s", line)
        if isinstance(objective, Grows):
            for uri, count in objective.passed_over().items():
                log.warning(
                    "%d sets were appended to %s, and none is trained on; set train.appendedEverySteps", count, uri
                )
    log.info("ready at step %d of %d: %s", step, task.steps, clock)
    context.reporter.started(
        world.size,
        step,
        task.steps,
        list(resumed.skipped),
        clock.phases_us,
        attention=objective.attention,
        gradient_check=check,
    )
    return run


def _member(context: StageContext) -> Member:
    return Member(
        run=context.config.run,
        stage=context.config.stage.name,
        prefix=context.config.paths.output,
        config_hash=context.config.hash(),
        generation=context.generation,
        rank=context.world.rank,
        world_size=context.world.size,
        node=context.node,
    )


def _claim(context: StageContext, store: ObjectStore, peers: WorldPeers) -> list[int]:
    """Shut out older generations, then look for checkpoints: in this order none of theirs can be overlooked."""
    complete: list[int] | None = None
    if context.world.rank == 0:
        prefix = context.config.paths.output
        Fence(store, prefix, context.generation).raise_()
        if context.restore:
            complete = find_steps(store, prefix, context.saved_step).complete
        else:
            log.warning("generation %d begins at step 1 by order", context.generation)
            for step in stored_steps(store, prefix).complete:
                withdraw(store, prefix, step)
            complete = []
    return peers.from_first(_STEPS, complete)


def _assemble(
    context: StageContext,
    store: ObjectStore,
    objective: Objective,
    engine: Engine | AdversarialEngine,
    peers: WorldPeers,
    resumed: Resumed,
) -> TrainingRun:
    world, config, state = context.world, context.config, resumed.order
    shares = shares_of(world, objective.data)
    loader = objective.loader(state, [share.micro_batches for share in shares])
    order = OrderLog(store, config.paths.output, resumed.stored, context.reporter, resumed.lines)
    return TrainingRun(
        context=context,
        store=store,
        objective=objective,
        engine=engine,
        peers=peers,
        loader=loader,
        stepper=Stepper(objective, engine, loader, peers, shares, world.device),
        writer=CheckpointWriter(store, _member(context), config.checkpoint, order, context.reporter),
        profiler=StepProfiler(context, store),
        spans=Spans(),
        state=state,
        samples=resumed.samples,
        saved_step=resumed.stored_step,
        finished_at=datetime.now(UTC),
        proof=ProofLog(resumed.stored_step, state.step, resumed.lines),
        copies=_copy_maker(context, peers, resumed),
    )


def shares_of(world: World, data: TrainingSet) -> list[Share]:
    """What a process does of a step of each bucket."""
    micro_batches = data.plan.micro_batches_of
    return [
        share_of(world.rank, world.size, micro_batches(bucket), degree) for bucket, degree in enumerate(data.degrees)
    ]


def _copy_maker(context: StageContext, peers: WorldPeers, resumed: Resumed) -> CopyMaker | None:
    place, world = context.copies, context.world
    if place is None:
        return None
    neighbours = NextPod(place.node_ranks) if world.size > place.node_ranks else None
    folder = CopyFolder(place.folder, place.key, _member(context))
    return CopyMaker(folder, peers, neighbours, context.reporter, resumed.copies)


def initial_weights(store: ObjectStore, uri: str, cache: NodeCache | None = None) -> Weights:
    """Open weights, none of them read yet.

    Args:
        store: object store.
        uri: what `open_weights` takes, or the prefix of a stage.
        cache: of the pod, if every process is to read all of them.

    Raises:
        ConfigError: there are none.
    """
    try:
        return open_weights(uri, store=store, cache=cache)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. These are the weights to start from; see initFrom and spec.model.weights"
        ) from error
