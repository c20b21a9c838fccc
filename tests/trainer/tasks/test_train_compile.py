"""Stages whose blocks are compiled: traced by torch.compile, and run by its backend `eager`."""

from typing import get_args

import pytest
import torch
from support.at_length import at_length
from support.training_worlds import Plan, difference, final_weights, run_world, train_config

from videotrain_api.resource.stages import Bucket, ParallelLayout, Recompute, Validation
from videotrain_trainer.data.sets import open_latents
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.train_compile import Program, programs

pytestmark = pytest.mark.numeric

TRACED = Plan(backend="eager")
ROUNDING = 1e-6
"""Largest difference of a weight after two steps."""
ROWS = {"steps": 2, "buckets": [Bucket(resolution="64px", frames=8, batch_size=2)], "compile": "on"}


@pytest.fixture(scope="module")
def eager(tmp_path_factory, latents):
    folder = tmp_path_factory.mktemp("eager")
    assert run_world(folder, train_config(folder, latents, **ROWS | {"compile": "off"}), 1).outcomes == ["completed"]
    return folder


@pytest.mark.parametrize("policy", get_args(Recompute))
def test_traced_blocks_learn_what_eager_ones_learn(tmp_path, latents, eager, policy):
    layout = ParallelLayout(micro_batches_per_step=4, recompute=policy)
    result = run_world(tmp_path, train_config(tmp_path, latents, parallel=layout, **ROWS), 1, TRACED)
    assert result.outcomes == ["completed"], result.outcomes
    assert difference(final_weights(tmp_path), final_weights(eager)) < ROUNDING


@pytest.mark.parametrize("layout", [{"zero_stage": 3}, at_length({"engine": "fsdp2"})], ids=["zero-3", "fsdp2"])
def test_traced_blocks_learn_the_same_where_weights_are_sharded(tmp_path, latents, eager, layout):
    parallel = ParallelLayout(micro_batches_per_step=4, recompute="selective", **layout)
    result = run_world(tmp_path, train_config(tmp_path, latents, parallel=parallel, **ROWS), 2, TRACED)
    assert result.outcomes == ["completed"] * 2, result.outcomes
    assert difference(final_weights(tmp_path), final_weights(eager)) < ROUNDING


def test_compilation_counts_as_starting_and_the_kernel_is_told(tmp_path, latents):
    config = train_config(tmp_path, latents, validation=Validation(share=0.3), **ROWS)
    result = run_world(tmp_path, config, 1, TRACED)
    assert result.outcomes == ["completed"], result.outcomes
    started = result.started
    assert started.attention == "flash"
    phases = list(started.phases_us)
    assert phases.index("compile") < phases.index("engine") < phases.index("ready")


def test_one_program_for_each_policy_and_for_one_sample_or_several(tmp_path, latents):
    config = train_config(tmp_path, latents)
    data = open_latents(ObjectStore.for_storage(config.storage), config)
    names = [bucket.name for bucket in data.plan.buckets]
    same = programs(data, dict.fromkeys(names, "selective"), patch=1)
    assert sorted((p.policy, p.samples) for p in same) == [("selective", 1), ("selective", 2)]
    long = max(data.plan.buckets, key=lambda bucket: "16f" in bucket.name)
    mixed = programs(data, {name: "full" if name == long.name else "none" for name in names}, patch=1)
    assert sorted((p.policy, p.samples) for p in mixed) == [("full", 1), ("none", 2)]
    # 64 x 64 pixels and 16 frames are 2 x 2 x 4 latent pixels.
    assert Program("full", 1, 16, degree=1) in mixed


def test_compiling_ahead_draws_no_random_number_of_the_training():
    from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
    from videotrain_api.resource.architecture import TextEncoderSpec
    from videotrain_trainer.networks.build import build_transformer
    from videotrain_trainer.parallel import activation
    from videotrain_trainer.parallel.context import ContextGroups
    from videotrain_trainer.tasks.train_compile import compile_ahead

    text = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=32)
    before = torch.random.get_rng_state()
    activation.compiled.cache_clear()

    def build():
        return build_transformer(TRANSFORMERS["mmdit-tiny-dcae"], AUTOENCODERS["dc-ae-tiny"], text)

    alone = ContextGroups(0, [1], gpus_per_node=1, heads=4)
    compile_ahead(build, [], 8, torch.device("cpu"), torch.float32, validates=False, groups=alone)
    assert torch.equal(torch.random.get_rng_state(), before)
