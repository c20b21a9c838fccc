"""What a step of a real train stage makes the host wait for, by engine."""

from __future__ import annotations

from support.speed_counts import check
from support.training_worlds import make_latents, train_config
from support.watched_steps import watch

from videotrain_api.resource.stages import ParallelLayout
from videotrain_api.resource.trainrun import CheckpointPolicy

STEPS = 4


def test_a_step_waits_for_the_device_once_at_most_and_that_is_when_the_next_one_is_queued(tmp_path):
    latents, counts = make_latents(tmp_path), {}
    for engine, stage in (("fsdp2", None), ("deepspeed", 1), ("deepspeed", 2)):
        folder = tmp_path / f"{engine}-{stage}"
        folder.mkdir()
        layout = ParallelLayout(micro_batches_per_step=4, zero_stage=stage, engine=engine)
        policy = CheckpointPolicy(every_steps=100, keep_last=1)
        config = train_config(folder, latents, steps=STEPS, precision="bf16", parallel=layout, checkpoint=policy)
        seen = watch(folder, config)
        reads = {sum(step.values()) for step in seen["reads"]}
        assert len(reads) == 1, seen["reads"]
        counts[f"{engine}, ZeRO {stage}" if engine == "deepspeed" else engine] = {
            "reads while it is queued": reads.pop(),
            "copies to the host": len(seen["copies"]) // STEPS,
            "copies that wait": seen["copies"].count(False),
        }
    assert max(engine["reads while it is queued"] for engine in counts.values()) <= 1
    assert all(engine["copies that wait"] == 0 for engine in counts.values())
    check("host, per step", counts)
