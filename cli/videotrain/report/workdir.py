"""What a local run left in its working directory and its object store.

W/pods/<pod>-<uid8>/run/videotrain/records-<generation>-<local rank>.jsonl
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import google_crc32c
from botocore.exceptions import ClientError, IncompleteReadError
from pydantic import ValidationError

from videotrain.object_requests import Answer, is_missing, repeated
from videotrain_api.records import (
    TRAINER_RECORD,
    CheckpointRecord,
    SamplesRecord,
    StartedRecord,
    StepRecord,
    TrainerRecord,
    WorkerExit,
)
from videotrain_api.schema import Json
from videotrain_api.storage.seals import FIELD, content
from videotrain_api.vocabulary import DIR_RUN

READINGS = 3
"""Of an object, before it counts as damaged."""
_RECORDS_FILE = re.compile(r"^records-(?P<generation>\d+)-(?P<local_rank>\d+)\.jsonl$")
_POD_FOLDER = re.compile(r"^(?P<pod>.+)-[0-9a-f]{8}$")


class ObjectMissingError(LookupError):
    """There is no object at that URI."""


class DamagedObjectError(ValueError):
    """An object does not fit its checksum."""


class ObjectReader(Protocol):
    """Read access to the run's object store."""

    def get(self, uri: str) -> bytes:
        """Content of an object.

        Raises:
            ObjectMissingError: there is none.
        """

    def download(self, uri: str, path: Path) -> None:
        """Write an object to a file.

        Raises:
            ObjectMissingError: there is none.
        """


