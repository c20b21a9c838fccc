"""T5 and CLIP through `transformers`, at tiny size with random weights and tokenizers made here."""

import json

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from support.numerics import apart, assert_as_exact, in_float64, rounding
from support.text_encoders import save_clip, save_t5

from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.byte_encoder import ByteTextEncoder
from videotrain_trainer.text.encoders import Remembering, T5ClipEncoder, load_text_encoder
from videotrain_trainer.text.files import find_encoders, local_folder

pytestmark = pytest.mark.numeric

SPEC = TextEncoderSpec(kind="t5-clip", context_dim=32, pooled_dim=24, max_tokens=16, weights="set by the test")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with both encoders, and the two networks themselves."""
    folder = tmp_path_factory.mktemp("text")
    t5, t5_tokenizer = save_t5(folder / "t5")
    clip, clip_tokenizer = save_clip(folder / "clip")
    t5_tokenizer.save_pretrained(folder / "t5")
    clip_tokenizer.save_pretrained(folder / "clip")
    return folder, t5, t5_tokenizer, clip, clip_tokenizer


def encoder_of(folder, **changes):
    return T5ClipEncoder.load(SPEC.model_copy(update=changes), find_encoders(folder, "folder"), torch.float32)


TEXTS = ["a cat runs on the wall .", "a dog", ""]


def test_padded_captions_are_encoded_as_the_released_weights_were_trained(saved):
    folder, t5, tokenizer, clip, clip_tokenizer = saved
    features = encoder_of(folder).encode(TEXTS)
    ids = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = t5(input_ids=ids).last_hidden_state  # no mask: pad tokens are attended to
    assert_as_exact(features.context_BLD, expected, in_float64(t5, input_ids=ids).last_hidden_state)
    assert features.lengths == [16, 16, 16]
    tokens = clip_tokenizer(TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        pooled = clip(input_ids=tokens["input_ids"]).pooler_output
    assert_as_exact(features.pooled_BP, pooled, in_float64(clip, input_ids=tokens["input_ids"]).pooler_output)


def test_trimmed_padding_gives_what_a_mask_gives(saved):
    folder, t5, tokenizer, _, _ = saved
    features = encoder_of(folder, trim_padding=True).encode(TEXTS)
    found = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    given = {name: found[name] for name in ("input_ids", "attention_mask")}
    kept = found["attention_mask"][..., None]
    with torch.no_grad():
        masked = t5(**given).last_hidden_state
    assert features.lengths == found["attention_mask"].sum(dim=1).tolist() == [8, 3, 1]
    assert_as_exact(features.context_BLD, masked * kept, in_float64(t5, **given).last_hidden_state * kept)
    padded = encoder_of(folder).encode(TEXTS)
    assert apart(features.context_BLD[1, :3], padded.context_BLD[1, :3]) > 1000 * rounding(padded.context_BLD)


def test_a_caption_has_the_same_features_in_every_batch(saved):
    encoder = encoder_of(saved[0], trim_padding=True)
    together = encoder.encode(TEXTS)
    for index, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        assert torch.equal(alone.context_BLD[0], together.context_BLD[index])
        assert torch.equal(alone.pooled_BP[0], together.pooled_BP[index])


@pytest.mark.parametrize("trim", [False, True])
def test_captions_that_t5_takes_together_are_what_each_is_alone(saved, trim):
    """Products over more rows round otherwise: a thousandth is 2^13 steps of float32."""
    texts = ["a red car", "a blue boat", "rain", "snow", "a red car on a bridge"]
    alone = encoder_of(saved[0], trim_padding=trim)
    together = T5ClipEncoder.load(
        SPEC.model_copy(update={"trim_padding": trim}), find_encoders(saved[0], "folder"), torch.float32, at_once=2
    )
    one, other = alone.encode(texts), together.encode(texts)
    assert one.lengths == other.lengths
    torch.testing.assert_close(
        other.context_BLD, one.context_BLD, rtol=1e-3, atol=1e-3 * float(one.context_BLD.abs().max())
    )
    assert torch.equal(one.pooled_BP, other.pooled_BP)


def test_captions_that_are_too_long_are_cut(saved):
    long = " ".join(["cat"] * 40)
    features = encoder_of(saved[0], trim_padding=True, max_tokens=5).encode([long])
    assert features.lengths == [5]
    assert torch.isfinite(features.pooled_BP).all()


def test_which_encoder_a_folder_holds_is_read_from_its_configuration(tmp_path):
    """The published code asks whether the path contains `openai`."""
    root = tmp_path / "openai-mirror"
    _, t5_tokenizer = save_t5(root / "text_encoder_2")
    _, clip_tokenizer = save_clip(root / "text_encoder")
    for name, tokenizer, kind in (("tokenizer_2", t5_tokenizer, "T5"), ("tokenizer", clip_tokenizer, "CLIP")):
        tokenizer.save_pretrained(root / name)
        config = json.loads((root / name / "tokenizer_config.json").read_text())
        (root / name / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": f"{kind}Tokenizer"}))
    found = find_encoders(root, "somewhere")
    assert (found.t5.name, found.t5_tokenizer.name) == ("text_encoder_2", "tokenizer_2")
    assert (found.clip.name, found.clip_tokenizer.name) == ("text_encoder", "tokenizer")


def test_missing_incomplete_and_unfit_encoders_are_refused_by_name(tmp_path, saved):
    folder = saved[0]
    with pytest.raises(ConfigError, match=r"spec.textEncoder.weights: s3://b: .* model_type 't5' .* found: none"):
        find_encoders(tmp_path, "s3://b")
    with pytest.raises(ConfigError, match=r"spec\.textEncoder\.contextDim: 40, but the encoder in .* gives 32"):
        encoder_of(folder, context_dim=40)
    with pytest.raises(ConfigError, match=r"spec\.textEncoder\.pooledDim"):
        encoder_of(folder, pooled_dim=40)
    from safetensors.torch import load_file, save_file

    _, tokenizer = save_t5(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    _, clip_tokenizer = save_clip(tmp_path / "clip")
    clip_tokenizer.save_pretrained(tmp_path / "clip")
    path = tmp_path / "t5/model.safetensors"
    tensors = load_file(path)
    tensors.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors of the text encoder are missing .*block\.1.*q\.weight"):
        encoder_of(tmp_path)


def test_features_are_remembered_within_a_budget_and_lie_on_the_host():
    encoder = ByteTextEncoder(16, 8, 12)
    one = encoder.encode(["a"])
    remembering = Remembering(encoder, budget=2 * (2 * 16 + 8) * 4)
    for text in ("a", "b", "a", "b", "a"):
        remembering.encode([text])
    assert remembering.asked == 2
    assert torch.equal(remembering.encode(["a"]).context_BLD, one.context_BLD)
    remembering.encode(["c"])  # the oldest of three goes: b
    remembering.encode(["a"])
    assert remembering.asked == 3
    remembering.encode(["b"])
    assert remembering.asked == 4


def test_the_negative_prompt_of_a_batch_is_encoded_once():
    remembering = Remembering(ByteTextEncoder(16, 8, 12))
    for prompt in ("one", "two", "three"):
        remembering.encode([prompt, ""])
    assert remembering.asked == 4


def test_weights_behind_a_uri_are_fetched_once_and_used_from_the_disk(tmp_path, saved, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="encoders")
        for path in saved[0].rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "encoders", f"text/{path.relative_to(saved[0])}")
        client.put_object(Bucket="encoders", Key="text/t5/pytorch_model.bin", Body=b"never fetched")
        monkeypatch.setattr("videotrain_trainer.storage.FETCH_BYTES", 10_000)
        store = ObjectStore.for_storage(Storage(uri="s3://encoders", endpoint_url=url))
        spec = SPEC.model_copy(update={"weights": "s3://encoders/text"})
        features = load_text_encoder(spec, store, tmp_path / "cache", CPU).encode(TEXTS)
        (fetched,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
        assert not list(fetched.rglob("*.bin"))
        assert local_folder("s3://encoders/text", store, tmp_path / "cache") == fetched
    finally:
        server.stop()
    expected = encoder_of(saved[0]).encode(TEXTS)
    assert torch.equal(features.context_BLD, expected.context_BLD)
    assert torch.equal(features.pooled_BP, expected.pooled_BP)


def test_kind_bytes_needs_no_weights_and_a_path_is_taken_as_it_is(tmp_path):
    store = ObjectStore.for_storage(Storage(uri="s3://unset"))
    spec = TextEncoderSpec(context_dim=16, pooled_dim=8, max_tokens=6)
    features = load_text_encoder(spec, store, tmp_path, CPU).encode(["ab", ""])
    assert features.lengths == [3, 1]
    assert not features.context_BLD[1, 1:].any()
    assert local_folder(str(tmp_path), store, tmp_path) == local_folder(tmp_path.as_uri(), store, tmp_path) == tmp_path
