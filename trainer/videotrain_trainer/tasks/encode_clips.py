"""Clips to samples on one device: each clip is decoded once, each text encoded once, pixels of one shape go together.

Shapes: B batch, C channels, T frames, H height, W width, L text tokens, D text width, P pooled width.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from torch import Tensor

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.cost.coding_memory import PIXELS_AT_ONCE
from videotrain_api.cost.text_encoding import TEXTS_AT_ONCE
from videotrain_api.resource.references import applicable, reference_frames, takes_head
from videotrain_api.resource.stages import PromptStyle
from videotrain_api.storage import layout
from videotrain_trainer.checksums import read_checked
from videotrain_trainer.data.decode_ahead import DecodeAhead
from videotrain_trainer.data.loader import CAPTION, REFERENCE
from videotrain_trainer.data.prompts import caption_text
from videotrain_trainer.data.video import Frame, Unreadable, read_cuts
from videotrain_trainer.errors import DataError
from videotrain_trainer.networks.build import load_autoencoder
from videotrain_trainer.networks.latents import encode_latents
from videotrain_trainer.networks.weights import Weights, autoencoder_uri
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.encode_plan import EncodePlan, Sample
from videotrain_trainer.text.encoders import TextEncoder, load_text_encoder
from videotrain_trainer.text.stored import StoredText, null_features, stored_texts
from videotrain_trainer.worker.linux import container_cpus

log = logging.getLogger(__name__)
DECODED_BYTES = 4 * 2**30
"""Pixels of clips that are being decoded or wait for the device, of one process. A clip of 8 s at 768px has 0.3 GB."""
Clip = Mapping[str, Any]
"""Row of the clip manifest."""
Tensors = dict[str, Tensor]
Announced = list[list[Sample]]
"""Samples of clips that are being decoded, by clip."""


@dataclass
class EncodeMeter:
    """What encoding has taken so far."""

    clips: int = 0
    """That were begun."""
    texts: int = 0
    """That were encoded."""
    waited: float = 0.0
    """Seconds for which the device had nothing to do, since nothing was decoded."""
    busy: float = 0.0
    """Seconds of autoencoder and text encoder."""


@dataclass
class Encoded:
    """A sample and what it consists of, as far as that is made."""

    sample: Sample
    text_tokens: int
    """Of the caption in the longest of its styles, padding not counted."""
    tensors: Tensors
    missing: int = 0
    """Parts that are not encoded yet."""

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass
class _Part:
    """Pixels that the autoencoder takes at once, and which tensors of a sample are drawn of their distribution."""

    of: Encoded
    pixels_THWC: Tensor
    """uint8."""
    names: list[str]


class ClipEncoder:
    """Makes the samples of clips. One thread encodes at a time, and others may announce meanwhile; decoding has threads
    of its own.

    Args:
        config: of the encode stage.
        plan: says which samples a clip has.
        store: holds clips and weights.
        weights: of the autoencoder.
        device: where it encodes.
        cache: local folder; fetched weights of text encoders stay there.
        at_once: pixels of clips that are encoded together; PIXELS_AT_ONCE on a GPU, one clip at a time on the CPU.
    """

    def __init__(
        self,
        config: StageConfig,
        plan: EncodePlan,
        store: ObjectStore,
        weights: Weights,
        device: torch.device,
        cache: Path,
        at_once: int | None = None,
    ) -> None:
        self.config, self.plan, self.meter = config, plan, EncodeMeter()
        self._store, self._device = store, device
        gpu = device.type == "cuda"
        self._at_once = (PIXELS_AT_ONCE if gpu else 0) if at_once is None else at_once
        # Full precision on the CPU, where bfloat16 is slower; the latents are stored in bfloat16 in any case.
        self._dtype = torch.bfloat16 if gpu else torch.float32
        self._autoencoder = load_autoencoder(config.autoencoder, weights)
        self._autoencoder.eval().requires_grad_(False).to(device, self._dtype)
        self._text: TextEncoder = load_text_encoder(
            config.text_encoder, store, cache, device, at_once=TEXTS_AT_ONCE if gpu else 1
        )
        cores = container_cpus() // max(1, config.gpus_per_node)
        self._decoding: DecodeAhead[list[Frame]] = DecodeAhead(max(1, cores), DECODED_BYTES)

    def announce(self, clips: Sequence[Clip]) -> Announced:
        """Have clips decoded; what `samples` has to be called with, in the order of the announcements."""
        announced = [self.plan.samples(clip) for clip in clips]
        for clip, samples in zip(clips, announced, strict=True):
            if samples:
                size = sum(sample.cut.bytes for sample in samples) + int(clip["bytes"] or 0)
                self._decoding.put(size, partial(self._decode, clip, samples))
        return announced

    @torch.inference_mode()
    def samples(self, clips: Announced, tick: Callable[[int], None]) -> Iterator[Encoded]:
        """The samples of clips that were announced together, each as soon as it is whole.

        Which pixels are encoded together depends on these clips and their order alone.

        Args:
            clips: as announced.
            tick: told how many of them have been begun.
        """
        texts = self._texts(
            {text: None for samples in clips for one in samples for _, text in texts_of(one, one.styles)}
        )
        waiting: defaultdict[tuple[int, ...], list[_Part]] = defaultdict(list)
        for number, samples in enumerate(clips, start=1):
            for part in self._parts(samples, texts):
                shape = tuple(part.pixels_THWC.shape)
                waiting[shape].append(part)
                if len(waiting[shape]) >= self._at_once // part.pixels_THWC[..., 0].numel():
                    yield from self._encode(waiting.pop(shape))
            self.meter.clips += 1
            tick(number)
        for parts in waiting.values():
            yield from self._encode(parts)

    def null_text(self) -> Tensors:
        """Features of the empty caption, for text dropout; so training needs no text encoder."""
        features = null_features(self._text)
        return {"context": features.context_BLD[0], "pooled": features.pooled_BP[0]}

    def close(self) -> None:
        """End the decoders, and say what the device was given to do."""
        self._decoding.close()
        meter = self.meter
        log.info(
            "%d clips and %d texts encoded in %.1f s of %s; it waited %.1f s for decoded clips",
            meter.clips,
            meter.texts,
            meter.busy,
            self._device.type,
            meter.waited,
        )

    def _parts(self, samples: Sequence[Sample], texts: Mapping[str, StoredText]) -> Iterator[_Part]:
        """What the autoencoder has to encode for the samples of a clip, which is waited for."""
        begun = time.monotonic()
        frames = self._decoding.take() if samples else []
        self.meter.waited += time.monotonic() - begun
        for sample, pixels in zip(samples, frames, strict=True):
            made, pixels_THWC = Encoded(sample, *self._text_of(sample, texts)), torch.from_numpy(pixels)
            parts = [_Part(made, pixels_THWC[cut], drawn) for drawn, cut in self._coded(len(pixels))]
            made.missing = len(parts)
            yield from parts

    def _text_of(self, sample: Sample, texts: Mapping[str, StoredText]) -> tuple[int, Tensors]:
        """Tokens of a sample's longest text, and what is stored of its texts: features, or the text itself in UTF-8."""
        found: Tensors = {}
        tokens = [texts[text].tokens for _, text in texts_of(sample, sample.styles)]
        for style, text in texts_of(sample, sample.styles):
            # Styles may share a text, but not the memory of what is stored.
            found[f"context.{style}"] = texts[text].context_LD.clone()
            found[f"pooled.{style}"] = texts[text].pooled_P.clone()
        for style, text in texts_of(sample, sample.captions):
            found[f"{CAPTION}{style}"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
            tokens.append(self._text.count(text))
        return max(tokens), found

    def _coded(self, frames: int) -> list[tuple[list[str], slice]]:
        """Frames that are encoded by themselves: all, the first, the last, and those of the v2v kinds, which an
        autoencoder that is not causal has in the latent. A picture is all of them at once.
        """
        if frames == 1:
            return [(["latent", "cond_first", "cond_last"], slice(0, 1))]
        found = [
            (["latent"], slice(0, frames)),
            (["cond_first"], slice(0, 1)),
            (["cond_last"], slice(frames - 1, frames)),
        ]
        time = self.config.autoencoder.time
        for kind in self.plan.references if time.causal else ():
            if applicable(kind, time.latent_frames(frames), causal=True):
                count = reference_frames(kind, time)
                cut = slice(0, count) if takes_head(kind) else slice(frames - count, frames)
                found.append(([f"{REFERENCE}{kind}"], cut))
        return found

    def _encode(self, parts: Sequence[_Part]) -> list[Encoded]:
        """Encode pixels of one shape; the samples that are whole now."""
        begun = time.monotonic()
        x_BCTHW = torch.stack([_pixels(part.pixels_THWC.to(self._device)) for part in parts]).to(self._dtype)
        names = [[f"{part.of.sample.uid}/{name.removeprefix(REFERENCE)}" for name in part.names] for part in parts]
        config = self.config
        latents = encode_latents(self._autoencoder, config.autoencoder.posterior, x_BCTHW, config.seed, names)
        for part, found in zip(parts, latents, strict=True):
            for name, latent_CTHW in zip(part.names, found, strict=True):
                if not torch.isfinite(latent_CTHW).all():
                    raise DataError(f"{weights_uri(config)}: the autoencoder gives values that are not finite")
                part.of.tensors[name] = latent_CTHW.to("cpu", torch.bfloat16)
            part.of.missing -= 1
        self.meter.busy += time.monotonic() - begun
        return [part.of for part in parts if part.of.missing == 0]

    def _texts(self, texts: Iterable[str]) -> dict[str, StoredText]:
        """What is stored of texts, by text."""
        begun, wanted = time.monotonic(), list(texts)
        found: dict[str, StoredText] = {}
        for start in range(0, len(wanted), TEXTS_AT_ONCE):
            some = wanted[start : start + TEXTS_AT_ONCE]
            found |= dict(zip(some, stored_texts(self._text, some), strict=True))
        self.meter.texts += len(wanted)
        self.meter.busy += time.monotonic() - begun
        return found

    def _decode(self, clip: Clip, samples: Sequence[Sample]) -> list[Frame]:
        """Pixels of each sample, (T, H, W, 3); in a thread."""

        def whole(data: bytes) -> bytes:
            if google_crc32c.value(data) != clip["crc32c"]:
                raise ValueError("the clip does not fit its checksum in the manifest")
            return data

        uri = layout.clip_file(str(self.config.paths.clips), clip["uri"])
        data = read_checked(self._store, uri, whole, remedy="curate again")
        try:
            return read_cuts(data, [sample.cut for sample in samples])
        except Unreadable as error:
            raise Unreadable(f"{uri}: {error}; curate again") from error


def texts_of(sample: Sample, styles: Iterable[PromptStyle]) -> list[tuple[PromptStyle, str]]:
    """The texts of a sample in some styles."""
    return [(style, caption_text(sample.clip["caption"], style, *sample.rate_and_motion)) for style in styles]


def weights_uri(config: StageConfig) -> str:
    """Weights of the autoencoder."""
    return autoencoder_uri(config.autoencoder.kind, str(config.paths.autoencoder_weights))


def _pixels(frames_THWC: Tensor) -> Tensor:
    """(C, T, H, W) float32 in [-1, 1]; moved as bytes, a quarter of what they are then."""
    return frames_THWC.float().permute(3, 0, 1, 2).contiguous() / 127.5 - 1.0
