"""Text encoders of a run: T5-XXL and CLIP-L through `transformers`, or the small one over bytes.

Not a model file: `transformers` owns these two networks and their tokenizers. It is imported when the first one is
loaded, and never reaches for the network.

T5 sees a caption in one of two ways. Released weights were trained on captions padded to 512 tokens that are encoded
and attended to without a mask, so that is the default of kind `t5-clip`. With `trimPadding` a caption is encoded
without pad tokens, which gives exactly what a mask gives, at the cost of the tokens that are there. CLIP's pooled
feature is read at the end token and its attention is causal, so its padding is never computed.

Shape letters: B batch, L tokens, D width of the token features, P width of the pooled feature.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.byte_encoder import ByteTextEncoder, TextFeatures
from videotrain_trainer.text.files import EncoderFolders, find_encoders, local_folder

log = logging.getLogger(__name__)

CACHE_BYTES = 256 * 1024 * 1024
"""Features of the newest texts are kept up to this size: null captions and prompts of a batch come again and again."""
Row = tuple[Tensor, Tensor, int]
"""Context (L, D), pooled feature (P,) and length of one text."""


class TextEncoder(Protocol):
    """What turns texts into features."""

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of captions; each one is coded by itself, and the empty string is the null caption."""

    def count(self, text: str) -> int:
        """Tokens of a caption, padding not counted."""

    def to(self, device: torch.device) -> Any:
        """Move the weights, for example off a GPU that others need now."""


def load_text_encoder(
    spec: TextEncoderSpec, store: ObjectStore, cache: Path, device: torch.device, at_once: int = 1
) -> TextEncoder:
    """The text encoder of a run, in evaluation mode on its device.

    Args:
        spec: resolved.
        store: holds the weights, if they are not in a mounted directory.
        cache: local folder; fetched weights stay there.
        device: bfloat16 is used on CUDA, float32 elsewhere.
        at_once: texts of one length that T5 takes together, whose features differ by roundings from those that each has
            alone.

    Raises:
        ConfigError: weights are missing, incomplete or of other sizes than the specification's.
    """
    return Remembering(open_text_encoder(spec, store, cache, device, at_once))


def open_text_encoder(
    spec: TextEncoderSpec, store: ObjectStore, cache: Path, device: torch.device, at_once: int = 1
) -> ByteTextEncoder | T5ClipEncoder:
    """The same, without a memory; features are given on the device."""
    if spec.kind == "bytes":
        return ByteTextEncoder(spec.context_dim, spec.pooled_dim, spec.max_tokens).to(device)
    if spec.weights is None:
        raise ConfigError("spec.textEncoder.weights: not set; kind t5-clip needs the folder with both encoders")
    folders = find_encoders(local_folder(spec.weights, store, cache), spec.weights)
    return T5ClipEncoder.load(spec, folders, dtype_on(device), at_once).to(device)


