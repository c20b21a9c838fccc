"""A task of short steps with one collective each, which misbehaves as <pod root>/behaviour-<local rank> says."""

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.distributed as dist

from videotrain_api.records import CheckpointRecord, StartedRecord, StepRecord
from videotrain_trainer.errors import DataError


def run(context):
    config, world = context.config, context.world
    name, generation = config.stage.name, context.generation
    total = config.stage.train.steps
    started = StartedRecord(
        generation=generation,
        stage=name,
        at=datetime.now(UTC),
        world_size=world.size,
        resumed_step=0,
        total_steps=total,
    )
    context.records.write(started)
    (context.scratch / "temporary").write_text("left behind by a worker that is killed")
    for step in range(1, total + 1):
        began = datetime.now(UTC)
        if context.drain.agreed():
            context.records.write(checkpoint(name, generation, step - 1))
            return "drained"
        misbehave(world.local_rank)
        ranks = torch.ones(1)
        dist.all_reduce(ranks)
        time.sleep(0.02)
        context.records.write(step_record(name, generation, step, began, int(ranks.item())))
    return "completed"


def step_record(stage, generation, step, began, samples):
    return StepRecord(
        generation=generation,
        stage=stage,
        step=step,
        started_at=began,
        finished_at=datetime.now(UTC),
        data_stall_us=10,
        checkpoint_us=1,
        samples=samples,
        tokens=100 * samples,
        model_flops=1e6,
        loss=1.0 / step,
        gradient_norm=1.0,
        learning_rate=1e-3,
    )


def checkpoint(stage, generation, step):
    now = datetime.now(UTC)
    return CheckpointRecord(
        generation=generation,
        stage=stage,
        step=step,
        captured_at=now,
        committed_at=now,
        uri="s3://nowhere",
        bytes=7,
        stall_us=0,
    )


def misbehave(local_rank):
    file = Path(os.environ["VIDEOTRAIN_POD_ROOT"]) / f"behaviour-{local_rank}"
    behaviour = file.read_text() if file.exists() else ""
    if behaviour == "data error":
        raise DataError("clip 7 is damaged: crc32c 0x1 instead of 0x2")
    if behaviour == "bug":
        raise ValueError("an application error")
    if behaviour == "disk full":
        raise OSError(28, "No space left on device")
    if behaviour == "segmentation fault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "stand still":
        stand_still(file.with_name("standing-still"))


def stand_still(mark):
    mark.touch()
    while True:
        time.sleep(3600)
