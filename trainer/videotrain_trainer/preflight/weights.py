"""Whether weights fit the models of a run, by the headers of their files: no tensor is read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.references import Reference, Role
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.files import local_path
from videotrain_trainer.models.image_scorer import check_image_model
from videotrain_trainer.networks.adaptation import TRANSFORMER_LATENT_LAYERS, check_image_autoencoder
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, scale_of
from videotrain_trainer.networks.losses.lpips_files import perceptual_files
from videotrain_trainer.networks.registry import row_of_kind
from videotrain_trainer.networks.weights import (
    Weights,
    autoencoder_uri,
    check_weights,
    open_weights,
    starting_fragments,
    weights_uri,
)
from videotrain_trainer.networks.weights.fragments import Computed
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.encoders import check_width
from videotrain_trainer.text.files import WANTED, find_encoders, is_remote

SMALL_FILES = (".json", ".txt", ".model")
"""What tells of text encoders: configurations and tokenizers."""

_ZEROS = Computed(lambda _name, _start, length: torch.zeros(length))
"""In the place of values that are not read."""


def check_model(reference: Reference, stages: Sequence[StageConfig], store: ObjectStore) -> str:
    """What the weights are that a field names.

    Args:
        reference: with a role of `references.WEIGHTS`.
        stages: the stages that read it, as they are configured.
        store: object store.

    Raises:
        TrainerError: they are not there, may not be read, or do not fit.
    """
    return _READERS[reference.role](reference.uri, stages, store)


def _transformer(uri: str, stages: Sequence[StageConfig], store: ObjectStore) -> str:
    weights = open_weights(uri if _any_trains(stages) else weights_uri(uri), store=store)
    for config in stages:
        with torch.device("meta"):
            module = build_transformer(config.model, config.autoencoder, config.text_encoder)
        if config.stage.train is None:
            check_weights(module, weights)
            continue
        begin = config.stage.train.init_from
        fresh = TRANSFORMER_LATENT_LAYERS if begin is not None and begin.adapt == "new-latents" else ()
        starting_fragments(module, weights, _ZEROS, fresh)
    return _told(weights)


def _autoencoder(uri: str, stages: Sequence[StageConfig], store: ObjectStore) -> str:
    drawn = next((config.autoencoder.kind for config in stages if config.stage.autoencoder is None), None)
    weights = open_weights(uri if drawn is None else autoencoder_uri(drawn, uri), store=store)
    for config in stages:
        spec, task = config.autoencoder, config.stage.autoencoder
        if row_of_kind(spec.kind).of_folder is not None:
            if weights.config is None:
                raise ConfigError(f"{uri}: kind diffusers reads its sizes from config.json, which is not there")
            continue
        with torch.device("meta"):
            module = build_autoencoder(spec)
        if task is not None and task.init_from is not None and task.init_from.adapt == "image-autoencoder":
            check_image_autoencoder(module, weights)
            continue
        check_weights(module, weights)
        if task is None:
            scale_of(spec, weights)
    return _told(weights)


def _text_encoder(uri: str, stages: Sequence[StageConfig], store: ObjectStore) -> str:
    with tempfile.TemporaryDirectory(prefix="text-encoder-") as scratch:
        folder, names = _encoder_files(uri, store, Path(scratch))
        folders = find_encoders(folder, uri)
        for field, model, key in (("contextDim", folders.t5, "d_model"), ("pooledDim", folders.clip, "hidden_size")):
            below = model.relative_to(folder).as_posix()
            inside = [name for name in names if name.startswith("" if below == "." else f"{below}/")]
            if not any(name.endswith(".safetensors") for name in inside):
                raise ConfigError(f"spec.textEncoder.weights: {uri}: no *.safetensors beside {below}/config.json")
            width = json.loads((model / "config.json").read_text()).get(key)
            for config in stages:
                wanted = config.text_encoder.context_dim if key == "d_model" else config.text_encoder.pooled_dim
                check_width(field, wanted, width, Path(below))
    return f"T5 and CLIP, {len(names)} files"


def _encoder_files(uri: str, store: ObjectStore, scratch: Path) -> tuple[Path, list[str]]:
    """A folder with the small files, and the names of all."""
    if not is_remote(uri):
        root = local_path(uri)
        return root, sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    objects = [found for found in store.list(uri) if found.uri.endswith(WANTED)]
    if not objects:
        raise ConfigError(f"spec.textEncoder.weights: {uri}: there are no weights below it")
    names = [found.uri.removeprefix(uri).strip("/") for found in objects]
    for name, found in zip(names, objects, strict=True):
        if name.endswith(SMALL_FILES) and not name.endswith(".index.json"):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            store.fetch(found, scratch / name)
    return scratch, names


def _perceptual(uri: str, stages: Sequence[StageConfig], store: ObjectStore) -> str:
    del stages
    return f"{len(perceptual_files(store, uri, 'autoencoder.perceptual.weights'))} files"


def _image_model(uri: str, stages: Sequence[StageConfig], store: ObjectStore) -> str:
    models = [config.stage.curate.image_model for config in stages if config.stage.curate is not None]
    told = {check_image_model(model, store) for model in models if model is not None and model.weights == uri}
    return "; ".join(sorted(told))


def _any_trains(stages: Sequence[StageConfig]) -> bool:
    return any(config.stage.train is not None for config in stages)


def _told(weights: Weights) -> str:
    tensors = weights.shapes
    parameters = sum(torch.Size(shape).numel() for shape in tensors.values())
    return f"{len(tensors)} tensors, {parameters:,} parameters"


_READERS: dict[Role, Callable[[str, Sequence[StageConfig], ObjectStore], str]] = {
    "transformer": _transformer,
    "autoencoder": _autoencoder,
    "textEncoder": _text_encoder,
    "perceptual": _perceptual,
    "imageModel": _image_model,
}
