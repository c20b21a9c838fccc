"""Which samples of an encoded set a stage trains on, grouped into its buckets: array arithmetic over the sample index.

What all samples of a kind share decides most of it, so a bucket that is taken whole costs nothing, however large. Where
scores, draws or the length of text decide, the columns that it takes are read once per node: the numbers that come of
it stay in the node's cache, for its other processes and for restarts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from videotrain_api.config.text_classes import TEXT_CLASSES, text_class
from videotrain_api.resource.stages import Bucket, ScoreBounds, TrainTask
from videotrain_trainer.checksums import sealed_json, unsealed_json
from videotrain_trainer.data.buckets import keeper, preference, row_name, uniform
from videotrain_trainer.data.checked_file import CheckedFile, CheckedFileInfo, Column, checked_bytes
from videotrain_trainer.data.sample_index import BucketIndex, SampleIndex, text_of
from videotrain_trainer.errors import DamagedObject, DataError
from videotrain_trainer.files import replacing
from videotrain_trainer.node_cache import locked

AT_ONCE: Final = 1 << 16
"""Rows of which temporary arrays are made at a time: they stay in the processor's cache, and the system need not find
memory for them anew."""
BUCKETS_AT_ONCE: Final = 4
"""Buckets that are looked through beside each other, each with some bytes per row of temporary memory."""
FOLDER: Final = "selections"
log = logging.getLogger(__name__)


class HeldOut(NamedTuple):
    """A sample that validation uses and training does not."""

    bucket: BucketIndex
    number: int
    """Row of the bucket's index."""
    row: str
    """buckets.row_name of the row that it was encoded for."""


@dataclass(frozen=True)
class Group:
    """Samples that are trained together, in order of uid."""

    name: str
    """Of the bucket of the order."""
    row: Bucket
    """Of the stage's bucket table."""
    rows: tuple[str, ...]
    """Names of the rows that its samples were encoded for."""
    bucket: BucketIndex
    numbers: Column | None
    """Rows of the bucket's index, ascending; all of them if None."""
    digest: int
    """Sum of sample_index.sample_digests, modulo 2^64."""
    source: str | None = None
    """Of dataset.sources, if samples are told apart by it."""

    @property
    def size(self) -> int:
        """Samples."""
        return self.bucket.info.samples if self.numbers is None else len(self.numbers)

    def number(self, index: int) -> int:
        """Row of the index of an element."""
        return index if self.numbers is None else int(self.numbers[index])


@dataclass(frozen=True)
class StageSamples:
    """What a stage trains and validates on."""

    groups: tuple[Group, ...]
    """Sorted by name, those of one name by source."""
    held_out: tuple[HeldOut, ...]
    selected: int
    """Samples of the set within `select`, of whatever row."""


def stage_samples(
    index: SampleIndex, task: TrainTask, seed: int, longest: int, volume: Path | None, by_source: bool = False
) -> StageSamples:
    """The samples of a stage.

    Args:
        index: of the set.
        task: of the stage: its bucket table, selection, length classes and validation.
        seed: of the stage.
        longest: caption that the text encoder allows, tokens.
        volume: the node's cache, where what was found is kept; nothing is if None.
        by_source: tell the sources that the set was made of apart.
    """
    choice = _Choice(index, task, seed, longest, by_source)
    if volume is None or choice.is_whole():
        return choice.make()
    folder = volume / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    parts = [index.identity, seed, longest, [row.to_wire() for row in task.buckets], task.attend_padding]
    parts += [[bound.to_wire() for bound in task.select], task.validation.to_wire() if task.validation else None]
    parts += ["by source"] if by_source else []
    path = folder / sha256(json.dumps(parts).encode()).hexdigest()[:32]
    with locked(path.with_suffix(".lock")):
        if path.exists():
            try:
                return _kept(path, choice)
            except (ValueError, OSError, DamagedObject) as error:
                log.warning("%s is damaged and made again: %s", path, error)
        made = choice.make()
        with replacing(path) as listed, replacing(path.with_suffix(".idx")) as data:
            _keep(made, choice, data, listed)
    return made


