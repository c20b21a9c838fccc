"""The training loop, for whatever is learned."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

from videotrain_trainer.checkpoint.copy_maker import Moment
from videotrain_trainer.checkpoint.state import Point
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.training.final_weights import export_weights
from videotrain_trainer.training.order_check import RANK_STEPS, RankSteps, order_lines
from videotrain_trainer.training.setup import MakeObjective, TrainingRun, is_finished, prepare
from videotrain_trainer.training.step_result import Wishes
from videotrain_trainer.training.step_samples import DrawsSamples
from videotrain_trainer.training.take_in import take_in
from videotrain_trainer.training.validation_loss import Validated
from videotrain_trainer.worker.stage_context import Outcome, StageContext


def train(context: StageContext, make_objective: MakeObjective, total_steps: int) -> Outcome:
    """Train a stage to its end, or until the world is asked to stop.

    Raises:
        TrainerError: it cannot go on.
    """
    store = ObjectStore.for_storage(context.config.storage)
    # First of all, and from the store alone: a world that is started again after its end must not build engines, and
    # every rank finds the same answer, so none is left alone in a collective.
    if is_finished(context, store):
        context.reporter.started(context.world.size, total_steps, total_steps)
        return "completed"
    # From here on all ranks hold the state of the newest complete checkpoint (or the first weights) and walk in step.
    with closing(prepare(context, store, make_objective)) as run:
        # Only if copies in memory were ahead of the newest checkpoint: what is stored is the truth, and catches up.
        _save(run)
        # Before the first step, and where the generation before was stopped or killed between a step and its drawing.
        if not _draw(run, total_steps):
            return _drained(run)
        while run.state.step < total_steps:
            # The first thing behind a step, whichever world came to it: the order of all later steps depends on it.
            take_in(run)
            # Relies on `run.state` alone; leaves it one step further. Queues that step, and only then reads the one
            # before, which so costs the device no time. Whether to drain, or to save by the clock, is agreed there, so
            # all ranks do it at the same step.
            agreed = _step(run)
            # Whatever happens between two steps waits for the verdict on the one before: no checkpoint holds a step
            # that diverged, and every validation is told behind its step.
            if any(agreed) or _something_is_due(run, total_steps):
                _read(run, Wishes)
            # Before validation and before the usual checkpoint: a drain has little time, and loses no step this way.
            # One that comes with the last step ends as any stage does.
            if agreed.drain and run.state.step < total_steps:
                return _drained(run)
            # Before the checkpoint of the same step: who resumes from it must not have to validate again.
            _validate(run, total_steps)
            if not _draw(run, total_steps):
                return _drained(run)
            # Only begins to write; the next step computes meanwhile, and waits if the one before is not stored yet.
            if agreed.save or run.state.step % context.config.checkpoint.every_steps == 0:
                _save(run)
            if run.copy_is_due():
                _copy(run)
        # The last step has a checkpoint whatever its number is. It must be stored, for the result is read back from it.
        _save(run)
        run.wait_until_stored()
        export_weights(run)
        run.forget_copies()
    return "completed"


def _drained(run: TrainingRun) -> Outcome:
    """The end of a world that was asked to stop: no step is lost."""
    _save(run)
    run.wait_until_stored()
    return "drained"


def _step(run: TrainingRun) -> Wishes:
    """Queue the next step and read the one before; what the world is to do behind the step that was queued."""
    run.writer.check()
    order = run.objective.data.plan.step(run.state)
    run.profiler.before(order.step)
    queued = run.stepper.queue(order)
    run.profiler.after(order.step)
    # What a group did is told once, by the rank that speaks for it.
    trained = queued.trained if queued.share.leads else []
    run.trained_steps.add(order, trained)
    if run.copies is not None:
        run.proof.add(trained)
    run.state = run.objective.data.plan.advance(run.state)
    if run.copies is not None:
        # While the device computes. So no step is told of whose loss would cost more than policy allows: all ranks meet
        # in reading it, each with the copy that was due before it.
        with run.spans.measure("checkpoint"):
            run.copies.wait()
    # Asked when the device is done with a step, or at once where there is none to be read.
    agreed = Wishes(*run.peers.any(run.wishes())) if run.unread is None else _read(run, run.wishes)
    run.unread = queued
    return agreed


def _read(run: TrainingRun, wishes: Callable[[], Wishes]) -> Wishes:
    """Record the step that was queued last, if that was not done; what some rank wishes. Collective."""
    if run.unread is None:
        return wishes()
    queued, run.unread = run.unread, None
    result = run.stepper.read(queued, wishes)
    run.context.reporter.step(
        queued.order.step,
        run.finished_at,
        result.finished_at,
        result.work,
        **(result.measured | {"checkpoint_us": run.spans.take("checkpoint")}),
    )
    run.samples += result.work.samples
    run.finished_at = result.finished_at
    return result.agreed


def _something_is_due(run: TrainingRun, total_steps: int) -> bool:
    """A validation, a checkpoint, a copy or the end of the stage comes after the step that was queued last."""
    step = run.state.step
    saves = step % run.context.config.checkpoint.every_steps == 0
    return saves or run.copy_is_due() or step == total_steps or _validates(run, total_steps) or _draws(run, total_steps)


def _validates(run: TrainingRun, total_steps: int) -> bool:
    objective, step = run.objective, run.state.step
    if not isinstance(objective, Validated) or objective.validate_every is None:
        return False
    return step % objective.validate_every == 0 or step == total_steps


def _validate(run: TrainingRun, total_steps: int) -> None:
    """Validate if it is due; before the step's checkpoint, so that a run that resumes there has done it.

    A drain that comes at such a step leaves its validation out, because the time for a drain is short.
    """
    objective = run.objective
    if not isinstance(objective, Validated) or not _validates(run, total_steps):
        return
    losses = objective.validate(run.engine, run.peers)
    run.finished_at = run.context.reporter.validated(
        run.state.step,
        run.finished_at,
        samples=losses.samples,
        loss=losses.mean,
        bucket_losses=losses.by_bucket,
        times=losses.times,
        time_losses=losses.by_time,
    )


def _draws(run: TrainingRun, total_steps: int) -> bool:
    objective, step = run.objective, run.state.step
    if not isinstance(objective, DrawsSamples) or objective.draw_every is None:
        return False
    return step % objective.draw_every == 0 or step == total_steps


def _draw(run: TrainingRun, total_steps: int) -> bool:
    """Draw videos if it is due; before the step's checkpoint, as validation. False if the world was asked to stop
    meanwhile: who resumes from the step draws them.
    """
    objective, step = run.objective, run.state.step
    if not isinstance(objective, DrawsSamples) or not _draws(run, total_steps):
        return True
    drawn = objective.draw_samples(run.engine, run.peers, step)
    if drawn is None:
        return False
    run.finished_at = run.context.reporter.drawn(step, run.finished_at, drawn.videos, drawn.uri)
    return True


def _save(run: TrainingRun) -> None:
    """Begin a checkpoint of the last finished step, unless it has one. The step that waits for it bears its stall."""
    if run.saved_step == run.state.step:
        return
    with run.spans.measure("checkpoint"):
        own = RankSteps(list(run.trained_steps.trained), frozenset(skip.uid for skip in run.loader.skipped))
        ranks = run.peers.to_first(RANK_STEPS, own)
        point = Point(
            step=run.state.step,
            captured_at=run.finished_at,
            data_cursor=run.state.to_json(),
            samples=run.samples,
            lines=order_lines(run.objective.data, run.trained_steps.steps, ranks) if ranks else [],
        )
        run.writer.save(run.engine.shards, point)
    run.trained_steps.clear()
    run.saved_step, run.save_began = run.state.step, time.monotonic()


def _copy(run: TrainingRun) -> None:
    """Begin a copy of the last finished step in the memory of this pod and the next. Its stall is the next step's."""
    if run.copies is None:
        return
    run.proof.forget(run.writer.complete_step)
    with run.spans.measure("checkpoint"):
        moment = Moment(
            step=run.state.step,
            captured_at=run.finished_at,
            data_cursor=run.state.to_json(),
            samples=run.samples,
            proof_after=run.proof.after,
            proof=run.proof.told(frozenset(skip.uid for skip in run.loader.skipped)),
        )
        run.copies.take(run.engine.shards, moment)
