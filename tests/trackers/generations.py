"""Three generations of a run, each a process: the second does steps again, and the first leaves without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.config.stage_config import StageConfig, StagePaths
from videotrain_api.records import CheckpointRecord, StartedRecord, StepRecord, ValidationRecord
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Prompt, SampleTask, Stage
from videotrain_api.resource.tracking import Tracking
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import SampledVideo, VideosIndex
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.video import write_mp4
from videotrain_trainer.journal.tracked import TrackerSink
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

UID = "0b5f3a52-run-uid"
AT = datetime(2026, 11, 30, tzinfo=UTC)
STEPS, EVERY = 60, 5
LAST = {1: 35, 2: 50, 3: STEPS}
"""The last step of each generation."""
FIRST = {1: 1, 2: 21, 3: 51}
"""The first one: the second goes on from the checkpoint of step 20, and the first was killed at step 35."""


@dataclass
class Records:
    all: list = field(default_factory=list)

    def write(self, record) -> None:
        self.all.append(record)


def config(storage: Storage, tracking: Tracking) -> StageConfig:
    sample = SampleTask(resolution="64px", frames=8, prompts=[Prompt(text="a red ball")])
    return StageConfig(
        run="default/curves",
        stage=Stage(name="train", task="sample", sample=sample),  # so that its videos are shown, too
        model=complete_transformer(TransformerSpec(preset="mmdit-tiny-dcae")),
        autoencoder=complete_autoencoder(AutoencoderSpec(preset="dc-ae-tiny")),
        text_encoder=TextEncoderSpec(),
        dataset=Dataset(),
        storage=storage,
        checkpoint=CheckpointPolicy(),
        paths=StagePaths(output=f"{storage.uri}/curves/train"),
        tracking=tracking,
        seed=1,
        gpus_per_node=1,
        hang_seconds=60,
        start_seconds=60,
        grace_seconds=20,
    )


def loss(step: int) -> float:
    return 1.0 / step


def video(store: ObjectStore, output: str, folder: Path) -> None:
    path = folder / "drawn.mp4"
    write_mp4([np.full((64, 64, 3), 20 * n, np.uint8) for n in range(8)], path, Fraction(8))
    uri = f"{output}/videos/0000.mp4"
    store.put(uri, path)
    size = {"width": 64, "height": 64, "frames": 8, "fps": 8}
    drawn = SampledVideo(number=0, uri=uri, prompt="a red ball", condition="t2v", seed=1, settings={}, **size)
    store.put(layout.videos_index(output), sealed_json(VideosIndex(videos=[drawn]).to_wire()))


def live(storage: Storage, tracking: Tracking, generation: int, folder: Path) -> None:
    """One generation, in this process. The first one is killed behind step 35."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, store = config(storage, tracking), ObjectStore.for_storage(storage)
    reporter = StageReporter(sink=Records(), generation=generation, stage="train", config_hash="ab")
    sink = TrackerSink(store, settings, UID, folder, reporter)
    if generation == 1:
        _die_after_the_checkpoint(sink)
    origin = {"generation": generation, "stage": "train", "config_hash": "ab"}
    begin = FIRST[generation]
    sink.write(StartedRecord(**origin, at=AT, world_size=1, resumed_step=begin - 1, total_steps=STEPS))
    for step in range(begin, LAST[generation] + 1):
        start = AT + timedelta(seconds=step)
        facts = {"data_stall_us": 0, "checkpoint_us": 0, "samples": 4, "tokens": 10, "model_flops": 1.0}
        end = start + timedelta(seconds=1)
        sink.write(StepRecord(**origin, step=step, started_at=start, finished_at=end, loss=loss(step), **facts))
        if step % 20 == 0:
            losses = {"loss": 2 * loss(step), "samples": 1, "bucket_losses": {}, "times": [], "time_losses": []}
            sink.write(ValidationRecord(**origin, step=step, at=end, duration_us=1, **losses))
            saved = {"captured_at": end, "committed_at": end, "uri": "s3://bucket/c", "bytes": 1, "stall_us": 0}
            sink.write(CheckpointRecord(**origin, step=step, **saved))
    if generation == 1:
        sink._queue.put(None)
        sink._thread.join()
        os._exit(0)
    if generation == 3:
        video(store, settings.paths.output, folder)
    sink.close(600, completed=generation == 3)
    assert not reporter.sink.all, reporter.sink.all


def _die_after_the_checkpoint(sink: TrackerSink) -> None:
    """What was stored with its one checkpoint is all that is left of the generation."""
    store, calls = sink._store_all, []

    def once() -> None:
        calls.append(1)
        if len(calls) == 1:
            store()

    sink._store_all = once


def live_all(storage: Storage, tracking: Tracking, folder: Path) -> None:
    """All three, each in a process of its own, as trackers keep state in theirs."""
    for generation in LAST:
        command = [sys.executable, __file__, storage.model_dump_json(), tracking.model_dump_json(), str(generation)]
        done = subprocess.run(
            [*command, str(folder / f"generation-{generation}")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]


if __name__ == "__main__":
    given = Storage.model_validate_json(sys.argv[1]), Tracking.model_validate_json(sys.argv[2])
    live(*given, int(sys.argv[3]), Path(sys.argv[4]))