@dataclass(frozen=True)
class _Choice:
    """The arithmetic of one stage over one index."""

    index: SampleIndex
    task: TrainTask
    seed: int
    longest: int
    by_source: bool

    def is_whole(self) -> bool:
        """Does no column have to be read?"""
        return self.task.validation is None and all(
            self._whole(bucket)
            and len(self._classes(bucket)) == len(self._batches(bucket)) == len(self._sources(bucket)) == 1
            for bucket in self.index.buckets
            if self._taken(bucket)
        )

    def make(self) -> StageSamples:
        """All groups."""
        with ThreadPoolExecutor(BUCKETS_AT_ONCE, thread_name_prefix="select") as pool:
            groups = list(chain.from_iterable(pool.map(self._groups, self.index.buckets)))
        groups.sort(key=lambda group: (group.name, group.source or ""))
        held_out: tuple[HeldOut, ...] = ()
        if self.task.validation is not None:
            groups, held_out = self._hold_out(groups)
        selected = sum(self._selected(bucket) for bucket in self.index.buckets)
        return StageSamples(tuple(groups), held_out, selected)

    def _groups(self, bucket: BucketIndex) -> list[Group]:
        taken = self._taken(bucket)
        if not taken:
            return []
        numbers = None if self._whole(bucket) else self._numbers(bucket, taken)
        found = []
        for name, of_class in self._by_class(bucket, numbers):
            for place, (batch, mine) in enumerate(self._by_batch(bucket, of_class)):
                # Two rows may share a shape (a long clip's rest); they only share a bucket if they share a batch size.
                if mine is None or len(mine):
                    named = f"{name} x{batch}" if place else name
                    parts = self._by_source(bucket, mine)
                    found += [self._group(named, bucket, part, source=source) for source, part in parts]
        return found

    def _sources(self, bucket: BucketIndex) -> dict[str | None, list[int]]:
        """Kinds by source, if sources are told apart; sorted."""
        found: dict[str | None, list[int]] = {}
        for number, kind in sorted(enumerate(bucket.info.kinds), key=lambda pair: pair[1].source or ""):
            found.setdefault(kind.source if self.by_source else None, []).append(number)
        return found

    def _by_source(self, bucket: BucketIndex, numbers: Column | None) -> list[tuple[str | None, Column | None]]:
        sources = self._sources(bucket)
        if len(sources) == 1:
            return [(next(iter(sources)), numbers)]
        kind = bucket.file().column("kind")
        every: Column = np.arange(len(kind), dtype="<u4") if numbers is None else numbers
        parts = [(source, every[np.isin(kind[every], kinds)]) for source, kinds in sources.items()]
        return [(source, part) for source, part in parts if len(part)]

    def _group(
        self,
        name: str,
        bucket: BucketIndex,
        numbers: Column | None,
        row: Bucket | None = None,
        source: str | None = None,
    ) -> Group:
        kinds = bucket.info.kinds
        if numbers is None:
            present = list(range(len(kinds)))
            digest = sum(kind.digest for kind in kinds)
            first = int(bucket.file().row("kind", 0)) if len({kind.row for kind in kinds}) > 1 else 0
        else:
            of_rows = bucket.file().column("kind")[numbers]
            first, present = int(of_rows[0]), np.flatnonzero(np.bincount(of_rows)).tolist()
            digest = self._digest(bucket, numbers, present)
        by_name = self._rows
        rows = tuple(sorted({kinds[number].row for number in present}))
        return Group(name, row or by_name[kinds[first].row], rows, bucket, numbers, digest % 2**64, source)

    @staticmethod
    def _digest(bucket: BucketIndex, numbers: Column, present: Sequence[int]) -> int:
        kinds = [bucket.info.kinds[number] for number in present]
        if sum(kind.samples for kind in kinds) == len(numbers):
            return sum(kind.digest for kind in kinds)
        parts = (numbers[at : at + AT_ONCE] for at in range(0, len(numbers), AT_ONCE))
        return sum(int(bucket.digests(part).sum()) for part in parts)

    @cached_property
    def _rows(self) -> dict[str, Bucket]:
        return {row_name(row): row for row in self.task.buckets}

    def _taken(self, bucket: BucketIndex) -> dict[int, list[tuple[Bucket, bool]]]:
        """Kinds that the stage may train on, each with the draws that a clip must win or lose for it."""
        found = {}
        for number, kind in enumerate(bucket.info.kinds):
            key = (kind.row, *kind.clip_rows)  # there are few, in however many buckets
            if key not in self._draws:
                self._draws[key] = needed_draws(kind.row, kind.clip_rows, self.task.buckets)
            draws = self._draws[key]
            if draws is not None:
                found[number] = draws
        return found

    @cached_property
    def _draws(self) -> dict[tuple[str, ...], list[tuple[Bucket, bool]] | None]:
        return {}

    def _whole(self, bucket: BucketIndex) -> bool:
        taken = self._taken(bucket)
        return len(taken) == len(bucket.info.kinds) and not any(taken.values()) and not self._bounds(bucket)

    def _bounds(self, bucket: BucketIndex) -> list[ScoreBounds]:
        """Bounds that leave some of the bucket's samples out."""
        found = []
        for bound in self.task.select:
            score = bucket.info.scores.get(bound.score)
            if score is None:
                raise DataError(f"select: {bound.score} was not measured when this set was curated; curate it anew")
            low = bound.min is not None and (score.lowest is None or score.lowest < bound.min)
            high = bound.max is not None and (score.highest is None or score.highest > bound.max)
            found += [bound] if low or high else []
        return found

    def _within(self, bucket: BucketIndex) -> Column:
        within = np.ones(bucket.info.samples, np.bool_)
        for bound in self._bounds(bucket):
            score = bucket.score(bound.score)
            within &= (score >= (-np.inf if bound.min is None else bound.min)) & (
                score <= (np.inf if bound.max is None else bound.max)
            )
        return within

    def _selected(self, bucket: BucketIndex) -> int:
        return int(self._within(bucket).sum()) if self._bounds(bucket) else bucket.info.samples

    def _numbers(self, bucket: BucketIndex, taken: Mapping[int, list[tuple[Bucket, bool]]]) -> Column:
        kind = bucket.file().column("kind")
        chosen = np.zeros(len(bucket.info.kinds), np.bool_)
        chosen[list(taken)] = True
        mask = chosen[kind] & self._within(bucket)
        for number, draws in taken.items():
            for row, wanted in draws:
                mine = np.flatnonzero(mask & (kind == number))
                drawn = _per_clip(bucket, mine, keeper(row, self.seed))
                mask[mine[drawn != wanted]] = False
        return np.flatnonzero(mask).astype("<u4" if len(mask) < 2**32 else "<u8")

    def _classes(self, bucket: BucketIndex) -> list[int]:
        """Length classes that captions of the bucket can have; one, 0, if padding is attended to."""
        if self.task.attend_padding:
            return [0]
        few, many = (text_class(tokens, self.longest) for tokens in bucket.info.text_tokens)
        return [size for size in sorted({*TEXT_CLASSES, self.longest}) if few <= size <= many]

    def _by_class(self, bucket: BucketIndex, numbers: Column | None) -> list[tuple[str, Column | None]]:
        name, classes = bucket.info.bucket, self._classes(bucket)
        if classes == [0]:
            return [(name, numbers)]
        if len(classes) == 1:
            return [(f"{name}/{classes[0]}t", numbers)]
        tokens = bucket.file().column("text_tokens")
        table = np.array([text_class(count, self.longest) for count in range(bucket.info.text_tokens[1] + 1)])
        every: Column = np.arange(len(tokens), dtype="<u4") if numbers is None else numbers
        of_rows = table[tokens[every]]
        return [(f"{name}/{size}t", every[of_rows == size]) for size in np.unique(of_rows).tolist()]

    def _batches(self, bucket: BucketIndex) -> dict[int, list[int]]:
        """Batch sizes of the kinds that are taken."""
        found: dict[int, list[int]] = {}
        for number in self._taken(bucket):
            found.setdefault(self._rows[bucket.info.kinds[number].row].batch_size, []).append(number)
        return found

    def _by_batch(self, bucket: BucketIndex, numbers: Column | None) -> list[tuple[int, Column | None]]:
        """Samples by the batch size of their row; the one of the first sample comes first."""
        batches = self._batches(bucket)
        if len(batches) == 1:
            return [(next(iter(batches)), numbers)]
        kind = bucket.file().column("kind")
        every: Column = np.arange(len(kind), dtype="<u4") if numbers is None else numbers
        parts = [(batch, every[np.isin(kind[every], kinds)]) for batch, kinds in batches.items()]
        first = {int(mine[0]): (batch, mine) for batch, mine in parts if len(mine)}
        return [first[number] for number in sorted(first)]

    def _hold_out(self, groups: Sequence[Group]) -> tuple[list[Group], tuple[HeldOut, ...]]:
        """Groups without the held-out clips, and the samples to validate on, taken from the groups in turn."""
        validation = self.task.validation
        assert validation is not None
        kept, apart = [], []
        for group in groups:
            every: Column = np.arange(group.size, dtype="<u4") if group.numbers is None else group.numbers
            held = _per_clip(group.bucket, every, lambda clip: is_held_out(clip, validation.share))
            kind = group.bucket.file().column("kind")
            names = [found.row for found in group.bucket.info.kinds]
            mine = every[held][: validation.max_samples].tolist()
            apart.append([HeldOut(group.bucket, number, names[int(kind[number])]) for number in mine])
            if not held.all():
                kept.append(self._group(group.name, group.bucket, every[~held], group.row, group.source))
        in_turn = [sample for layer in zip_longest(*apart) for sample in layer if sample is not None]
        return kept, tuple(in_turn[: validation.max_samples])


