"""The device never waits for the host: what is read of it, when, and what the loader's threads do meanwhile."""

from __future__ import annotations

import collections
import json
import threading
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from support.training_worlds import Plan, commit_of, run_world, store, train_config
from support.watched_steps import context_of, watch
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_api.records import StepRecord, ValidationRecord
from videotrain_api.resource.stages import ParallelLayout, Validation
from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.data.transfer import map_tensors
from videotrain_trainer.diffusion.flow_batches import FlowLoader
from videotrain_trainer.tasks.train import FlowObjective


@pytest.mark.parametrize(
    ("engine", "stage", "theirs"),
    [
        ("fsdp2", None, 0),
        ("deepspeed", 1, 1),  # its optimizer for bf16 looks whether the norm is finite
        ("deepspeed", 2, 0),
    ],
)
def test_a_step_is_queued_before_the_one_before_is_read_and_reads_nothing_itself(
    tmp_path, latents, engine, stage, theirs
):
    layout = ParallelLayout(micro_batches_per_step=4, zero_stage=stage, engine=engine)
    config = train_config(
        tmp_path,
        latents,
        steps=6,
        precision="bf16",
        parallel=layout,
        checkpoint=CheckpointPolicy(every_steps=4, keep_last=1),
    )
    seen = watch(tmp_path, config)
    # Behind step 4 comes a checkpoint, behind step 6 the end; both wait for their own step and for no other.
    order = [
        "queue",
        "1",
        "queue",
        "2",
        "read",
        "1",
        "queue",
        "3",
        "read",
        "2",
        "queue",
        "4",
        "read",
        "3",
        "read",
        "4",
        "queue",
        "5",
        "queue",
        "6",
        "read",
        "5",
        "read",
        "6",
    ]
    assert seen["told"] == [f"{word} {number}" for word, number in zip(order[::2], order[1::2], strict=True)]
    assert seen["steps"] == [1, 2, 3, 4, 5, 6]
    ours = [where for step in seen["reads"] for where in step if not where.startswith("deepspeed")]
    assert ours == []
    assert [sum(step.values()) for step in seen["reads"]] == [theirs] * 6, seen["reads"]
    assert seen["copies"] == [True] * 6, "one copy to the host in each step, and none that waits"


@pytest.mark.usefixtures("alone")
def test_the_loss_of_a_train_stage_neither_reads_the_device_nor_copies_to_it(tmp_path, latents):
    """On a device without data any reading fails, and every copy from the host is seen."""
    config = train_config(tmp_path, latents, ema_decay=None)
    objective = FlowObjective(context_of(tmp_path, config), store())
    loader = objective.loader(objective.data.plan.start(), [[0]] * len(objective.data.plan.buckets))
    orders = list(islice(objective.data.plan.walk(objective.data.plan.start()), 4))
    batches = [map_tensors(loader.fetch(order, 0), lambda tensor: tensor.to("meta")) for order in orders]
    loader.close()
    objective.module.to("meta")
    objective._null_text = map_tensors(objective._null_text, lambda tensor: tensor.to("meta"))

    class Copies(TorchDispatchMode):
        found = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            from_host = any(isinstance(a, torch.Tensor) and a.device.type == "cpu" and a.dim() > 0 for a in args)
            if from_host and isinstance(out, torch.Tensor) and out.is_meta:
                self.found = (*self.found, str(function))
            return out

    with Copies() as copies:
        for batch in batches:
            loss, work = objective.loss(objective.module, batch)
            loss.backward()
            assert loss.is_meta
            assert work.samples == len(batch.keys)
    assert copies.found == ()


@pytest.mark.usefixtures("alone")
def test_the_next_batch_is_made_ready_while_the_model_computes(tmp_path, latents):
    """The model does not come back before the next batch is there: it would never, if that waited for the model."""
    config = train_config(tmp_path, latents)
    objective = FlowObjective(context_of(tmp_path, config), store())
    plan = objective.data.plan
    ready = collections.defaultdict(threading.Event)

    class Watched(FlowLoader):
        def _collate(self, samples):
            assert threading.current_thread() is not threading.main_thread()
            batch = super()._collate(samples)
            ready[batch.keys[0].bucket, batch.keys[0].position].set()
            return batch

    loader = Watched(
        store(),
        objective.data,
        plan.start(),
        [range(4)] * len(plan.buckets),
        torch.device("cpu"),
        objective.task,
        objective._facts,
        seed=7,
    )
    places = [(order, number) for order in islice(plan.walk(plan.start()), 3) for number in range(4)]

    def slow_model(later, number, **inputs):
        assert ready[later.bucket, later.positions[number][0]].wait(60), "nobody works beside the model"
        return torch.zeros_like(inputs["img_BNI"])

    for (order, number), (later, later_number) in pairwise(places):
        objective.loss(partial(slow_model, later, later_number), loader.fetch(order, number))
    loader.close()


