"""First weights in worlds of any size: read by fragments, verified together, equal to those of one process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.checkpoint_worlds import FakeState, ThreadPeers
from support.training_worlds import (
    LEARNING_RATE,
    difference,
    final_weights,
    run_world,
    train_config,
)

from videotrain_api.config.stage_config import StagePaths
from videotrain_api.resource.stages import LoraAdapter, ParallelLayout
from videotrain_trainer.errors import DamagedObject
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.initial import initial_fragments, initial_value, write_initial
from videotrain_trainer.networks.weights import Destination, open_weights, starting_fragments
from videotrain_trainer.training.first_weights import fill_first_weights

ROUNDING = 1e-3 * LEARNING_RATE
"""As in test_worlds_agree."""


def model(config):
    with torch.device("meta"):
        return build_transformer(config.model, config.autoencoder, config.text_encoder)


def published(folder, config, layout="open-sora-v2", sealed=False):
    path = folder / f"{layout}.safetensors"
    write_initial(model(config), 5, Destination(target=path, sealed=sealed), layout, torch.float32)
    return path


def fill(module, path, ranks, quantities=("master", "exp_avg", "exp_avg_sq", "ema")):
    """The states of ranks that are threads."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    board, barrier = [None] * ranks, threading.Barrier(ranks)
    states = [FakeState(rank, ranks, shapes) for rank in range(ranks)]

    def one(rank):
        found = starting_fragments(module, open_weights(path), initial_fragments(module, 9))
        fill_first_weights(found, states[rank], ThreadPeers(rank, ranks, board, barrier))

    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(one, range(ranks)))
    return states


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_hold_the_parts_of_the_file_that_are_theirs(tmp_path, latents, ranks, sealed):
    config = train_config(tmp_path, latents)
    module = model(config)
    for state in fill(module, published(tmp_path, config, sealed=sealed), ranks):
        for piece in state.held:
            expected = initial_value(module, piece.parameter, 5).view(-1)[piece.start : piece.start + piece.length]
            for quantity in ("master", "ema"):
                found = state.written[quantity][piece.offset : piece.offset + piece.length]
                assert torch.equal(found, expected), piece


def test_a_flipped_bit_in_a_tensor_that_no_rank_reads_alone_is_found(tmp_path, latents):
    config = train_config(tmp_path, latents)
    path = published(tmp_path, config, sealed=True)
    weights = open_weights(path)
    info = next(file.infos[name] for name, file in weights.files.items() if name == "double_blocks.0.img_mlp.0.weight")
    data = bytearray(path.read_bytes())
    data[info.offset + info.length // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedObject, match=r"double_blocks\.0\.img_mlp\.0\.weight.* checksum"):
        fill(model(config), path, 7)


@pytest.mark.numeric
def test_worlds_that_start_from_a_published_file_learn_the_same_under_both_engines(tmp_path, latents):
    layouts = [
        (1, "open-sora-v2", ParallelLayout(micro_batches_per_step=4)),
        (2, "flux-dev", ParallelLayout(micro_batches_per_step=4, zero_stage=3)),
        (2, "diffusers", ParallelLayout(micro_batches_per_step=4, engine="fsdp2")),
    ]
    results = []
    for number, (size, layout, parallel) in enumerate(layouts):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = train_config(folder, latents, steps=2, parallel=parallel)
        model4 = config.model.model_copy(update={"mlp_ratio": 4.0})  # the one ratio that diffusers has
        config = config.model_copy(update={"model": model4})
        paths = StagePaths(**config.paths.model_dump() | {"initial_weights": str(published(tmp_path, config, layout))})
        result = run_world(folder, config.model_copy(update={"paths": paths}), size)
        assert result.outcomes == ["completed"] * size, result.outcomes
        results.append(final_weights(folder))
    assert difference(results[0], results[1]) < ROUNDING
    assert difference(results[0], results[2]) < ROUNDING


@pytest.mark.numeric
def test_an_adapter_learns_the_same_in_any_world_on_a_base_without_default_values(tmp_path, latents):
    results = []
    for size, parallel in (
        (1, ParallelLayout(micro_batches_per_step=4)),
        (2, ParallelLayout(micro_batches_per_step=4, engine="fsdp2")),
        (2, ParallelLayout(micro_batches_per_step=4, zero_stage=2)),
    ):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        adapter = LoraAdapter(rank=2)
        config = train_config(folder, latents, steps=2, parallel=parallel, lora=adapter, ema_decay=None)
        paths = StagePaths(**config.paths.model_dump() | {"initial_weights": str(published(tmp_path, config))})
        result = run_world(folder, config.model_copy(update={"paths": paths}), size)
        assert result.outcomes == ["completed"] * size, result.outcomes
        results.append(final_weights(folder))
    assert max(difference(results[0], other) for other in results[1:]) < ROUNDING
