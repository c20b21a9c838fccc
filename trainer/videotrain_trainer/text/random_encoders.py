"""Text encoders with random weights, of the sizes that are published: to measure what encoding beside training takes.

Shape letters: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor, nn

from videotrain_api.cost.text_encoding import TEXTS_BESIDE
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.text.byte_encoder import ByteTextEncoder
from videotrain_trainer.text.encoders import Networks, T5ClipEncoder, build_text_encoder, dtype_on
from videotrain_trainer.text.stored import OnlineText, StoredText

T5_SIZES: Final[Mapping[int, tuple[int, int, int]]] = {
    512: (1024, 8, 6),
    768: (2048, 12, 12),
    1024: (2816, 24, 16),
    2048: (5120, 24, 32),
    4096: (10240, 24, 64),
}
"""Inner width, layers and heads of T5 1.1 (small, base, large, XL and XXL), by the width of its features."""
CLIP_WIDTH: Final = 768
"""Of CLIP-L, the one with a pooled feature so wide."""
_FIRST_VALUES: Final = 0.02
_TOKEN: Final = 7
"""Any that is in both vocabularies."""


def random_text_encoder(spec: TextEncoderSpec, device: torch.device, at_once: int) -> ByteTextEncoder | T5ClipEncoder:
    """An encoder as a run with this specification has it, but for the values of its weights; nothing is read.

    Args:
        spec: resolved.
        device: where it computes.
        at_once: texts that T5 takes together.

    Raises:
        ConfigError: T5 1.1 or CLIP-L has no such width.
    """
    if spec.kind == "bytes":
        return build_text_encoder(spec).to(device)
    if spec.context_dim not in T5_SIZES or spec.pooled_dim != CLIP_WIDTH:
        widths = ", ".join(map(str, T5_SIZES))
        raise ConfigError(
            f"spec.textEncoder: contextDim {spec.context_dim} and pooledDim {spec.pooled_dim}: what captions take "
            f"beside training is measured of T5 1.1 ({widths}) and CLIP-L ({CLIP_WIDTH}) alone; set train.text: stored "
            "to measure without them"
        )
    return T5ClipEncoder(spec, _networks(spec, device), at_once)


class TextBeside:
    """Encodes as many of the longest captions as a micro-batch has, beside it, as `train.text: online` does.

    Args:
        spec: of the encoder.
        device: of the steps.

    Raises:
        ConfigError: see random_text_encoder.
    """

    def __init__(self, spec: TextEncoderSpec, device: torch.device) -> None:
        encoder = random_text_encoder(spec, device, TEXTS_BESIDE if device.type == "cuda" else 1)
        self._online, self._tokens = OnlineText(encoder, device), spec.max_tokens
        self._thread = ThreadPoolExecutor(1, "text")
        self._begun: Future[list[StoredText]] | None = None

    def encode(self, captions: int) -> None:
        """Begin, once the ones before are done.

        Raises:
            OutOfMemoryError: those before ran out of memory.
        """
        self.wait()
        # Distinct ones: equal ones are encoded once.
        texts = [f"{number} ".ljust(self._tokens, "x") for number in range(captions)]
        self._begun = self._thread.submit(self._online, texts)

    def wait(self) -> list[StoredText]:
        """Until nothing is being encoded; the features that came last.

        Raises:
            OutOfMemoryError: memory ran out.
        """
        begun, self._begun = self._begun, None
        return begun.result() if begun is not None else []


def _networks(spec: TextEncoderSpec, device: torch.device) -> Networks:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    inner, layers, heads = T5_SIZES[spec.context_dim]
    t5 = T5Config(
        vocab_size=32128,
        d_model=spec.context_dim,
        d_kv=64,
        d_ff=inner,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    clip = CLIPTextConfig(hidden_size=CLIP_WIDTH, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    limit = clip.max_position_embeddings
    with torch.device("meta"):
        first, second = T5EncoderModel(t5), CLIPTextModel(clip)
    tokenizers = _Longest(spec.max_tokens), _Longest(limit)
    return Networks(_filled(first, device), _filled(second, device), *tokenizers)


class _Longest:
    """A tokenizer of captions that are all as long as they may be."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.full((len(texts), self._tokens), _TOKEN)}


@torch.no_grad()
def _filled(network: nn.Module, device: torch.device) -> nn.Module:
    """Random weights, made where they are needed: on the host they take a minute."""
    network.to(dtype_on(device)).to_empty(device=device)
    for values in network.parameters():
        values.normal_(std=_FIRST_VALUES)
    for name, buffer in network.named_buffers():
        if not name.endswith("position_ids"):
            raise AssertionError(f"{name} has no value yet")
        buffer.copy_(torch.arange(buffer.shape[-1]))
    return network
