"""Reading a manifest from a YAML file: one VideoTrainingRun, and the Secrets that it names."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import API_VERSION, KIND

ALLOWED_KINDS = (KIND, "Secret")


class ManifestFileError(ValueError):
    """A manifest file that cannot be read; the message names file, line and what to change."""


@dataclass(frozen=True)
class ManifestFile:
    """The documents of one file, as plain JSON data."""

    run: dict[str, Any]
    """The VideoTrainingRun, not validated yet."""
    secrets: list[dict[str, Any]] = field(default_factory=list)
    """The Secrets beside it."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys, of which YAML itself would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                problem = f"key '{name}' is given twice, first in line {seen[name]}; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[name] = line
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(  # kubectl reads 5e-5 as a number; YAML 1.1, and so PyYAML, wants 5.0e-5
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_manifest(path: Path) -> ManifestFile:
    """Read a file of one or more YAML documents.

    Raises:
        ManifestFileError: the file is missing, is not YAML, or holds other documents than one VideoTrainingRun and
            Secrets.
    """
    documents = [(n, d) for n, d in enumerate(_documents(path), start=1) if d is not None]
    runs: list[dict[str, Any]] = []
    secrets: list[dict[str, Any]] = []
    for number, document in documents:
        (runs if _kind(path, number, document) == KIND else secrets).append(document)
    if len(runs) != 1:
        found = f"{len(runs)} documents of kind {KIND}"
        raise ManifestFileError(f"{path}: found {found}; exactly one is needed (documents are separated by '---')")
    return ManifestFile(run=runs[0], secrets=secrets)


def load_run(path: Path) -> VideoTrainingRun:
    """Read a file and check its run.

    Raises:
        ManifestFileError: the file cannot be read.
        ManifestError: the run is refused; `problems` lists everything wrong with it.
    """
    return parse_run(read_manifest(path).run)


def _documents(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestFileError(f"{path}: there is no such file; name a YAML file with a {KIND}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ManifestFileError(f"{path}: cannot be read: {error.strerror}; name a readable YAML file") from None
    except UnicodeDecodeError as error:
        raise ManifestFileError(f"{path}: byte {error.start} is not UTF-8; a manifest is YAML text") from None
    try:
        return list(yaml.load_all(text, _StrictLoader))
    except yaml.YAMLError as error:
        raise ManifestFileError(_yaml_message(path, error)) from None


def _yaml_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    shown = f"{context}: {problem}" if context else problem
    snippet = mark.get_snippet() if mark else None
    return f"{where}: not valid YAML: {shown}" + (f"\n{snippet}" if snippet else "")


def _kind(path: Path, number: int, document: Any) -> str:
    where = f"{path}: document {number}"
    if not isinstance(document, dict):
        raise ManifestFileError(
            f"{where}: is a {type(document).__name__}; a mapping with apiVersion and kind is needed"
        )
    kind = document.get("kind")
    if kind not in ALLOWED_KINDS:
        name = (document.get("metadata") or {}).get("name") if isinstance(document.get("metadata"), dict) else None
        label = f"kind {kind!r}" + (f" ('{name}')" if name else "")
        raise ManifestFileError(f"{where}: {label} does not belong here; allowed kinds: {', '.join(ALLOWED_KINDS)}")
    version = document.get("apiVersion")
    wanted = API_VERSION if kind == KIND else "v1"
    if version != wanted:
        raise ManifestFileError(f"{where}: apiVersion {version!r} of kind {kind} is not known; use {wanted!r}")
    return str(kind)
