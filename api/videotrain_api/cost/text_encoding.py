"""What encoding captions takes of a GPU: the weights of T5 and CLIP, the memory of a pass and its FLOPs.

Encoders of other sizes than those that are published are not counted, nor is kind `bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from videotrain_api.resource.architecture import TextEncoderSpec

TEXTS_AT_ONCE: Final = 16
"""Captions that a GPU which does nothing else encodes together."""
TEXTS_BESIDE: Final = 4
"""The same beside training, which needs the memory: four captions of 512 tokens fill a GPU as well."""
CAPTION_BYTES: Final = 1_024
"""Of a caption in a sample that has no features of it. Assumed: 120 words."""
T5_FLOPS_PER_TOKEN: Final = 2 * 4.76e9
"""Of the encoder of T5 v1.1 XXL."""
_BYTES: Final = 2
_T5: Final[Mapping[int, tuple[int, int]]] = {
    512: (35_332_800, 6),
    768: (109_628_544, 12),
    1024: (341_231_104, 16),
    2048: (1_223_527_424, 32),
    4096: (4_762_310_656, 64),
}
"""Parameters and heads of the encoders of T5 1.1 (small, base, large, XL and XXL), by the width of their features."""
_CLIP: Final[Mapping[int, int]] = {768: 123_060_480}
"""Parameters of CLIP's text encoder (large), by the width of the pooled feature."""
_SCORE_BYTES: Final = 14
"""Of one of T5's attention scores: the bias of its position, the score, and its weight in float32 and rounded."""


def text_bytes(text: TextEncoderSpec) -> int:
    """Weights of the text encoders."""
    if text.kind == "bytes":
        return 0
    return _BYTES * (_T5.get(text.context_dim, (0, 0))[0] + _CLIP.get(text.pooled_dim, 0))


def text_work(text: TextEncoderSpec, at_once: int = 1) -> int:
    """Most bytes of encoding captions of all tokens together, beside the weights."""
    if text.kind == "bytes":
        return 0
    _, heads = _T5.get(text.context_dim, (0, 64))
    # Beside the scores of a layer a token has less than forty features as wide as the encoder.
    one = text.max_tokens * (heads * text.max_tokens * _SCORE_BYTES + 40 * _BYTES * text.context_dim)
    return at_once * one


def text_flops(text: TextEncoderSpec, tokens: int) -> float:
    """FLOPs of encoding a caption of so many tokens."""
    return T5_FLOPS_PER_TOKEN * tokens if text.kind == "t5-clip" else 0.0
