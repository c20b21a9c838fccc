"""The image tower of CLIP or SigLIP over stills of clips: embeddings, and an aesthetic predictor on top of them.

`transformers` owns towers and preprocessing. The predictor is LAION's: linear layers, one after the other without
anything between, over the embedding at length one; the score of a clip is the mean of its stills, as in Open-Sora 2.0.

Shape letters: K stills, D width of an embedding.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from videotrain_api.resource.stages import ImageModel
from videotrain_trainer.curation.dedup_embeddings import encoded
from videotrain_trainer.curation.scores.interface import Columns
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.files import local_path
from videotrain_trainer.networks.weights import open_weights
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.files import is_remote, local_folder

FIELD: Final = "curate.imageModel"
TOWERS: Final = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
"""Class of `transformers` by the first word of a config.json's model_type."""
_NUMBERED = re.compile(r"(\d+)\.$")
_one_at_a_time = threading.Lock()
_loaded: dict[tuple[str, str | None], ImageScorer] = {}
"""By weights and head. Threads that curate share one."""


@dataclass(frozen=True, eq=False)
class ImageScorer:
    """A tower on its device, and the predictor's layers."""

    tower: nn.Module
    processor: Any
    head: tuple[tuple[Tensor, Tensor], ...]
    """Weight and bias of each layer; empty without a predictor."""

    def columns(self, stills: NDArray[np.uint8]) -> Columns:
        """`embedding`, and `aesthetic` if there is a predictor.

        Args:
            stills: (K, H, W, 3) in RGB.
        """
        with _one_at_a_time, torch.inference_mode():
            embeddings = self._embeddings(stills)
            found: Columns = {"embedding": encoded(F.normalize(embeddings.mean(0), dim=-1).cpu().numpy())}
            if self.head:
                score = embeddings
                for weight, bias in self.head:
                    score = F.linear(score, weight, bias)
                found["aesthetic"] = float(score.mean())
        return found

    def _embeddings(self, stills: NDArray[np.uint8]) -> Tensor:
        """(K, D) float32, each of length one."""
        pixels = self.processor(images=list(stills), return_tensors="pt")["pixel_values"]
        first = next(self.tower.parameters())
        seen = self.tower(pixels.to(first.device, first.dtype))
        embedding: Tensor = seen.image_embeds if hasattr(seen, "image_embeds") else seen.pooler_output
        return F.normalize(embedding.float(), dim=-1)


def open_image_model(spec: ImageModel, store: ObjectStore, cache: Path) -> ImageScorer:
    """The model, loaded once per process.

    Raises:
        ConfigError: weights are missing, damaged, incomplete or do not fit each other.
    """
    with _one_at_a_time:
        key = (spec.weights, spec.head)
        if key not in _loaded:
            _loaded[key] = _load(spec.weights, spec.head, store, cache)
        return _loaded[key]


def _load(weights: str, head: str | None, store: ObjectStore, cache: Path) -> ImageScorer:
    import transformers

    folder = local_folder(weights, store, cache, f"{FIELD}.weights")
    name, width = tower_of(_config(folder, weights), weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        tower, told = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=dtype
        )
        processors: Any = transformers.AutoImageProcessor
        processor = processors.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{FIELD}.weights: {weights}: {error}") from error
    if told["missing_keys"] or told["mismatched_keys"]:
        lacking = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
        raise ConfigError(f"{FIELD}.weights: {weights}: {len(lacking)} tensors of {name} are missing: {lacking[:3]}")
    layers = head_layers(read_head(head, store) if head else own_head(folder), width, head or weights)
    moved = tuple((weight.float().to(device), bias.float().to(device)) for weight, bias in layers)
    return ImageScorer(tower.eval().to(device), processor, moved)


