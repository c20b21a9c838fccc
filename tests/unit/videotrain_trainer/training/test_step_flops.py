"""Three ways of counting the work of a micro-batch."""

from __future__ import annotations

import pytest

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS, complete_autoencoder, complete_transformer
from videotrain_api.cost.flops import (
    attention_flops,
    forward_flops,
    mmdit_shape,
    recomputed_blocks,
    recomputed_flops,
    train_flops,
)
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.training.step_flops import MicroBatchWork, autoencoder_work, together, transformer_work

TEXT = TextEncoderSpec(context_dim=4096, pooled_dim=768, max_tokens=512)
SHAPE = mmdit_shape(
    complete_transformer(TRANSFORMERS["mmdit-11b"]), complete_autoencoder(AUTOENCODERS["hunyuan-vae"]), TEXT
)
LATENT = (2, 16, 9, 32, 32)
IMAGE = 9 * 16 * 16


def work(captions, recomputed=(0, 0)):
    return transformer_work(SHAPE, LATENT, 2, 512, captions, recomputed)


def test_without_recomputation_and_padding_all_three_are_the_model_flops():
    found = work([512, 512])
    assert found.model_flops == found.hardware_flops == found.useful_flops == 2 * train_flops(SHAPE, IMAGE, 512)


def test_all_blocks_again_are_about_a_third_more_and_some_are_their_share():
    whole = work([512, 512], (SHAPE.double_blocks, SHAPE.single_blocks))
    again = whole.hardware_flops - whole.model_flops
    # The blocks are the forward pass but for its edges.
    assert 0.98 * 2 * forward_flops(SHAPE, IMAGE, 512) < again < 2 * forward_flops(SHAPE, IMAGE, 512)
    parts = [
        recomputed_flops(SHAPE, IMAGE + 512, *blocks) for blocks in ((SHAPE.double_blocks, 0), (0, SHAPE.single_blocks))
    ]
    assert again == 2 * sum(parts)
    assert sum(parts) > attention_flops(SHAPE, IMAGE + 512)


def test_padded_text_is_no_useful_work():
    found = work([100, 512])
    assert found.useful_flops == train_flops(SHAPE, IMAGE, 100) + train_flops(SHAPE, IMAGE, 512)
    assert found.useful_flops < found.model_flops == found.hardware_flops


def test_full_recomputation_is_for_all_blocks_unless_it_is_limited():
    assert recomputed_blocks(SHAPE, ParallelLayout()) == (19, 38)
    assert recomputed_blocks(SHAPE, ParallelLayout(checkpoint_double_blocks=8, checkpoint_single_blocks=0)) == (8, 0)


def test_an_autoencoder_that_recomputes_does_its_forward_pass_twice():
    spec = complete_autoencoder(AUTOENCODERS["dc-ae-tiny"])
    plain, again = (autoencoder_work(spec, (1, 3, 8, 64, 64), recompute=flag) for flag in (False, True))
    assert plain.hardware_flops == plain.model_flops == again.model_flops
    assert again.hardware_flops == pytest.approx(plain.model_flops * 4 / 3)


def test_the_work_of_micro_batches_adds_up_and_none_is_no_work():
    one = MicroBatchWork(1, 2, 3.0, 4.0, 5.0)
    assert together([one, one]) == MicroBatchWork(2, 4, 6.0, 8.0, 10.0)
    assert together([]) == MicroBatchWork(0, 0, 0.0, 0.0, 0.0)
