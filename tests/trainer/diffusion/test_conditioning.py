"""What samples are given: every kind, both kinds of autoencoder, and nothing that one sample leaves to the next."""

import pytest
import torch
from support.batches import Batch, Key, training_inputs, validation_inputs

from videotrain_api.resource.autoencoder_kinds import TimeAxis
from videotrain_api.resource.references import applicable, reference_frames, reference_latents, takes_head, takes_tail
from videotrain_api.resource.stages import Bucket, ConditioningMix, LearningRatePiece, Optimizer, TrainTask
from videotrain_trainer.diffusion.conditioning import (
    KINDS,
    Given,
    References,
    choose,
    condition_of,
    given_frames,
    pack_condition,
)
from videotrain_trainer.diffusion.flow_matching import (
    ModelFacts,
    flow_loss,
    sample_losses,
)
from videotrain_trainer.diffusion.sampler import Guidance, Sampler, TextPair
from videotrain_trainer.errors import DataError
from videotrain_trainer.text.byte_encoder import TextFeatures

pytestmark = pytest.mark.numeric

PUBLISHED = ConditioningMix(t2v=1, i2v_head=5, i2v_loop=1, i2v_tail=1)
NULL = TextFeatures(context_BLD=torch.zeros(1, 6, 8), pooled_BP=torch.zeros(1, 5), lengths=[1])


def batch_of(count, frames, bucket="a", **changes):
    generator = torch.Generator().manual_seed(5)
    fields = {
        "latent_BCTHW": torch.randn(count, 4, frames, 2, 4, generator=generator),
        "cond_first_BC1HW": torch.randn(count, 4, 1, 2, 4, generator=generator),
        "cond_last_BC1HW": torch.randn(count, 4, 1, 2, 4, generator=generator),
        "context_BLD": torch.randn(count, 6, 8, generator=generator),
        "pooled_BP": torch.randn(count, 5, generator=generator),
        "keys": [Key(bucket, index) for index in range(count)],
    }
    return Batch(**(fields | changes))


def task_of(mix, **changes):
    fields = {"steps": 1, "buckets": [Bucket(resolution="64px", frames=12, batch_size=1)], "conditioning": mix}
    optimizer = Optimizer(learning_rate=[LearningRatePiece(value=1e-3)])
    return TrainTask(**(fields | {"optimizer": optimizer} | changes))


def facts(patch=1, causal=False):
    return ModelFacts(patch=patch, cond_embed=True, guidance_embed=False, causal=causal)


def test_the_easy_kinds_and_the_causal_autoencoder_give_the_published_numbers_of_frames():
    frames = {
        kind: tuple(reference_frames(kind, TimeAxis(4, causality)) for causality in ("none", "causal"))
        for kind in KINDS
    }
    assert frames == {
        "t2v": (0, 0),
        "i2v_head": (1, 1),
        "i2v_tail": (1, 1),
        "i2v_loop": (1, 1),
        "v2v_head": (32, 33),
        "v2v_tail": (32, 33),
        "v2v_head_easy": (64, 65),
        "v2v_tail_easy": (64, 65),
    }
    latents = [reference_latents("v2v_head", causal) for causal in (False, True)]
    assert latents + [reference_latents("v2v_tail_easy", causal) for causal in (False, True)] == [8, 9, 16, 17]


@pytest.mark.parametrize("case", ["v2v_head_noncausal", "v2v_tail_easy_noncausal"])
def test_training_copies_v2v_frames_from_a_clip_that_is_not_causal(case, fixture):
    found = fixture("conditions")
    entry = next(entry for entry in found.facts["cases"] if entry["name"] == case)
    mask = found[f"{case}.mask"][0]
    clip = torch.randn(entry["latent_shape"][1:])
    references = References(clip_CTHW=clip, first_C1HW=clip[:, :1], last_C1HW=clip[:, -1:], videos={})
    given = given_frames(entry["cond_type"], references, causal=False)
    found_mask, latent = condition_of(tuple(clip.shape), given)
    assert torch.equal(found_mask, mask)
    assert torch.equal(latent, clip * mask)


