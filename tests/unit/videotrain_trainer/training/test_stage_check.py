"""What the API admits the trainer takes, and what the trainer refuses the API refuses before anything is paid for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from videotrain_api import capabilities
from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.config.resolve import resolve
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import AdversarialPhase, Bucket, ParallelLayout, node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.validation import check, parse_run
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.lora.layers import LoraConfig, layers_to_adapt
from videotrain_trainer.parallel.activation import transformer_blocks
from videotrain_trainer.tasks.sample_plan import frame_size
from videotrain_trainer.training.stage_check import check_stage

ROOT = Path(__file__).parents[4]
EXAMPLES = sorted((ROOT / "manifests/examples").glob("*.yaml"))
GOOD = yaml.safe_load((ROOT / "tests/unit/videotrain_api/good.yaml").read_text())


def worlds(run: VideoTrainingRun, index: int) -> list[int]:
    counts = node_counts(node_bounds(run, run.spec.stages[index]))
    return [count * run.spec.pool.gpus_per_node for count in counts]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_trainer_takes_every_stage_of_every_example_in_every_world(path):
    run = parse_run(yaml.safe_load(path.read_text()))
    for index, config in enumerate(resolve(run)):
        stage = config.stage
        for processes in worlds(run, index) if stage.train or stage.autoencoder else []:
            check_stage(config, processes)
        if stage.train:
            with torch.device("meta"):
                model = build_transformer(config.model, config.autoencoder, config.text_encoder)
            transformer_blocks(model, stage.train.parallel)
        if stage.sample:
            assert frame_size(config)


def drawn(spec: dict[str, Any], values: dict[str, Any]) -> None:
    """Fields of the train stage and of the nodes, by their names on the wire."""
    task = spec["stages"][3]["train"]
    task["precision"] = values.pop("precision")
    if values.pop("lora"):
        task["lora"] = {"rank": 2}
        spec["model"]["weights"] = "s3://weights/model.safetensors"
    spec["nodes"] = {"min": 1, "max": values.pop("nodes")}
    spec["stages"][1]["autoencoder"]["parallel"] = {"microBatchesPerStep": 2 * spec["nodes"]["max"]}
    task["parallel"] = values


@given(
    st.fixed_dictionaries(
        {
            "precision": st.sampled_from(["bf16", "fp32"]),
            "lora": st.booleans(),
            "nodes": st.integers(1, 4),
            "engine": st.sampled_from(["deepspeed", "fsdp2"]),
            "zeroStage": st.integers(0, 3),
            "offload": st.sampled_from(["none", "optimizer"]),
            "contextParallel": st.sampled_from([1, 2, 4]),
            "microBatchesPerStep": st.integers(1, 26),
        }
    )
)
def test_the_rules_and_the_trainer_agree_on_every_layout(values):
    manifest = copy.deepcopy(GOOD)
    drawn(manifest["spec"], dict(values))
    run = VideoTrainingRun.model_validate(manifest)
    config = resolve(run)[3]
    assert bool(check(run)) == any(refused(config, processes) for processes in worlds(run, 3))


def refused(config: StageConfig, processes: int) -> bool:
    try:
        check_stage(config, processes)
    except ConfigError:
        return True
    return False


def train_config(**fields: Any) -> StageConfig:
    config = resolve(parse_run(GOOD))[3]
    task = config.stage.train.model_copy(update=fields)
    return config.model_copy(update={"stage": config.stage.model_copy(update={"train": task})})


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ParallelLayout(micro_batches_per_step=3), "microBatchesPerStep: 3: cannot occupy 4 data-parallel groups"),
        (ParallelLayout(micro_batches_per_step=4, context_parallel=3), "contextParallel: 3: must divide the 4 worker"),
        (ParallelLayout(micro_batches_per_step=4, zero_stage=0), "zeroStage: 0: stage 0 keeps no float32 master"),
    ],
)
def test_a_layout_that_the_trainer_or_the_world_cannot_run_is_refused(layout, message):
    with pytest.raises(ConfigError, match=rf"^train\.parallel\.{message}"):
        check_stage(train_config(parallel=layout), 4)


def test_every_problem_of_an_autoencoder_stage_is_told():
    config = resolve(parse_run(GOOD))[1]
    task = config.stage.autoencoder.model_copy(
        update={
            "bucket": Bucket(resolution="64px", frames=4, batch_size=1),
            "parallel": ParallelLayout(micro_batches_per_step=4, zero_stage=2, context_parallel=2),
            "adversarial": AdversarialPhase(),
        }
    )
    stage = config.stage.model_copy(update={"autoencoder": task})
    autoencoder = config.autoencoder.model_copy(update={"kind": "hunyuan-vae"})
    with pytest.raises(ConfigError) as caught:
        check_stage(config.model_copy(update={"stage": stage, "autoencoder": autoencoder}), 4)
    for part in ("contextParallel: 2", "zeroStage: 2", "bucket.frames: 4", "'hunyuan-vae' cannot be trained"):
        assert part in str(caught.value)


@pytest.mark.parametrize("preset", ["mmdit-tiny", "mmdit-11b", "mmdit-11b-dcae"])
def test_the_table_names_the_linear_layers_of_the_model(preset):
    spec = TRANSFORMERS[preset]
    with torch.device("meta"):
        model = build_transformer(spec, AUTOENCODERS["hunyuan-vae"], TextEncoderSpec(kind="t5-clip", weights="s3://w"))
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    assert sorted(capabilities.linear_layers(spec)) == sorted(layers)
    for target in capabilities.LINEAR_LAYERS["double_blocks"]:
        assert layers_to_adapt(model, LoraConfig(rank=2, alpha=2, targets=(target,)))