class S3Objects:
    """ObjectReader over a boto3 S3 client; file:// URIs, which a data set may have, are read from disk.

    What fails is asked for again before that is believed, and raises what the client raises then (STORE_ERRORS).
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def get(self, uri: str) -> bytes:
        """Content of an object."""
        if uri.startswith("file://"):
            return _local_file(uri).read_bytes()
        bucket, key = split_uri(uri)
        return self._answer(uri, lambda: bytes(self._client.get_object(Bucket=bucket, Key=key)["Body"].read()))

    def head(self, uri: str) -> tuple[int, str]:
        """Bytes of an object of S3, and its entity tag.

        Raises:
            ObjectMissingError: there is none.
        """
        bucket, key = split_uri(uri)
        found = self._answer(uri, lambda: self._client.head_object(Bucket=bucket, Key=key))
        return int(found["ContentLength"]), str(found["ETag"])

    def download(self, uri: str, path: Path) -> None:
        """Write an object to a file."""
        if uri.startswith("file://"):
            shutil.copyfile(_local_file(uri), path)
            return
        bucket, key = split_uri(uri)

        def whole() -> None:
            size = int(self._client.head_object(Bucket=bucket, Key=key)["ContentLength"])
            self._client.download_file(bucket, key, str(path))
            if (found := path.stat().st_size) != size:
                raise IncompleteReadError(actual_bytes=found, expected_bytes=size)

        self._answer(uri, whole)

    def _answer(self, uri: str, request: Callable[[], Answer]) -> Answer:
        try:
            return repeated(request)
        except ClientError as error:
            if is_missing(error):
                raise ObjectMissingError(f"{uri}: there is no such object") from error
            raise


def _local_file(uri: str) -> Path:
    path = Path(url2pathname(urlsplit(uri).path))
    if not path.is_file():
        raise ObjectMissingError(f"{uri}: there is no such file")
    return path


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` becomes (`bucket`, `a/b`).

    Raises:
        ValueError: it is another kind of URI.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ValueError(f"{uri!r} is not an object; s3://BUCKET/KEY is needed")
    return bucket, key


def read_sealed(objects: ObjectReader, uri: str) -> Json:
    """The fields of a sealed JSON object. One that does not fit is read again before that is believed.

    Raises:
        ObjectMissingError: there is none.
        DamagedObjectError: none of READINGS readings fitted.
    """
    problem = ""
    for _ in range(READINGS):
        try:
            fields = json.loads(objects.get(uri))
            stored = fields.pop(FIELD)
            if stored == f"{google_crc32c.value(content(fields)):08x}":
                return dict(fields)
            problem = f"it does not fit its checksum {stored!r}"
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            problem = f"not a JSON object with a checksum: {error!r}"
    raise DamagedObjectError(f"{uri}: damaged, as {READINGS} readings say: {problem}")


@dataclass(frozen=True)
class GenerationRecords:
    """What the workers of one generation wrote, once per world and not once per rank."""

    number: int
    stage: str
    pods: tuple[str, ...]
    """Pods whose workers wrote something."""
    started: StartedRecord | None
    steps: tuple[StepRecord, ...]
    """In order of step, the lost ones too."""
    exits: tuple[tuple[str, WorkerExit], ...]
    """(pod, exit)."""


@dataclass(frozen=True)
class RunRecords:
    """All records of a run."""

    generations: tuple[GenerationRecords, ...] = ()
    """In order of number."""
    checkpoints: tuple[CheckpointRecord, ...] = ()
    """In order of commit."""
    samples: tuple[SamplesRecord, ...] = ()
    """Of each step of a stage the newest one with the time of all, in order."""
    torn_lines: int = 0
    """Lines that a killed worker left half written; they were skipped."""
    bad_lines: tuple[str, ...] = ()
    """Complete lines that are no record, as `file:line`."""
    _kept: dict[str, tuple[StepRecord, ...]] = field(default_factory=dict, repr=False)

    def kept_steps(self, stage: str) -> tuple[StepRecord, ...]:
        """The steps that count, in order: of each step the record of the highest generation, without lost ones."""
        return self._kept.get(stage, ())

    def generation(self, number: int) -> GenerationRecords | None:
        """Records of one generation, if it left any."""
        return next((g for g in self.generations if g.number == number), None)


@dataclass
class _Collected:
    by_generation: dict[int, list[tuple[str, TrainerRecord]]] = field(default_factory=dict)
    torn: int = 0
    bad: list[str] = field(default_factory=list)


def read_records(workdir: Path) -> RunRecords:
    """Read every records file under W/pods. A folder without any gives an empty result."""
    collected = _Collected()
    for pod, path in record_files(workdir):
        for record in _read_file(path, collected):
            collected.by_generation.setdefault(record.generation, []).append((pod, record))
    generations = tuple(_generation(n, found) for n, found in sorted(collected.by_generation.items()))
    records = [r for found in collected.by_generation.values() for _, r in found]
    # One that is told twice counts once.
    checkpoints = {(r.stage, r.generation, r.step): r for r in records if isinstance(r, CheckpointRecord)}
    samples: dict[tuple[str, int], SamplesRecord] = {}
    for r in sorted((r for r in records if isinstance(r, SamplesRecord)), key=lambda r: r.generation):
        # Told again by a generation that did the step again: what both took is the time that it took.
        before = samples.get((r.stage, r.step))
        took_us = r.duration_us + (before.duration_us if before else 0)
        samples[r.stage, r.step] = r.model_copy(update={"duration_us": took_us})
    return RunRecords(
        generations=generations,
        samples=tuple(samples[place] for place in sorted(samples)),
        checkpoints=tuple(sorted(checkpoints.values(), key=lambda r: (r.committed_at, r.step))),
        torn_lines=collected.torn,
        bad_lines=tuple(collected.bad),
        _kept=_kept(generations),
    )


def record_files(workdir: Path) -> Iterator[tuple[str, Path]]:
    """(pod name, records file) of every pod, in a fixed order."""
    for folder in sorted((workdir / "pods").glob("*")):
        match = _POD_FOLDER.match(folder.name)
        for path in sorted((folder / DIR_RUN).glob("records-*.jsonl")):
            if _RECORDS_FILE.match(path.name):
                yield (match["pod"] if match else folder.name), path


def _read_file(path: Path, collected: _Collected) -> Iterator[TrainerRecord]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield TRAINER_RECORD.validate_json(line)
        except ValidationError:
            # Only a line without its newline can be torn; anything else is a fault worth naming.
            if number == len(lines):
                collected.torn += 1
            else:
                collected.bad.append(f"{path}:{number}")


def _generation(number: int, found: list[tuple[str, TrainerRecord]]) -> GenerationRecords:
    steps: dict[int, StepRecord] = {}
    started: StartedRecord | None = None
    for _, record in found:
        if isinstance(record, StepRecord):
            steps.setdefault(record.step, record)
        elif isinstance(record, StartedRecord) and (started is None or record.at > started.at):
            started = record  # the world is ready when its last worker is
    return GenerationRecords(
        number=number,
        stage=found[0][1].stage,
        pods=tuple(sorted({pod for pod, _ in found})),
        started=started,
        steps=tuple(steps[s] for s in sorted(steps)),
        exits=tuple((pod, r) for pod, r in found if isinstance(r, WorkerExit)),
    )


def _kept(generations: tuple[GenerationRecords, ...]) -> dict[str, tuple[StepRecord, ...]]:
    best: dict[str, dict[int, StepRecord]] = {}
    for generation in generations:
        steps = best.setdefault(generation.stage, {})
        for step in [s for s in steps if s > _resumed_step(generation)]:
            del steps[step]  # done again by this generation, or lost for good if it died before
        steps.update({r.step: r for r in generation.steps})
    return {stage: tuple(steps[s] for s in sorted(steps)) for stage, steps in best.items()}


def _resumed_step(generation: GenerationRecords) -> float:
    if generation.started is None:
        return generation.steps[0].step - 1 if generation.steps else float("inf")
    return generation.started.resumed_step