@pytest.mark.parametrize("case", ["v2v_head", "v2v_tail", "v2v_head_easy", "v2v_tail_easy"])
def test_training_gives_a_causal_model_the_separately_encoded_frames(case, fixture):
    found = fixture("conditions")
    shape = next(entry for entry in found.facts["cases"] if entry["name"] == case)["latent_shape"]
    reference = found[f"{case}.ref.0.0"]
    batch = batch_of(
        1,
        shape[2],
        latent_BCTHW=torch.randn(shape),
        cond_first_BC1HW=torch.zeros(1, 3, 1, *shape[3:]),
        cond_last_BC1HW=torch.zeros(1, 3, 1, *shape[3:]),
        references_BCFHW={case: reference[None]},
    )
    mix = ConditioningMix(**{"t2v": 0, case: 1})
    inputs = training_inputs(batch, task_of(mix), facts(patch=2, causal=True), NULL, seed=1)
    assert inputs.kinds == [case]
    assert torch.equal(inputs.cond_BNE, found[f"{case}.packed"])
    assert torch.equal(inputs.given_BT[0], found[f"{case}.mask"][0, 0, :, 0, 0] > 0)


def test_a_set_without_the_frames_of_a_kind_is_refused_by_name():
    mix = ConditioningMix(t2v=0, v2v_head=1)
    with pytest.raises(DataError, match="no separately encoded frames for v2v_head"):
        training_inputs(batch_of(1, 12), task_of(mix), facts(causal=True), NULL, seed=1)


def test_every_kind_gives_the_end_that_its_name_says():
    assert [kind for kind in KINDS if takes_head(kind)] == ["i2v_head", "i2v_loop", "v2v_head", "v2v_head_easy"]
    assert [kind for kind in KINDS if takes_tail(kind)] == ["i2v_tail", "i2v_loop", "v2v_tail", "v2v_tail_easy"]


def test_the_published_mix_gives_five_of_eight_their_first_frame_and_one_of_eight_nothing():
    draws = [(index + 0.5) / 800 for index in range(800)]
    kinds = [choose(PUBLISHED, 33, draw, causal=True) for draw in draws]
    shares = {kind: kinds.count(kind) / 800 for kind in KINDS if kind in kinds}
    assert shares == {"t2v": 1 / 8, "i2v_head": 5 / 8, "i2v_tail": 1 / 8, "i2v_loop": 1 / 8}


def test_a_short_clip_leaves_the_video_kinds_to_the_long_ones_after_it():
    mix = ConditioningMix(t2v=0, v2v_head=1)
    wire = mix.to_wire()
    order = [(8, "t2v"), (9, "v2v_head"), (1, "t2v"), (9, "v2v_head")]
    assert [choose(mix, frames, 0.5, causal=False) for frames, _ in order] == [kind for _, kind in order]
    assert [choose(mix, frames, 0.5, causal=True) for frames in (9, 10)] == ["t2v", "v2v_head"]
    assert mix.to_wire() == wire
    assert not applicable("v2v_tail_easy", 16, causal=False)
    assert applicable("v2v_tail_easy", 17, causal=False)


def test_given_end_frames_are_left_out_of_the_loss_when_asked(fixture):
    found = fixture("training")
    masks = found["frame_loss.masks"]
    given = masks[:, :, 0, 0] > 0
    batch = batch_of(2, 3)
    inputs = training_inputs(batch, task_of(ConditioningMix()), facts(), NULL, seed=1)
    changed = type(inputs)(**(vars(inputs) | {"target_BNI": found["target"], "given_BT": given}))
    found.check("frame_loss.out", flow_loss(found["canned_pred"], changed, skip_given=True)[None])
    found.check("canned_loss", flow_loss(found["canned_pred"], changed)[None])


