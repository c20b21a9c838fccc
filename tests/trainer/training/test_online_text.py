"""Captions that are encoded beside training: the same numbers, samples and order as with stored features."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from support.noise_clips import READERS, curate_noise, encode_config, encode_rank, first_autoencoder
from support.text_encoders import save_clip, save_t5
from support.training_worlds import Plan, commit_of, final_weights, run_world, store, train_config, trained_ids

from videotrain_api.config.stage_config import HeldOut
from videotrain_api.records import EvaluationRecord, ValidationRecord
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.evaluation import EvaluateTask
from videotrain_api.resource.stages import ParallelLayout, Stage, Validation
from videotrain_trainer.data.append import append
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.sets import null_text_uri, open_latents, read_set_info
from videotrain_trainer.errors import DataError
from videotrain_trainer.tasks.train import null_text
from videotrain_trainer.text.encoders import open_text_encoder
from videotrain_trainer.text.stored import OnlineText, null_features

BYTES = TextEncoderSpec(max_tokens=48, context_dim=16, pooled_dim=8)
KINDS = ["bytes", "padded", "trimmed"]
CPU = torch.device("cpu")
SPEC = Validation(every_steps=4, share=0.3, max_samples=2, times=2)


def encoded(folder, text, readers, output="encode"):
    """An encode stage's configuration, of which the set is made."""
    config = encode_config(folder.as_uri(), output)
    config = config.model_copy(update={"text_encoder": text, "latent_readers": readers})
    encode_rank(config, folder / f"scratch-{output}", 0, 1, 1, lapse=60.0)
    return config