def needed_draws(row: str, clip_rows: Sequence[str], table: Sequence[Bucket]) -> list[tuple[Bucket, bool]] | None:
    """What `buckets.assign` and `buckets.keeps` make of a sample, as far as no clip is known.

    Args:
        row: name of the row that it was encoded for.
        clip_rows: of all rows that its clip has samples of.
        table: bucket table of a stage.

    Returns:
        Rows whose draw the clip must win (True) or lose (False) so that the stage trains on it; None if it never does.
    """
    images = [of_table for of_table in table if of_table.frames == 1 and row_name(of_table) == row]
    draws: list[tuple[Bucket, bool]] = []
    for first in images[:1] or _first_choices(clip_rows, table):
        certain = first.keep_probability >= 1
        if row_name(first) == row:
            return draws if certain else [*draws, (first, True)]
        if certain:
            return None
        draws.append((first, False))
    return None


def _first_choices(clip_rows: Sequence[str], table: Sequence[Bucket]) -> list[Bucket]:
    """The longest row of each resolution that a clip has, largest resolution first."""
    found = (next((row for row in group if row_name(row) in clip_rows), None) for group in preference(table))
    return [row for row in found if row is not None]


def is_held_out(clip: str, share: float) -> bool:
    """Whether a clip is kept for validation: by its uid alone, so it is never trained on in any stage."""
    return uniform(0, "validation", clip) < share


