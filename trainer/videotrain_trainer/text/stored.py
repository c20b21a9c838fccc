"""Text features as encoded sets hold them, whether an encode stage stores them or a train stage makes them anew.

Shape letters: B batch, L tokens, D width of the token features, P width of the pooled feature.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from videotrain_trainer.text.byte_encoder import TextFeatures
from videotrain_trainer.text.encoders import TextEncoder


class StoredText(NamedTuple):
    """Features of one text, in bfloat16 on the host."""

    context_LD: Tensor
    """Of its tokens, and of the padding where that is encoded."""
    pooled_P: Tensor
    tokens: int
    """Padding not counted."""


def stored_texts(encoder: TextEncoder, texts: Sequence[str]) -> list[StoredText]:
    """Features of texts, in order."""
    features = encoder.encode(texts)
    return [
        StoredText(
            features.context_BLD[place, : features.lengths[place]].to("cpu", torch.bfloat16),
            features.pooled_BP[place].to("cpu", torch.bfloat16),
            encoder.count(text),
        )
        for place, text in enumerate(texts)
    ]


def null_features(encoder: TextEncoder) -> TextFeatures:
    """Features of the empty caption, which text dropout takes, float32 on the host and without rows of padding."""
    features = encoder.encode([""])
    length = features.lengths[0]
    return TextFeatures(
        context_BLD=features.context_BLD[:, :length].cpu().contiguous(),
        pooled_BP=features.pooled_BP.cpu(),
        lengths=[length],
    )


class OnlineText:
    """Encodes captions beside training: asked by the threads of a loader, one after the other.

    On a GPU it computes on a stream of its own, so that a step that is queued meanwhile is not waited for. Features
    depend on the texts that are asked for together alone: nothing is remembered, or a run that goes on would round
    otherwise than one that never stopped.

    Args:
        encoder: without a memory.
        device: where it is.
    """

    def __init__(self, encoder: TextEncoder, device: torch.device) -> None:
        self.encoder, self._device, self._turn = encoder, device, threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, texts: Sequence[str]) -> list[StoredText]:
        """Features of texts, in order; each is encoded once."""
        distinct = list(dict.fromkeys(texts))
        with self._turn, self._beside():
            found = dict(zip(distinct, stored_texts(self.encoder, distinct), strict=True))
        return [found[text] for text in texts]

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):  # a new thread is on device 0
            yield