def dtype_on(device: torch.device) -> torch.dtype:
    """What weights of T5 and CLIP are held in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build_text_encoder(spec: TextEncoderSpec) -> ByteTextEncoder:
    """The text encoder, on the CPU.

    Raises:
        ConfigError: the kind is not available.
    """
    if spec.kind != "bytes":
        raise ConfigError(
            f"spec.textEncoder.kind: {spec.kind!r} is loaded with its weights by text.encoders.load_text_encoder; this "
            "builds 'bytes' alone"
        )
    return ByteTextEncoder(spec.context_dim, spec.pooled_dim, spec.max_tokens)


class Networks(NamedTuple):
    """Both networks of `transformers` with their tokenizers."""

    t5: Any
    clip: Any
    t5_tokens: Any
    clip_tokens: Any


class T5ClipEncoder(nn.Module):
    """T5's last hidden state and CLIP's pooled feature, float32 in any case. Nothing in it is trained.

    Args:
        spec: longest caption and padding.
        networks: of the sizes that it says.
        at_once: texts of one length that T5 takes together.
    """

    def __init__(self, spec: TextEncoderSpec, networks: Networks, at_once: int = 1) -> None:
        super().__init__()
        self.max_tokens, self.trim, self.at_once = spec.max_tokens, spec.trim_padding, at_once
        self.t5, self.clip, self._t5_tokens, self._clip_tokens = networks
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, spec: TextEncoderSpec, folders: EncoderFolders, dtype: torch.dtype, at_once: int = 1) -> Self:
        """Read both networks.

        Args:
            spec: sizes, longest caption and padding.
            folders: where both encoders and their tokenizers lie.
            dtype: of the weights.
            at_once: texts of one length that T5 takes together.

        Raises:
            ConfigError: a file is missing or its sizes are others.
        """
        from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

        t5, clip = _load(T5EncoderModel, folders.t5, dtype), _load(CLIPTextModel, folders.clip, dtype)
        found = Networks(
            t5,
            clip,
            AutoTokenizer.from_pretrained(str(folders.t5_tokenizer), local_files_only=True),
            AutoTokenizer.from_pretrained(str(folders.clip_tokenizer), local_files_only=True),
        )
        check_width("contextDim", spec.context_dim, t5.config.d_model, folders.t5)
        check_width("pooledDim", spec.pooled_dim, clip.config.hidden_size, folders.clip)
        return cls(spec, found, at_once)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of captions, float32 on the encoder's device."""
        contexts = self._contexts(texts)
        padded = [F.pad(context, (0, 0, 0, self.max_tokens - len(context))) for context in contexts]
        return TextFeatures(
            context_BLD=torch.stack(padded),
            pooled_BP=torch.stack([self._pooled(text) for text in texts]),
            lengths=[len(context) for context in contexts],
        )

    def count(self, text: str) -> int:
        """Tokens of a caption, padding not counted."""
        return self._ids(text, padding=False).shape[1]

    def _ids(self, text: str, padding: bool | str) -> Tensor:
        """(1, L): the tokens of a caption, cut to the longest that is allowed."""
        found = self._t5_tokens(
            [text], padding=padding, max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        ids_1L: Tensor = found["input_ids"]
        return ids_1L

    def _contexts(self, texts: Sequence[str]) -> list[Tensor]:
        """(L, D) of each text. Padding is all there or not at all: every token is attended to, so there is no mask."""
        ids = [self._ids(text, padding=False if self.trim else "max_length") for text in texts]
        found: dict[int, Tensor] = {}
        for length in {len(ids_1L[0]) for ids_1L in ids}:
            places = [place for place, ids_1L in enumerate(ids) if len(ids_1L[0]) == length]
            for start in range(0, len(places), self.at_once):
                some = places[start : start + self.at_once]
                ids_BL = torch.cat([ids[place] for place in some]).to(self.t5.device)
                hidden_BLD = self.t5(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).last_hidden_state
                found |= dict(zip(some, hidden_BLD.float(), strict=True))
        return [found[place] for place in range(len(texts))]

    def _pooled(self, text: str) -> Tensor:
        limit = self.clip.config.max_position_embeddings
        found = self._clip_tokens([text], padding=False, max_length=limit, truncation=True, return_tensors="pt")
        pooled_1P: Tensor = self.clip(input_ids=found["input_ids"].to(self.clip.device)).pooler_output
        return pooled_1P[0].float()


class Remembering:
    """An encoder that keeps the features of the newest texts in host memory.

    Args:
        encoder: what is asked for new texts.
        budget: bytes.
    """

    def __init__(self, encoder: ByteTextEncoder | T5ClipEncoder, budget: int = CACHE_BYTES) -> None:
        self.encoder, self.asked = encoder, 0
        self._budget, self._rows, self._bytes = budget, OrderedDict[str, Row](), 0
        self._max_tokens = encoder.max_tokens

    def to(self, device: torch.device) -> Remembering:
        """Move the weights; features are given on the host whatever the device."""
        self.encoder.to(device)
        return self

    def count(self, text: str) -> int:
        """Tokens of a caption, padding not counted."""
        return self.encoder.count(text)

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of captions, float32 on the CPU."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._rows]
        new = dict(zip(missing, self._asked(missing), strict=True))
        rows = [new.get(text) or self._rows[text] for text in texts]
        for text in texts:
            self._remember(text, new.get(text))
        padded = [F.pad(context, (0, 0, 0, self._max_tokens - len(context))) for context, _, _ in rows]
        return TextFeatures(
            context_BLD=torch.stack(padded),
            pooled_BP=torch.stack([pooled for _, pooled, _ in rows]),
            lengths=[length for _, _, length in rows],
        )

    def _asked(self, texts: Sequence[str]) -> list[Row]:
        self.asked += len(texts)
        if not texts:
            return []
        features = self.encoder.encode(texts)
        lengths, contexts, pooled = features.lengths, features.context_BLD.cpu(), features.pooled_BP.cpu()
        return [(contexts[n, : lengths[n]].clone(), pooled[n].clone(), lengths[n]) for n in range(len(texts))]

    def _remember(self, text: str, row: Row | None) -> None:
        """The text is the newest; those that were not used for longest go."""
        if text in self._rows:
            self._rows.move_to_end(text)
        elif row is not None:
            self._rows[text] = row
            self._bytes += _size(row)
            while self._bytes > self._budget and len(self._rows) > 1:
                self._bytes -= _size(self._rows.popitem(last=False)[1])


def _size(row: Row) -> int:
    context, pooled, _ = row
    return context.nbytes + pooled.nbytes


def _load(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of `transformers`, with nothing missing: it fills gaps with random weights and only warns."""
    try:
        module, info = kind.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{folder}: the text encoder cannot be read: {error}") from error
    problems = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if problems:
        shown = ", ".join(problems[:8])
        raise ConfigError(f"{folder}: {len(problems)} tensors of the text encoder are missing or misshapen: {shown}")
    log.info("loaded %s from %s", kind.__name__, folder)
    return module


def check_width(field: str, wanted: int, found: int, folder: Path) -> None:
    """Refuse an encoder whose features have another width than the specification says.

    Raises:
        ConfigError: they have.
    """
    if wanted != found:
        raise ConfigError(f"spec.textEncoder.{field}: {wanted}, but the encoder in {folder} gives {found}; set it so")