def readers(*forms):
    return [reader.model_copy(update={"text": form}) for reader in READERS for form in forms]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """A set with features and with captions, by a tiny text encoder of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    text = BYTES
    if request.param != "bytes":
        for name, save in (("t5", save_t5), ("clip", save_clip)):
            save(folder / "text" / name)[1].save_pretrained(folder / "text" / name)
        fields = {"kind": "t5-clip", "context_dim": 32, "pooled_dim": 24, "max_tokens": 16}
        fields |= {"weights": str(folder / "text"), "trim_padding": request.param == "trimmed"}
        text = TextEncoderSpec(**fields)
    first_autoencoder(store(), encode_config(folder.as_uri(), "encode"))
    curate_noise(store(), f"{folder.as_uri()}/clips", folder, 6)
    return encoded(folder, text, readers("stored", "online"))


def config_of(folder, made, form, **changes):
    """A stage that trains on the set, with samples of both sizes."""
    layout = ParallelLayout(micro_batches_per_step=2)
    rows = [row.model_copy(update={"batch_size": 2}) for row in READERS[0].buckets[1:]]
    task = {"buckets": rows, "text": form, "parallel": layout} | changes
    found = train_config(folder, made.paths.output, **task)
    parts = {"model": made.model, "autoencoder": made.autoencoder, "text_encoder": made.text_encoder, "seed": 1}
    return found.model_copy(update=parts)


def batches(config, captions=None):
    data = open_latents(store(), config)
    mine = [range(2)] * len(data.plan.buckets)
    loader = LatentLoader(store(), data, data.plan.start(), mine, captions=captions)
    orders = islice(data.plan.walk(data.plan.start()), 8)
    found = [loader.fetch(order, number) for order in orders for number in range(2)]
    loader.close()
    return found


def online_text(config, folder):
    return OnlineText(open_text_encoder(config.text_encoder, store(), folder, CPU), CPU)


@pytest.mark.parametrize("attend", [True, False])
def test_captions_give_the_features_that_were_stored(tmp_path, made, attend):
    stored = batches(config_of(tmp_path, made, "stored", attend_padding=attend))
    config = config_of(tmp_path, made, "online", attend_padding=attend)
    online = batches(config, online_text(config, tmp_path))
    assert len(stored) == len(online) == 16
    for one, other in zip(stored, online, strict=True):
        assert one.keys == other.keys
        assert one.text_tokens == other.text_tokens
        assert torch.equal(one.context_BLD, other.context_BLD)
        assert torch.equal(one.pooled_BP, other.pooled_BP)
        assert torch.equal(one.latent_BCTHW, other.latent_BCTHW)
    assert len({key.uid for batch in online for key in batch.keys}) > 6


def test_the_empty_caption_is_the_one_that_was_stored(tmp_path, made):
    config = config_of(tmp_path, made, "online")
    data = open_latents(store(), config)
    stored, own = null_text(store(), data, made.text_encoder), null_features(online_text(config, tmp_path).encoder)
    assert store().exists(null_text_uri(data.uri))
    assert torch.equal(stored.context_BLD, own.context_BLD)
    assert torch.equal(stored.pooled_BP, own.pooled_BP)


def trained(folder, config, size, plan=None):
    result = run_world(folder, config, size, plan)
    return result, [(step.step, step.loss) for step in result.steps]


@pytest.mark.numeric
def test_a_world_trains_on_captions_as_on_features_and_goes_on_after_it_was_stopped(tmp_path, made):
    """Stopped in the middle, and continued by two ranks: losses differ by how gradients are summed, nothing else."""
    folders = [tmp_path / name for name in ("stored", "online", "stopped")]
    changes = {"steps": 6, "validation": SPEC, "text_dropout": 0.5}
    stored, losses = trained(folders[0], config_of(folders[0], made, "stored", **changes), 1)
    online, same = trained(folders[1], config_of(folders[1], made, "online", **changes), 1)
    assert stored.outcomes == online.outcomes == ["completed"], (stored.outcomes, online.outcomes)
    assert same == losses
    validated = [[(record.step, record.loss) for record in one.of(ValidationRecord)] for one in (stored, online)]
    assert validated[0] == validated[1]
    assert [step for step, _ in validated[0]] == [4, 6]
    config = config_of(folders[2], made, "online", **changes)
    first, before = trained(folders[2], config, 1, Plan(drain_during=3))
    assert first.outcomes == ["drained"], first.outcomes
    second, after = trained(folders[2], config, 2, Plan(generation=2))
    assert second.outcomes == ["completed"] * 2, second.outcomes
    assert [step for step, _ in before + after] == [1, 2, 3, 4, 5, 6]
    assert dict(before + after) == pytest.approx(dict(losses), rel=1e-4)
    ids = [trained_ids(folder, commit_of(folder, 6)) for folder in folders]
    assert ids[0] == ids[1] == ids[2]
    weights = [final_weights(folder) for folder in folders[:2]]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.numeric
def test_ranks_that_share_a_sample_encode_its_caption_alike(tmp_path, made):
    if not made.text_encoder.trim_padding:
        pytest.skip("one kind is enough for what does not depend on it")
    found = []
    for form in ("stored", "online"):
        folder = tmp_path / form
        layout = ParallelLayout(micro_batches_per_step=2, context_parallel=2)
        result, losses = trained(folder, config_of(folder, made, form, steps=3, parallel=layout), 2)
        assert result.outcomes == ["completed"] * 2, result.outcomes
        found.append(losses)
    assert found[0] == found[1]


def test_an_evaluate_stage_asks_held_out_samples_by_their_captions(tmp_path, made):
    if made.text_encoder.kind != "bytes":
        pytest.skip("one kind is enough for what does not depend on it")
    config = config_of(tmp_path, made, "online", steps=4, validation=SPEC, ema_decay=None)
    before, _ = trained(tmp_path, config, 1)
    assert before.outcomes == ["completed"], before.outcomes
    paths = config.paths.model_copy(update={"output": f"{tmp_path.as_uri()}/ask", "model_weights": config.paths.output})
    stage = Stage(name="ask", task="evaluate", evaluate=EvaluateTask(held_out=config.stage.name))
    asking = {"stage": stage, "held_out": HeldOut(stage=config.stage, seed=config.seed), "paths": paths}
    asked = run_world(tmp_path / "ask", config.model_copy(update=asking), 1)
    assert asked.outcomes == ["completed"], asked.outcomes
    (last,) = (record for record in before.of(ValidationRecord) if record.step == 4)
    (told,) = asked.of(EvaluationRecord)
    assert told.measures.validation_loss == pytest.approx(last.loss, rel=1e-4)


def test_a_set_has_what_its_readers_take_and_a_stage_that_needs_more_is_told(tmp_path):
    first_autoencoder(store(), encode_config(tmp_path.as_uri(), "encode"))
    curate_noise(store(), f"{tmp_path.as_uri()}/clips", tmp_path, 2)
    online = encoded(tmp_path, BYTES, readers("online"), "online")
    stored = encoded(tmp_path, BYTES, readers("stored"), "stored")
    infos = [read_set_info(store(), config.paths.output) for config in (online, stored)]
    assert [(info.prompts, info.captions) for info in infos] == [([], ["fps-motion"]), (["fps-motion"], [])]
    with pytest.raises(DataError, match=r"captions for \[\], stage 'small' needs captions for 'fps-motion'; .*text"):
        open_latents(store(), config_of(tmp_path, stored, "online"))
    with pytest.raises(DataError, match=r"needs text features for 'fps-motion'; change train\.text"):
        open_latents(store(), config_of(tmp_path, online, "stored"))
    with pytest.raises(DataError, match="has no captions fps-motion"):
        append(store(), online.paths.output, stored.paths.output)
    sizes = [sum(found.size for found in store().list(f"{config.paths.output}/shards")) for config in (online, stored)]
    assert sizes[0] < sizes[1]


def test_a_tokenizer_that_makes_more_tokens_than_were_counted_is_refused(tmp_path, made):
    config = config_of(tmp_path, made, "online")
    whole = online_text(config, tmp_path)

    def longer(texts):
        return [(context, pooled, tokens + 1) for context, pooled, tokens in whole(texts)]

    with pytest.raises(DataError, match=r"had \d+ tokens where it was encoded and has \d+ with spec\.textEncoder"):
        batches(config, longer)


def test_each_text_of_a_micro_batch_is_encoded_once_and_nothing_is_remembered():
    encoder = open_text_encoder(BYTES, store(), None, CPU)
    asked, whole = [], encoder.encode
    encoder.encode = lambda texts: (asked.append(list(texts)), whole(texts))[1]
    text = OnlineText(encoder, CPU)
    one, again, other = text(["a", "a", "b"])
    assert torch.equal(one.context_LD, again.context_LD)
    assert not torch.equal(one.pooled_P, other.pooled_P)
    text(["a"])
    assert asked == [["a", "b"], ["a"]]
