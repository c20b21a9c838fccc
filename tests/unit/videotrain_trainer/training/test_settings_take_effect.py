"""A setting is refused or it changes what a stage sets up, beside every value of every other setting."""

from __future__ import annotations

import copy
from functools import cache
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from videotrain_api.config.resolve import resolve
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.stages import ulysses_degree
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.validation import check
from videotrain_trainer.data.stage_samples import _Choice
from videotrain_trainer.networks.attention_kernels import KERNELS
from videotrain_trainer.networks.build import build_autoencoder, build_transformer
from videotrain_trainer.networks.fp8 import use_fp8
from videotrain_trainer.networks.lora.base import adapt
from videotrain_trainer.parallel import fsdp
from videotrain_trainer.parallel.activation import autoencoder_blocks, transformer_blocks
from videotrain_trainer.parallel.blocks import blocks_of
from videotrain_trainer.parallel.engine import EngineOptions, engine_options
from videotrain_trainer.parallel.zero import engine_config
from videotrain_trainer.training.stage_check import check_stage
from videotrain_trainer.worker.stage_context import World

GOOD = yaml.safe_load((Path(__file__).parents[2] / "videotrain_api/good.yaml").read_text())
WORLD = World(rank=0, size=8, local_rank=0, device=torch.device("cpu"))
LAYOUT: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("parallel", "engine"): ("deepspeed", "fsdp2"),
    ("parallel", "zeroStage"): (0, 1, 2, 3),
    ("parallel", "offload"): ("none", "optimizer"),
    ("parallel", "recompute"): ("none", "selective", "full"),
    ("precision",): ("bf16", "fp32"),
}
SETTINGS: dict[str, dict[tuple[str, ...], tuple[Any, ...]]] = {
    "autoencoder": {**LAYOUT, ("adversarial",): (None, {})},
    "train": {
        **LAYOUT,
        ("parallel", "contextParallel"): (1, 2, 4, 8),  # 8 of 4 heads take a ring
        ("parallel", "checkpointDoubleBlocks"): (None, 1),
        ("fp8",): (False, True),
        ("lora",): (None, {"rank": 2}, {"rank": 2, "quantizeBase": "int8"}, {"rank": 2, "quantizeBase": "fp8"}),
        ("compile",): ("off", "on"),
        ("attention",): ("flash", "cudnn", "math"),
        ("attendPadding",): (True, False),
    },
}
INDEX = {"autoencoder": 1, "train": 3}
PAIRS = [(task, *pair) for task, settings in SETTINGS.items() for pair in permutations(settings, 2)]


class _Recorded(Exception):
    """What would have been given to `fully_shard`."""


def engine_of(module: nn.Module, options: EngineOptions, patch: pytest.MonkeyPatch) -> str:
    """What the engine is configured with."""
    if options.engine == "deepspeed":
        return str((options.dtype, options.keep_average, engine_config(options, 1000, WORLD)))

    def record(_part: nn.Module, **arguments: Any) -> None:
        raise _Recorded({name: arguments[name] for name in ("mp_policy", "offload_policy")})

    patch.setattr(fsdp, "init_device_mesh", lambda *_: None)
    patch.setattr(fsdp, "fully_shard", record)
    with pytest.raises(_Recorded) as recorded:
        fsdp._sharded(module, options, WORLD)
    return str((options.keep_average, recorded.value))


def set_up(config: StageConfig, patch: pytest.MonkeyPatch) -> str:
    """What a stage sets up, in words that differ where it does."""
    stage = config.stage
    task = stage.train or stage.autoencoder
    assert task
    found: list[Any] = []
    with torch.device("meta"):
        if stage.train:
            module = build_transformer(config.model, config.autoencoder, config.text_encoder)
        else:
            module = build_autoencoder(config.autoencoder)
    if stage.train:
        if stage.train.lora:
            adapt(module, stage.train.lora)
        if stage.train.fp8:
            use_fp8(module)
        blocks = transformer_blocks(module, stage.train.parallel, stage.train.compile == "on")
        blocks.recompute(stage.train.parallel.recompute)
        degree, heads = stage.train.parallel.context_parallel, config.model.num_heads
        captions = SimpleNamespace(info=SimpleNamespace(text_tokens=(7, 7)))
        found += [degree, ulysses_degree(degree, config.gpus_per_node, heads), KERNELS.get(stage.train.attention)]
        found += [_Choice._classes(SimpleNamespace(task=stage.train, longest=512), captions)]
    else:
        autoencoder_blocks(module).recompute(task.parallel.recompute)
        found += [stage.autoencoder.adversarial]
    # What a policy puts in the place of a block's forward pass.
    found += [(block.forward.func, [x for x in block.forward.args if x is not block]) for block in blocks_of(module)]
    found += [(n, type(part).__name__, getattr(part, "quantization", None)) for n, part in module.named_modules()]
    found += [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return str([*found, engine_of(module, engine_options(task), patch)])


@cache
def effect(task: str, values: tuple[tuple[tuple[str, ...], str], ...]) -> str | None:
    """What is set up with those values, as YAML; None if they are refused."""
    manifest = copy.deepcopy(GOOD)
    manifest["spec"]["pool"]["gpusPerNode"] = 4
    fields = manifest["spec"]["stages"][INDEX[task]][task]
    fields["parallel"]["microBatchesPerStep"] = 8
    if ("lora",) in [field for field, _ in values]:
        manifest["spec"]["model"]["weights"] = "s3://weights/model.safetensors"
    for (*owners, name), text in values:
        value = yaml.safe_load(text)
        target = fields
        for owner in owners:
            target = target[owner]
        target |= {} if value is None else {name: value}
    run = VideoTrainingRun.model_validate(manifest)
    if check(run, fitting=False):
        return None
    config = resolve(run)[INDEX[task]]
    check_stage(config, 8)
    with pytest.MonkeyPatch.context() as patch:
        return set_up(config, patch)


@pytest.mark.parametrize(
    ("task", "beside", "changed"), PAIRS, ids=lambda part: part if isinstance(part, str) else part[-1]
)
def test_every_value_is_refused_or_makes_a_difference(task, beside, changed):
    for given in SETTINGS[task][beside]:
        found = [
            effect(task, tuple(sorted({beside: yaml.safe_dump(given), changed: yaml.safe_dump(value)}.items())))
            for value in SETTINGS[task][changed]
        ]
        taken = [effects for effects in found if effects is not None]
        assert len(set(taken)) == len(taken), f"{changed} is ignored beside {beside} {given}"