def broken_from(folder, step):
    """An encoded set whose samples are not finite from some step on, as a stage of one bucket orders them."""
    from support.training_worlds import SIZES, _info, _row, _sample

    from videotrain_api.resource.stages import Bucket
    from videotrain_trainer.checksums import sealed_json
    from videotrain_trainer.data.manifest import LATENT_SCHEMA, to_parquet
    from videotrain_trainer.data.sets import open_latents, set_info_uri
    from videotrain_trainer.data.shards import ShardWriter

    rows_of = [Bucket(resolution="64px", frames=8, batch_size=1)]
    bucket, size = "64px/8f/1:1", SIZES["64px/8f/1:1"][2]
    uri, spoiled = f"file://{folder}/latents", set()
    for _ in range(2):  # the first time to learn the order, which the names of the samples decide
        generator, path = torch.Generator().manual_seed(0), folder / "shard.tar"
        with ShardWriter(path) as shard:
            members = [
                shard.add(f"0-{i:02d}", _sample(size, generator, float("nan") if f"0-{i:02d}" in spoiled else 1.0))
                for i in range(20)
            ]
        name = shard.object_name(bucket, 0)
        store().put(f"{uri}/shards/{name}", path)
        rows = [_row(bucket, size, f"shards/{name}", member) for member in members]
        store().put(f"{uri}/manifest.parquet", to_parquet(rows, LATENT_SCHEMA))
        store().put(set_info_uri(uri), sealed_json(_info(rows).to_wire()))
        config = train_config(folder, uri, buckets=rows_of, parallel=ParallelLayout(micro_batches_per_step=2))
        data = open_latents(store(), config)
        order = next(islice(data.plan.walk(data.plan.start()), step - 1, None))
        spoiled = {data.uid(0, order.micro_batches[1][0])}
    return config


@pytest.mark.parametrize("step", [3, 5])
def test_all_ranks_stop_at_a_step_that_diverged_on_one_of_them_and_none_saves_it(tmp_path, step):
    config = broken_from(tmp_path, step)
    result = run_world(tmp_path, config, 2)
    assert result.codes == [int(ExitCode.DIVERGED)] * 2, result.outcomes
    assert all(f"step {step} (bucket" in text for text in result.outcomes)
    # Step 3 is one with a checkpoint; step 5 is read when step 6, which has one, is queued already.
    assert [[s.step for s in result.of_steps(rank)] for rank in (0, 1)] == [list(range(1, step))] * 2
    assert [record.step for record in result.checkpoints] == [3] * (step > 3)
    if step > 3:
        assert commit_of(tmp_path, 3).step == 3
    assert not list(Path(tmp_path / "stage/checkpoints").glob(f"step-{step:08d}/commit.json"))


def test_a_validation_is_told_behind_its_step_and_bears_its_own_time(tmp_path, latents):
    config = train_config(tmp_path, latents, steps=5, validation=Validation(every_steps=2, share=0.4, max_samples=3))
    result = run_world(tmp_path, config, 1, Plan())
    order = [
        (type(record).__name__, record.step)
        for record in result.records[0]
        if isinstance(record, StepRecord | ValidationRecord)
    ]
    expected = [("StepRecord", 1), ("StepRecord", 2), ("ValidationRecord", 2), ("StepRecord", 3), ("StepRecord", 4)]
    assert order == [*expected, ("ValidationRecord", 4), ("StepRecord", 5), ("ValidationRecord", 5)]
    for record in result.steps:
        parts = (record.forward_us, record.backward_us, record.optimizer_us)
        assert all(part > 0 for part in parts)
        took = (record.finished_at - record.started_at).total_seconds() * 1e6
        assert sum(parts) + record.communication_us + record.data_stall_us <= took * 1.001 + 1000
        assert record.memory_bytes > 1e8
        assert record.hardware_flops == record.model_flops >= record.useful_flops > 0
        assert json.loads(record.model_dump_json())["slowest_rank"] == 0