def _per_clip(bucket: BucketIndex, numbers: Column, test: Callable[[str], bool]) -> Column:
    """A test of the clip of each row, asked once per clip: rows of a clip follow each other."""
    log.info("draw for the clips of %d samples of %s", len(numbers), bucket.info.bucket)
    found = np.empty(len(numbers), np.bool_)
    for at in range(0, len(numbers), AT_ONCE):
        clips = bucket.clips()[numbers[at : at + AT_ONCE]]
        begins = np.ones(len(clips), np.bool_)
        begins[1:] = clips[1:] != clips[:-1]
        distinct = clips[begins]
        drawn = np.fromiter((test(text_of(clip)) for clip in distinct), np.bool_, len(distinct))
        found[at : at + AT_ONCE] = drawn[np.cumsum(begins) - 1]
    return found


def _keep(made: StageSamples, choice: _Choice, data: Path, listed: Path) -> None:
    places = {bucket.info.bucket: number for number, bucket in enumerate(choice.index.buckets)}
    columns = {str(n): group.numbers for n, group in enumerate(made.groups) if group.numbers is not None}
    info, content = checked_bytes("selection", columns)
    data.write_bytes(content)
    groups = [
        [
            group.name,
            choice.task.buckets.index(group.row),
            group.rows,
            places[group.bucket.info.bucket],
            group.digest,
            group.source,
        ]
        for group in made.groups
    ]
    held_out = [[places[found.bucket.info.bucket], found.number, found.row] for found in made.held_out]
    fields = {"groups": groups, "held_out": held_out, "selected": made.selected, "file": info.to_wire()}
    listed.write_bytes(sealed_json(fields))


def _kept(path: Path, choice: _Choice) -> StageSamples:
    fields: dict[str, Any] = unsealed_json(path.read_bytes())
    info, data = CheckedFileInfo.model_validate(fields["file"]), path.with_suffix(".idx")
    file = CheckedFile.at(data, info, data.read_bytes)
    buckets, table = choice.index.buckets, choice.task.buckets
    groups = tuple(
        Group(
            name,
            table[row],
            tuple(rows),
            buckets[place],
            file.column(str(number)) if str(number) in info.columns else None,
            digest,
            source,
        )
        for number, (name, row, rows, place, digest, source) in enumerate(fields["groups"])
    )
    held_out = tuple(HeldOut(buckets[place], number, row) for place, number, row in fields["held_out"])
    return StageSamples(groups, held_out, fields["selected"])
