from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import Batch, Key, training_inputs

from videotrain_api.resource.stages import Bucket, ConditioningMix, LearningRatePiece, Optimizer, TrainTask
from videotrain_trainer.diffusion.conditioning import KINDS, applicable, choose
from videotrain_trainer.diffusion.flow_matching import (
    ModelFacts,
    check_task,
    flow_loss,
    null_context,
    sample_generator,
)
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.text.byte_encoder import TextFeatures

pytestmark = pytest.mark.numeric

FACTS = ModelFacts(patch=1, cond_embed=True, guidance_embed=False, causal=False)
NULL = TextFeatures(context_BLD=torch.full((1, 6, 8), -7.0), pooled_BP=torch.full((1, 5), -7.0), lengths=[1])
MIX = ConditioningMix(t2v=1, i2v_head=5, i2v_loop=1, i2v_tail=1)


def batch_of(count, frames=3, bucket="64px/12f/1:1", start=0):
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return Batch(
        latent_BCTHW=normal(count, 4, frames, 2, 3),
        cond_first_BC1HW=normal(count, 4, 1, 2, 3),
        cond_last_BC1HW=normal(count, 4, 1, 2, 3),
        context_BLD=normal(count, 6, 8),
        pooled_BP=normal(count, 5),
        keys=[Key(bucket, start + index) for index in range(count)],
    )


def task_of(mix=MIX, dropout=0.3):
    return TrainTask(
        steps=1,
        buckets=[Bucket(resolution="64px", frames=12, batch_size=1)],
        optimizer=Optimizer(learning_rate=[LearningRatePiece(value=1e-3)]),
        conditioning=mix,
        text_dropout=dropout,
    )


def tensors_of(inputs):
    return inputs.arguments() | {"target": inputs.target_BNI}


@settings(max_examples=25)
@given(st.permutations(range(6)), st.integers(1, 5))
def test_a_sample_has_the_same_numbers_however_its_batch_is_cut_and_ordered(order, cut):
    batch = batch_of(6)
    whole = training_inputs(batch, task_of(), FACTS, NULL, seed=11)
    for rows in (list(order[:cut]), list(order[cut:])):
        part = training_inputs(batch.part(rows), task_of(), FACTS, NULL, seed=11)
        assert part.kinds == [whole.kinds[row] for row in rows]
        for name, value in tensors_of(part).items():
            assert torch.equal(value, tensors_of(whole)[name][rows]), name


def test_the_global_generators_have_no_influence_and_the_seed_has():
    torch.manual_seed(1)
    first = training_inputs(batch_of(2), task_of(), FACTS, NULL, seed=1)
    torch.manual_seed(2)
    again = training_inputs(batch_of(2), task_of(), FACTS, NULL, seed=1)
    other = training_inputs(batch_of(2), task_of(), FACTS, NULL, seed=2)
    assert torch.equal(first.x_t_BNI, again.x_t_BNI)
    assert not torch.equal(first.timesteps_B, other.timesteps_B)
    assert not torch.equal(first.target_BNI, other.target_BNI)


def test_seed_bucket_and_position_each_give_other_random_numbers():
    draws = {sample_generator(*key).random() for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))}
    assert len(draws) == 4
    assert sample_generator(1, "a", 0).random() in draws


def test_text_and_pooled_feature_are_dropped_independently_and_about_as_often_as_asked():
    batch = batch_of(4000, frames=1)
    inputs = training_inputs(batch, task_of(dropout=0.31622777), FACTS, NULL, seed=3)
    no_context = (inputs.txt_BLD == -7.0).all(dim=(1, 2))
    no_pooled = (inputs.pooled_BP == -7.0).all(dim=1)
    assert no_context.float().mean().item() == pytest.approx(0.316, abs=0.025)
    assert no_pooled.float().mean().item() == pytest.approx(0.316, abs=0.025)
    assert (no_context & no_pooled).float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert torch.equal(inputs.txt_BLD[~no_context], batch.context_BLD[~no_context])


def test_kinds_follow_the_weights_and_pictures_are_never_conditioned():
    inputs = training_inputs(batch_of(4000), task_of(), FACTS, NULL, seed=3)
    shares = {kind: inputs.kinds.count(kind) / 4000 for kind in KINDS}
    expected = {"t2v": 1 / 8, "i2v_head": 5 / 8, "i2v_loop": 1 / 8, "i2v_tail": 1 / 8}
    assert shares == pytest.approx(dict.fromkeys(KINDS, 0) | expected, abs=0.025)
    pictures = training_inputs(batch_of(50, frames=1), task_of(), FACTS, NULL, seed=3)
    assert set(pictures.kinds) == {"t2v"}
    assert not pictures.cond_BNE.any()


WEIGHTS = st.lists(st.floats(0, 5), min_size=len(KINDS), max_size=len(KINDS))


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 20), WEIGHTS, st.booleans())
def test_only_kinds_with_weight_that_apply_to_the_clip_are_chosen(draw, frames, weights, causal):
    mix = ConditioningMix(**dict(zip(KINDS, weights, strict=True)))
    kind = choose(mix, frames, draw, causal)
    possible = {name for name in KINDS if applicable(name, frames, causal) and getattr(mix, name) > 0}
    assert kind in (possible or {"t2v"})


def test_condition_tokens_show_the_separately_encoded_frame_at_its_place():
    batch = batch_of(1)
    inputs = training_inputs(batch, task_of(ConditioningMix(t2v=0, i2v_tail=1)), FACTS, NULL, seed=1)
    tokens = inputs.cond_BNE[0].reshape(3, 2, 3, 5)
    assert not tokens[:2].any()
    assert (tokens[2, ..., 0] == 1).all()
    assert torch.equal(tokens[2, ..., 1:].permute(2, 0, 1), batch.cond_last_BC1HW[0, :, 0])


def test_prediction_of_noise_minus_data_has_no_loss():
    inputs = training_inputs(batch_of(2), task_of(), FACTS, NULL, seed=1)
    assert flow_loss(inputs.target_BNI.clone(), inputs) == 0
    assert flow_loss((inputs.target_BNI + 1).bfloat16(), inputs).dtype == torch.float32


def test_the_null_caption_fits_any_padding():
    assert null_context(NULL, 4).shape == (1, 4, 8)
    longer = null_context(NULL, 9)
    assert torch.equal(longer[:, :6], NULL.context_BLD)
    assert not longer[:, 6:].any()


def test_what_model_or_autoencoder_cannot_do_is_refused_with_its_field():
    with pytest.raises(ConfigError, match=r"train.conditioning: .*i2v_head.* spec.model.condEmbed"):
        check_task(task_of(), replace(FACTS, cond_embed=False))
    with pytest.raises(ConfigError, match=r"spec\.model\.guidanceEmbed"):
        check_task(task_of(), replace(FACTS, guidance_embed=True))
    check_task(task_of(ConditioningMix(t2v=1)), replace(FACTS, cond_embed=False, causal=True))
