"""Where the files of T5 and CLIP lie: a mounted directory as it is, or objects fetched once to the local disk.

Which folder holds which encoder is read from its config.json, so every usual layout works: `t5/` and `clip/`, the
published names of both repositories, or diffusers' `text_encoder*` with `tokenizer*` beside them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.files import local_path, replacing
from videotrain_trainer.storage import ObjectInfo, ObjectStore, disk_full_is_clear

WANTED = (".json", ".txt", ".model", ".safetensors")
"""Endings that are fetched; other formats of the same weights stay where they are."""
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")


@dataclass(frozen=True, kw_only=True)
class EncoderFolders:
    """Folders with a model or a tokenizer in the layout of `transformers`."""

    t5: Path
    t5_tokenizer: Path
    clip: Path
    clip_tokenizer: Path


def is_remote(source: str) -> bool:
    """Whether its files have to be fetched."""
    return "://" in source and not source.startswith("file://")


def local_folder(source: str, store: ObjectStore, cache: Path, field: str = "spec.textEncoder.weights") -> Path:
    """A directory on this machine with the files behind a path or URI.

    Workers of one pod share the cache: the first one fetches, the others wait.

    Args:
        source: path or URI of a folder.
        store: serves s3://.
        cache: where fetched files stay.
        field: that the source stands in, for messages.

    Raises:
        ConfigError: there is nothing.
    """
    if not is_remote(source):
        return local_path(source)
    objects = [found for found in store.list(source) if found.uri.endswith(WANTED)]
    if not objects:
        raise ConfigError(f"{field}: {source}: there are no weights below it")
    name = hashlib.sha256("\n".join(f"{found.uri} {found.etag}" for found in objects).encode()).hexdigest()[:16]
    target = cache / f"encoder-{name}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"encoder-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _fetch_all(store, source, objects, target)
    return target


def _fetch_all(store: ObjectStore, source: str, objects: list[ObjectInfo], target: Path) -> None:
    """Fetch to a folder that gets its name when it is complete."""
    with replacing(target) as partial:
        for found in objects:
            path = partial / found.uri.removeprefix(source).strip("/")
            with disk_full_is_clear(partial):
                path.parent.mkdir(parents=True, exist_ok=True)
                store.fetch(found, path)


def find_encoders(folder: Path, source: str) -> EncoderFolders:
    """Both encoders and their tokenizers below a folder.

    Args:
        folder: on this machine.
        source: as the user wrote it, for messages.

    Raises:
        ConfigError: an encoder or tokenizer is missing, or there are several of a kind.
    """
    models: dict[str, list[Path]] = {"t5": [], "clip": []}
    for config in sorted(folder.rglob("config.json")):
        kind = _kind(str(_json(config).get("model_type", "")))
        if kind:
            models[kind].append(config.parent)
    for kind, found in models.items():
        if len(found) != 1:
            where = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
            raise ConfigError(
                f"spec.textEncoder.weights: {source}: exactly one folder with a config.json of model_type {kind!r} is "
                f"needed; found: {where}"
            )
    (t5,), (clip,) = models["t5"], models["clip"]
    return EncoderFolders(
        t5=t5, t5_tokenizer=_tokenizer(folder, t5, "t5"), clip=clip, clip_tokenizer=_tokenizer(folder, clip, "clip")
    )


def _tokenizer(folder: Path, model: Path, kind: str) -> Path:
    """The model's own folder, else the one whose tokenizer_config.json names the kind."""
    if any((model / name).exists() for name in TOKENIZER_FILES):
        return model
    for config in sorted(folder.rglob("tokenizer_config.json")):
        if kind in str(_json(config).get("tokenizer_class", "")).lower():
            return config.parent
    raise ConfigError(
        f"{folder}: no tokenizer of kind {kind!r}: put its files beside {model.name}/config.json or in a folder with a "
        "tokenizer_config.json"
    )


def _kind(model_type: str) -> str | None:
    if model_type == "t5":
        return "t5"
    return "clip" if model_type in ("clip", "clip_text_model") else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable: {error}") from error
    return found