def test_a_given_frame_does_not_move_the_loss_and_a_video_reference_does():
    mix = ConditioningMix(t2v=0, i2v_head=1)
    inputs = training_inputs(batch_of(1, 3), task_of(mix), facts(), NULL, seed=1)
    wrong = inputs.target_BNI.clone()
    wrong[:, :8] += 5.0  # the tokens of the first frame
    assert flow_loss(wrong, inputs, skip_given=True) == 0
    assert flow_loss(wrong, inputs) > 1
    video = training_inputs(batch_of(1, 12), task_of(ConditioningMix(t2v=0, v2v_head=1)), facts(), NULL, seed=1)
    wrong = video.target_BNI.clone()
    wrong[:, :8] += 5.0
    assert flow_loss(wrong, video, skip_given=True) > 1


def test_items_count_equally_in_the_frame_loss_however_many_frames_they_count():
    prediction, target = torch.zeros(2, 4, 1), torch.tensor([[1.0], [1.0], [1.0], [1.0]]).repeat(2, 1, 1)
    target[1] *= 2.0
    counted = torch.tensor([[True, True, True, True], [False, True, True, False]])
    assert sample_losses(prediction, target, counted).tolist() == [1.0, 4.0]
    assert sample_losses(prediction, target, torch.zeros(2, 4, dtype=torch.bool)).tolist() == [0.0, 0.0]


def test_validation_asks_the_same_of_a_sample_whatever_the_seed_or_batch():
    batch, mix = batch_of(4, 3), PUBLISHED
    whole = validation_inputs(batch, task_of(mix), facts(), 0.5)
    parts = [
        validation_inputs(
            Batch(**{k: (v[row : row + 1] if k != "references_BCFHW" else {}) for k, v in vars(batch).items()}),
            task_of(mix, text_dropout=0.9),
            facts(),
            0.5,
        )
        for row in range(4)
    ]
    for row, part in enumerate(parts):
        assert torch.equal(part.x_t_BNI[0], whole.x_t_BNI[row])
        assert torch.equal(part.txt_BLD[0], batch.context_BLD[row])  # dropout never applies
        assert part.kinds == [whole.kinds[row]]
    assert whole.timesteps_B.unique().numel() == 1
    later = validation_inputs(batch, task_of(mix), facts(), 0.9)
    assert later.timesteps_B[0] > whole.timesteps_B[0]
    assert later.kinds == whole.kinds


def test_training_shifts_the_times_of_a_patch_1_model_as_sampling_does(mmdit):
    """The published code shifts by a quarter of the tokens in training and by all of them in sampling."""
    rows, columns, frames = 8, 16, 9
    batch = batch_of(
        1,
        frames,
        latent_BCTHW=torch.zeros(1, 4, frames, rows, columns),
        cond_first_BC1HW=torch.zeros(1, 4, 1, rows, columns),
        cond_last_BC1HW=torch.zeros(1, 4, 1, rows, columns),
    )
    trained = validation_inputs(batch, task_of(ConditioningMix()), facts(patch=1), 0.5).timesteps_B.item()
    seen = []
    model = mmdit("mmdit_dc_ae").eval()
    model.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw["timesteps_B"][0].item()), with_kwargs=True)
    channels, context, pooled = model.config.in_channels, model.config.context_dim, model.config.pooled_dim
    text = TextPair(
        context_BLD=torch.zeros(1, 2, context),
        pooled_BP=torch.zeros(1, pooled),
        negative_context_BLD=torch.zeros(1, 2, context),
        negative_pooled_BP=torch.zeros(1, pooled),
    )
    sampler = Sampler(model, 2, Guidance(text=1.0, image=1.0))
    sampler.draw(torch.zeros(1, channels, frames, rows, columns), text, "t2v", Given())
    assert trained == pytest.approx(seen[1], rel=8 * torch.finfo().eps)  # one shift in float32, or in float64


def test_a_condition_tensor_has_no_state():
    given = Given(torch.ones(3, 1, 2, 2))
    first = pack_condition(*(part[None] for part in condition_of((3, 3, 2, 2), given)), 1)
    condition_of((3, 1, 2, 2), given)
    assert torch.equal(first, pack_condition(*(part[None] for part in condition_of((3, 3, 2, 2), given)), 1))
