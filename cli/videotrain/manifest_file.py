"""Reading manifests from YAML files: VideoTrainingRuns, and the Secrets that they name."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TextIO

from videotrain.strict_yaml import YamlRefused, parse_documents
from videotrain_api.render.defaults import NO_DEFAULTS, default_problems, parse_defaults
from videotrain_api.render.pod_policy import pod_problems
from videotrain_api.resource.prices import PriceList
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy
from videotrain_api.schema import Json, ManifestError
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import API_VERSION, KIND, RUN_DEFAULTS_KEY

ALLOWED_KINDS = (KIND, "Secret")
LARGEST: Final = 3 * 1024 * 1024
"""Bytes of a file: what an API server takes in one request."""
STANDARD_INPUT: Final = Path("-")
SNIPPET: Final = 75
"""Characters that are shown of a refused line."""


class ManifestFileError(ValueError):
    """A manifest file that cannot be read; the message names file, line and what to change."""


@dataclass(frozen=True)
class Source:
    """A manifest as a command line names it."""

    path: Path
    """`-` is standard input."""
    changes: tuple[str, ...] = ()
    """Assignments of `--set`."""
    number: int | None = None
    """Which of several VideoTrainingRuns, from 1; None: the only one."""

    def __str__(self) -> str:
        """For messages."""
        name = "standard input" if self.path == STANDARD_INPUT else str(self.path)
        return name if self.number is None else f"{name}: run {self.number}"


@dataclass(frozen=True)
class ManifestFile:
    """One run of a file with the Secrets of that file, as plain JSON data."""

    run: dict[str, Any]
    """The VideoTrainingRun, not validated yet."""
    secrets: list[dict[str, Any]] = field(default_factory=list)
    """The Secrets beside it."""


def sources(paths: Sequence[Path], changes: Sequence[str] = ()) -> list[Source]:
    """A source for each VideoTrainingRun in the files.

    Args:
        paths: `-` is standard input. One that cannot be read is one source, and whoever reads it tells.
        changes: assignments of `--set`, for each of them.
    """
    found: list[Source] = []
    for path in paths:
        try:
            runs = sum(1 for each in _documents(path) if isinstance(each, dict) and each.get("kind") == KIND)
        except ManifestFileError:
            runs = 1
        numbers = range(1, runs + 1) if runs > 1 else [None]
        found += [Source(path, tuple(changes), number) for number in numbers]
    return found


def read_manifest(source: Path | Source) -> ManifestFile:
    """Read a file of one or more YAML documents.

    Raises:
        ManifestFileError: the file is missing, too large, no YAML, holds what JSON does not know, or other documents
            than one VideoTrainingRun (that which the source says, if there are several) and Secrets.
        UsageError: a change of the source is none.
    """
    source = source if isinstance(source, Source) else Source(source)
    label = str(source)
    documents = [(n, d) for n, d in enumerate(_documents(source.path), start=1) if d is not None]
    runs: list[dict[str, Any]] = []
    secrets: list[dict[str, Any]] = []
    for number, document in documents:
        if _kind(label, number, document) == KIND:
            runs.append(document)
        else:
            _check_secret(f"{label}: document {number}", document)
            secrets.append(document)
    if source.number is not None:
        runs = runs[source.number - 1 : source.number]
    if len(runs) != 1:
        found = f"{len(runs)} documents of kind {KIND}"
        raise ManifestFileError(f"{label}: found {found}; exactly one is needed (documents are separated by '---')")
    if source.changes:
        # Here, since the schema of the resource takes longer to make than most commands.
        from videotrain.overrides import set_field

        for change in source.changes:
            set_field(runs[0], change)
    return ManifestFile(run=runs[0], secrets=secrets)


def read_defaults(path: Path | None) -> RunDefaults:
    """A cluster's defaults for runs.

    Args:
        path: the values that the operator's chart was installed with, or the ConfigMap that it made of them; none if
            None.

    Raises:
        ManifestFileError: the file cannot be read, or there is something wrong with the defaults.
    """
    if path is None:
        return NO_DEFAULTS
    documents = [each for each in _documents(path) if each is not None]
    found = documents[0] if len(documents) == 1 and isinstance(documents[0], dict) else {}
    given: Any
    if found.get("kind") == "ConfigMap":
        data = found.get("data") or {}
        text = data.get(RUN_DEFAULTS_KEY) if isinstance(data, dict) else None
        try:
            given = json.loads(text if isinstance(text, str) else "")
        except json.JSONDecodeError as error:
            raise ManifestFileError(f"{path}: data[{RUN_DEFAULTS_KEY!r}]: no JSON: {error}") from None
    elif "runDefaults" not in found:
        raise ManifestFileError(
            f"{path}: no runDefaults; name the values of the operator's chart, or its ConfigMap with the defaults"
        )
    else:
        given = found["runDefaults"] or {}
        if not isinstance(given, dict):
            raise ManifestFileError(f"{path}: runDefaults: a mapping is needed")
        # As the chart does: a value that is empty is none.
        given = {name: value for name, value in given.items() if value or isinstance(value, int)}
    try:
        return parse_defaults(given)
    except ManifestError as error:
        told = "".join(f"\n  {problem}" for problem in error.problems)
        raise ManifestFileError(f"{path}: the defaults are refused:{told}") from None


def read_price_list(path: Path | None) -> PriceList:
    """What a cluster's nodes and its object store cost.

    Args:
        path: the values that the operator's chart was installed with, or their part `priceList` alone; no prices if
            None.

    Raises:
        ManifestFileError: the file cannot be read, or there is something wrong with the prices.
    """
    if path is None:
        return PriceList()
    documents = [each for each in _documents(path) if each is not None]
    found = documents[0] if len(documents) == 1 and isinstance(documents[0], dict) else {}
    given = found.get("priceList", found)
    if not given:
        raise ManifestFileError(f"{path}: no priceList; name the values of the operator's chart, or this part of them")
    try:
        return PriceList.from_wire(given)
    except ManifestError as error:
        told = "".join(f"\n  {problem}" for problem in error.problems)
        raise ManifestFileError(f"{path}: the prices are refused:{told}") from None


def load_run(
    source: Path | Source,
    pod_policy: PodPolicy = DEFAULT_POD_POLICY,
    defaults: RunDefaults = NO_DEFAULTS,
    *,
    fitting: bool = True,
) -> VideoTrainingRun:
    """Read a file and check its run.

    Args:
        source: manifest.
        pod_policy: what its worker pods have to keep to, as the operator was told by the chart.
        defaults: of the cluster, likewise; where they are enforced the run may not override them.
        fitting: refuse rows that a GPU's memory has no room for, too.

    Raises:
        ManifestFileError: the file cannot be read.
        ManifestError: the run is refused; `problems` lists everything wrong with it.
        UsageError: a change of the source is none.
    """
    run = parse_run(read_manifest(source).run, fitting=fitting)
    if problems := [*default_problems(run, defaults), *pod_problems(run, pod_policy)]:
        raise ManifestError(problems)
    return run


def _documents(path: Path) -> list[Any]:
    try:
        if path == STANDARD_INPUT:
            data = _standard_input(sys.stdin)
        else:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ManifestFileError(f"{path}: there is no such file; name a YAML file with a {KIND}") from None
    except OSError as error:
        raise ManifestFileError(f"{path}: cannot be read: {error.strerror}; name a readable YAML file") from None
    if len(data) > LARGEST:
        raise ManifestFileError(
            f"{path}: is larger than {LARGEST} bytes, the most that an API server takes; shorten it"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestFileError(f"{path}: byte {error.start} is not UTF-8; a manifest is YAML text") from None
    try:
        return parse_documents(text)
    except YamlRefused as error:
        where = f"{path}:{error.line}:{error.column}"
        raise ManifestFileError(f"{where}: {error.problem}{_snippet(text, error.line, error.column)}") from None


@lru_cache(maxsize=1)
def _standard_input(stream: TextIO) -> bytes:
    """What it holds, for several readers: it can be read once only."""
    return stream.buffer.read(LARGEST + 1)


def _snippet(text: str, line: int, column: int) -> str:
    """The refused line with a mark below the place; nothing at the end of the file."""
    lines = text.splitlines()
    if line > len(lines):
        return ""
    start = max(0, column - 1 - SNIPPET // 2)
    shown = lines[line - 1][start : start + SNIPPET].replace("\t", " ")
    return f"\n    {''.join(sign if sign.isprintable() else '?' for sign in shown)}\n    {' ' * (column - 1 - start)}^"


def _check_secret(where: str, secret: Json) -> None:
    head = secret.get("metadata")
    if not isinstance(head, dict) or not isinstance(head.get("name"), str) or not head["name"]:
        raise ManifestFileError(f"{where}: metadata.name of the Secret is missing; give it a name")
    for part in ("data", "stringData"):
        values = secret.get(part) or {}
        if not isinstance(values, dict):
            raise ManifestFileError(f"{where}: {part} of Secret '{head['name']}': a mapping of texts is needed")
        for key, value in values.items():
            if not isinstance(value, str) or (part == "data" and not _is_base64(value)):
                # Not the value itself: it may be a secret.
                wanted = "base64" if part == "data" else "a text in quotes"
                raise ManifestFileError(f"{where}: {part}[{key!r}] of Secret '{head['name']}': {wanted} is needed")


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return False
    return True


def _kind(path: str, number: int, document: Any) -> str:
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
