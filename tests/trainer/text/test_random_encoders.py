"""Encoders with random weights are as large as the published ones, and do what those do to a caption."""

from __future__ import annotations

import pytest
import torch

from videotrain_api.cost.text_encoding import text_bytes
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.text.random_encoders import T5_SIZES, TextBeside, random_text_encoder

CPU = torch.device("cpu")
SMALL = TextEncoderSpec(kind="t5-clip", context_dim=512, max_tokens=24, weights="file:///t5")


@pytest.mark.parametrize("width", sorted(T5_SIZES))
def test_they_have_the_parameters_that_are_counted(width):
    spec = SMALL.model_copy(update={"context_dim": width})
    encoder = random_text_encoder(spec, torch.device("meta"), 1)
    assert 2 * sum(values.numel() for values in encoder.parameters()) == text_bytes(spec)


def test_every_caption_of_a_micro_batch_is_encoded_at_its_full_length():
    beside = TextBeside(SMALL, CPU)
    beside.encode(3)
    found = beside.wait()
    assert [text.tokens for text in found] == [24, 24, 24]
    assert {text.context_LD.shape for text in found} == {(24, 512)} and {text.pooled_P.shape for text in found} == {
        (768,)
    }
    assert all(text.context_LD.isfinite().all() and text.pooled_P.isfinite().all() for text in found)
    assert found[0].context_LD.std() > 0
    assert beside.wait() == []


def test_the_encoder_over_bytes_is_its_own():
    beside = TextBeside(TextEncoderSpec(kind="bytes", context_dim=16, pooled_dim=8, max_tokens=12), CPU)
    beside.encode(2)
    found = beside.wait()
    assert [text.tokens for text in found] == [12, 12]
    assert not torch.equal(found[0].context_LD, found[1].context_LD)


def test_memory_that_runs_out_in_its_thread_is_told_to_who_waits(monkeypatch):
    beside = TextBeside(SMALL, CPU)

    def short(_):
        raise torch.OutOfMemoryError("as CUDA would")

    monkeypatch.setattr(beside, "_online", short)
    beside.encode(1)
    with pytest.raises(torch.OutOfMemoryError):
        beside.encode(1)
    assert beside.wait() == []


@pytest.mark.parametrize("changes", [{"context_dim": 64}, {"pooled_dim": 64}])
def test_widths_that_nothing_published_has_are_refused_with_a_way_on(changes):
    with pytest.raises(ConfigError, match=r"contextDim \d+ and pooledDim \d+.*4096.*train.text: stored"):
        random_text_encoder(SMALL.model_copy(update=changes), CPU, 1)
