"""The training loop, for whatever is learned."""

from __future__ import annotations

import time
from contextlib import closing

from videotrain_trainer.checkpoint.state import Point
from videotrain_trainer.data.sample_order import StepOrder
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.training.final_weights import export_weights
from videotrain_trainer.training.order_check import RANK_STEPS, RankSteps, order_lines
from videotrain_trainer.training.setup import MakeObjective, TrainingRun, is_finished, prepare
from videotrain_trainer.training.step import StepResult
from videotrain_trainer.training.validation_loss import Validated
from videotrain_trainer.worker.stage_context import Outcome, StageContext
from videotrain_trainer.worker.stage_reporter import Work


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
        while run.state.step < total_steps:
            # Relies on `run.state` alone; leaves it one step further, with the step's record written. Whether to drain,
            # or to save by the clock, is agreed in the step's own collective, so all ranks do it at the same step.
            result = _step(run)
            # Before validation and before the usual checkpoint: a drain has little time, and loses no step this way.
            # One that comes with the last step ends as any stage does.
            if result.drain and run.state.step < total_steps:
                _save(run)
                run.writer.wait()
                return "drained"
            # Before the checkpoint of the same step: who resumes from it must not have to validate again.
            _validate(run, total_steps)
            # Only begins to write; the next step computes meanwhile, and waits if the one before is not stored yet.
            if result.save or run.state.step % context.config.checkpoint.every_steps == 0:
                _save(run)
        # The last step has a checkpoint whatever its number is. It must be stored, for the result is read back from it.
        _save(run)
        run.writer.wait()
        export_weights(run)
    return "completed"


def _step(run: TrainingRun) -> StepResult:
    run.writer.check()
    order = run.objective.data.plan.step(run.state)
    result = run.stepper.run(order, run.context.drain.requested(), run.save_is_due())
    run.trained_steps.add(order, result.trained)
    _record(run, order, result)
    run.state = run.objective.data.plan.advance(run.state)
    run.samples += result.samples
    run.finished_at = result.finished_at
    return result


def _validate(run: TrainingRun, total_steps: int) -> None:
    """Validate if it is due; before the step's checkpoint, so that a run that resumes there has done it.

    A drain that comes at such a step leaves its validation out, because the time for a drain is short.
    """
    objective, step = run.objective, run.state.step
    if not isinstance(objective, Validated) or objective.validate_every is None:
        return
    if step % objective.validate_every and step != total_steps:
        return
    losses = objective.validate(run.engine, run.peers)
    run.finished_at = run.context.reporter.validated(
        step,
        run.finished_at,
        samples=losses.samples,
        loss=losses.mean,
        bucket_losses=losses.by_bucket,
        times=losses.times,
        time_losses=losses.by_time,
    )


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


def _record(run: TrainingRun, order: StepOrder, result: StepResult) -> None:
    run.context.reporter.step(
        order.step,
        run.finished_at,
        result.finished_at,
        Work(result.samples, result.tokens, result.model_flops),
        data_stall_us=result.data_stall_us,
        checkpoint_us=run.spans.take("checkpoint"),
        loss=result.loss,
        gradient_norm=result.gradient_norm,
        learning_rate=result.learning_rate,
        bucket=order.bucket,
        world_spread=result.world_spread,
    )
