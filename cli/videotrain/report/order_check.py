"""Which samples made it into the final weights: read from the order segments, recomputed, never taken on trust."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field

import google_crc32c
from pydantic import ValidationError

from videotrain.report.workdir import ObjectMissingError, ObjectReader
from videotrain_api.schema import ManifestError
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine


@dataclass(frozen=True)
class OrderCheck:
    """The order of one stage, as its committed checkpoint proves it."""

    stage: str
    step: int
    """Step of the checkpoint."""
    consumed: int
    """Samples that went into the weights."""
    repeated: int
    """Samples seen again before every clip of their bucket was seen in that pass."""
    lost: int
    """Samples that the checkpoint counts and no order segment holds."""
    order_sha256: str
    """SHA-256 over one line `<step> <id> <id> ...` per step, recomputed here."""
    problems: list[str] = field(default_factory=list)
    """Contradictions, for people; empty if all is well."""
    sources: dict[str, int] = field(default_factory=dict)
    """Samples by source that went into the weights; empty if the dataset has not several."""


def check_order(objects: ObjectReader, commit_uri: str) -> OrderCheck:
    """Check the order of a committed checkpoint.

    Args:
        objects: the run's object store.
        commit_uri: its commit.json.

    Raises:
        ObjectMissingError: there is no such checkpoint.
        ManifestError: commit.json is damaged.
    """
    manifest = CheckpointManifest.from_wire(json.loads(objects.get(commit_uri)))
    lines, problems = _lines(objects, manifest)
    consumed = sum(len(line.ids) for line in lines)
    digest = order_digest(lines)
    if digest != manifest.order_sha256:
        problems.append(f"order segments hash to {digest}, the checkpoint says {manifest.order_sha256}")
    return OrderCheck(
        stage=manifest.stage,
        step=manifest.step,
        consumed=consumed,
        repeated=count_repeated(lines),
        lost=max(0, manifest.samples - consumed),
        order_sha256=digest,
        problems=problems,
        sources=_by_source(lines),
    )


def order_digest(lines: list[OrderLine]) -> str:
    """SHA-256 over one line `<step> <id> <id> ...` per step, newlines included."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update((" ".join([str(line.step), *line.ids]) + "\n").encode())
    return digest.hexdigest()


def count_repeated(lines: list[OrderLine]) -> int:
    """Samples that a bucket gave twice within one pass over its clips, or over those of one source.

    A bucket is an endless stream in which every pass holds each of its n clips once, whatever the world did. n is the
    number of distinct clips, or more if the recorded pass numbers say that the first pass was longer. With several
    sources it is a stream of each.
    """
    by_stream: dict[tuple[str, str], list[OrderLine]] = {}
    steps: set[int] = set()
    again = 0
    for line in lines:
        if line.step in steps:  # a whole step twice in the order: all of it, whatever the pass
            again += len(line.ids)
            continue
        steps.add(line.step)
        if line.sources is None:
            by_stream.setdefault((line.bucket, ""), []).append(line)
        for source in line.sources or []:
            part = line.model_copy(update={"epoch": source.epoch, "ids": [line.ids[place] for place in source.places]})
            by_stream.setdefault((line.bucket, source.name), []).append(part)
    return again + sum(_repeated_in_stream(found) for found in by_stream.values())


def _by_source(lines: list[OrderLine]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for line in lines:
        found.update({source.name: len(source.places) for source in line.sources or []})
    return dict(sorted(found.items()))


def _repeated_in_stream(lines: list[OrderLine]) -> int:
    ids: list[str] = []
    clips = 1
    for line in lines:
        # The first sample of the step lies in pass `epoch`: its position // n must equal it.
        clips = max(clips, len(ids) // (line.epoch + 1) + 1)
        ids += line.ids
    clips = max(clips, len(set(ids)))
    passes = (Counter(ids[start : start + clips]) for start in range(0, len(ids), clips))
    return sum(count - 1 for one_pass in passes for count in one_pass.values())


def _lines(objects: ObjectReader, manifest: CheckpointManifest) -> tuple[list[OrderLine], list[str]]:
    lines: list[OrderLine] = []
    problems: list[str] = []
    for segment in manifest.order:
        try:
            data = objects.get(segment.uri)
            found = [OrderLine.model_validate_json(text) for text in data.splitlines() if text.strip()]
        except (ObjectMissingError, ValidationError, ManifestError) as error:
            problems.append(f"{segment.uri}: {error}")
            continue
        checksum = f"{google_crc32c.value(data):08x}"
        if checksum != segment.crc32c:
            problems.append(f"{segment.uri}: CRC-32C {checksum}, the checkpoint says {segment.crc32c}")
        # A segment may reach beyond the step from which a later generation went on.
        lines += [line for line in found if segment.first_step <= line.step <= segment.last_step]
    steps = [line.step for line in lines]
    if steps != list(range(1, manifest.step + 1)):
        problems.append(f"order segments hold {_odd_steps(steps, manifest.step)} of steps 1 to {manifest.step}")
    return lines, problems


def _odd_steps(steps: list[int], last: int) -> str:
    counts = Counter(steps)
    missing = [s for s in range(1, last + 1) if not counts[s]]
    again = [s for s, n in counts.items() if n > 1]
    strange = [s for s in counts if not 1 <= s <= last]
    parts = [("no line", missing), ("more than one line", again), ("lines beyond", strange)]
    shown = [f"{word} for {len(found)} steps (first {found[0]})" for word, found in parts if found]
    return " and ".join(shown) or "lines out of order"
