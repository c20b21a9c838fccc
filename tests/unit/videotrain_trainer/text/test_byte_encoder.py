import pytest
import torch

from videotrain_trainer.text.byte_encoder import END, ByteTextEncoder, tokenize

pytestmark = pytest.mark.numeric

CAPTIONS = [
    "",
    "A rabbit stands in a green meadow.",
    "A rabbit sits in a green meadow.",
    "Cyclists ride along a street.",
    "A man talks on the phone in a car.",
    "A man talks on the phone in a car. 24 FPS, 4 motion score.",
]


def test_every_encoder_of_the_same_size_gives_the_same_features():
    torch.manual_seed(1)
    first = ByteTextEncoder(32, 16, 64).encode(CAPTIONS)
    torch.manual_seed(2)
    second = ByteTextEncoder(32, 16, 64).encode(CAPTIONS)
    assert torch.equal(first.context_BLD, second.context_BLD)
    assert torch.equal(first.pooled_BP, second.pooled_BP)


def test_features_do_not_depend_on_the_other_captions_of_the_batch():
    encoder = ByteTextEncoder(32, 16, 64)
    together = encoder.encode(CAPTIONS)
    for index, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        assert torch.equal(alone.context_BLD[0], together.context_BLD[index])
        assert torch.equal(alone.pooled_BP[0], together.pooled_BP[index])


def test_shapes_lengths_and_padding_are_what_the_specification_says():
    features = ByteTextEncoder(32, 16, 40).encode(CAPTIONS)
    assert features.context_BLD.shape == (6, 40, 32)
    assert features.context_BLD.dtype == features.pooled_BP.dtype == torch.float32
    assert features.pooled_BP.shape == (6, 16)
    assert features.lengths == [min(len(caption) + 1, 40) for caption in CAPTIONS]
    for row, length in zip(features.context_BLD, features.lengths, strict=True):
        assert not row[length:].any()
        assert row[:length].any(dim=1).all()


def test_captions_have_clearly_different_features_of_about_unit_size():
    features = ByteTextEncoder(64, 32, 64).encode(CAPTIONS)
    pooled = torch.nn.functional.normalize(features.pooled_BP, dim=1)
    similarity = pooled @ pooled.T - torch.eye(len(CAPTIONS))
    assert similarity.max() < 0.97
    assert 0.3 < features.pooled_BP.std() < 3
    assert 0.3 < features.context_BLD[1, :30].std() < 3
    first, second = features.context_BLD[1, :9], features.context_BLD[2, :9]  # "A rabbit " in both
    assert not torch.allclose(first, second, atol=1e-3)


def test_long_captions_are_cut_and_still_end():
    assert tokenize("abc", 3) == [100, 101, END]
    assert tokenize("", 8) == [END]
    assert len(tokenize("é" * 50, 64)) == 64