def tower_of(config: Mapping[str, Any], source: str) -> tuple[str, int]:
    """Class of the tower and width of its embeddings.

    Raises:
        ConfigError: it is neither CLIP nor SigLIP.
    """
    kind = str(config.get("model_type", ""))
    family = next((name for name in TOWERS if kind.split("_")[0] == name), None)
    inner = config.get("vision_config") or config
    # What is left out of a config.json has the default that transformers gives it.
    width = {
        "clip": config.get("projection_dim", inner.get("projection_dim", 512)),
        "siglip": inner.get("hidden_size", 768),
    }
    if family is None:
        raise ConfigError(
            f"{FIELD}.weights: {source}: config.json is of model_type {kind!r}; allowed: "
            f"{', '.join(TOWERS)}, and their *_vision_model"
        )
    return TOWERS[family], int(width[family])


def head_layers(tensors: Mapping[str, Tensor], width: int, source: str) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of the predictor in their order; none if there are no tensors.

    Raises:
        ConfigError: as `head_order` does.
    """
    names = head_order({name: tuple(tensor.shape) for name, tensor in tensors.items()}, width, source)
    return [(tensors[f"{name}weight"], tensors[f"{name}bias"]) for name in names]


def head_order(shapes: Mapping[str, Sequence[int]], width: int, source: str) -> list[str]:
    """Names of the predictor's layers in their order, with the dot before `weight` and `bias`.

    Args:
        shapes: of tensors by name: N.weight and N.bias below any prefix, or weight and bias of a single layer.
        width: of embeddings.
        source: where they were, for messages.

    Raises:
        ConfigError: they are no chain of linear layers from `width` to 1.
    """
    layers = [name.removesuffix("weight") for name in shapes if name.endswith("weight")]
    layers.sort(key=lambda name: int(found[1]) if (found := _NUMBERED.search(name)) else 0)
    sizes = [tuple(shapes[f"{name}weight"]) for name in layers]
    wanted = [width, *(size[0] for size in sizes)]
    chained = all(size == (size[0], before) for size, before in zip(sizes, wanted, strict=False))
    if layers and not (chained and wanted[-1] == 1 and all(f"{name}bias" in shapes for name in layers)):
        raise ConfigError(
            f"{FIELD}.head: {source}: layers of shapes {sizes} do not lead from embeddings of width {width} to one "
            "score; take the predictor that was trained on this model"
        )
    return layers


def read_head(head: str, store: ObjectStore) -> dict[str, Tensor]:
    """Tensors of a predictor's file.

    Raises:
        ConfigError: it is not there, damaged, or of neither kind.
    """
    try:
        data = store.get(head) if is_remote(head) else local_path(head).read_bytes()
        if head.endswith(".safetensors"):
            stored: dict[str, Tensor] = load(data)
            return stored
        found = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, AttributeError, EOFError) as error:
        raise ConfigError(f"{FIELD}.head: {head}: not a readable file of tensors: {error}") from error


def own_head(folder: Path) -> dict[str, Tensor]:
    """Tensors layers.* of the model's own files, which a predictor has that is stored with its tower."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith("layers.")}  # noqa: SIM118
    return found


def check_image_model(spec: ImageModel, store: ObjectStore) -> str:
    """What the files are, by their headers alone.

    Raises:
        ConfigError: there is no image tower, or the predictor does not fit it.
    """
    weights = open_weights(spec.weights, store=store)
    name, width = tower_of(weights.config or {}, spec.weights)
    if not any(tensor.endswith("embeddings.patch_embedding.weight") for tensor in weights.shapes):
        raise ConfigError(f"{FIELD}.weights: {spec.weights}: no tensor *.patch_embedding.weight, which {name} has")
    if spec.head is not None:
        head = head_layers(read_head(spec.head, store), width, spec.head)
        if not head:
            raise ConfigError(f"{FIELD}.head: {spec.head}: no tensors *.weight of linear layers")
        scored = f"a predictor of {len(head)} layers"
    else:
        own = {tensor: shape for tensor, shape in weights.shapes.items() if tensor.startswith("layers.")}
        scored = f"its own predictor of {len(head_order(own, width, spec.weights))} layers" if own else "no predictor"
    return f"{name}, {len(weights.shapes)} tensors, embeddings of {width}, {scored}"


def _config(folder: Path, source: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{FIELD}.weights: {source}: config.json is not readable: {error}") from error
    return found
