"""Sets that are appended to encoded sets, and what becomes of the order of a stage that takes them in.

<set>/appended/<number>.json       AppendedEntry, sealed and created only if absent: who appends writes it
<stage>/taken-in/<step>.json       TakenIn, likewise: who comes to the step first decides for all that ever come there
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any, Final

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.stages import TrainTask
from videotrain_api.schema import ApiModel
from videotrain_api.storage import layout
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.data.sample_order import AppendedSet, OrderPhase, exact
from videotrain_trainer.data.sets import LatentSet, WeightPiece, open_set, order_buckets, order_sources, weight_pieces
from videotrain_trainer.data.stage_samples import Group
from videotrain_trainer.errors import AlreadyExists, DataError, ObjectMissing, TrainerError
from videotrain_trainer.node_cache import NodeCache
from videotrain_trainer.storage import ObjectStore

MOST_APPENDED: Final = 256
"""Sets that a stage takes in; each has files of its own to open."""
_NUMBER = re.compile(r"(\d+)\.json$")
log = logging.getLogger(__name__)


class AppendedEntry(ApiModel):
    """A set that was appended to another one."""

    version: int = 1
    uri: str
    """Prefix of the set."""
    index: str
    """SampleIndex.identity of it."""


class TakenIn(ApiModel):
    """What a stage takes in behind a step; nothing, too, is a decision."""

    version: int = 1
    sets: list[dict[str, Any]]
    """AppendedSet as JSON."""


def appended_entries(store: ObjectStore, uri: str) -> dict[int, AppendedEntry]:
    """What was appended to an encoded set, by number.

    Args:
        store: where it lies.
        uri: prefix of the set.
    """
    return {number: _entry(store, uri, number) for number in _numbers(store, uri)}


def _numbers(store: ObjectStore, uri: str) -> list[int]:
    found = (_NUMBER.search(item.uri) for item in store.list(layout.appended_sets(uri)))
    return sorted(int(match.group(1)) for match in found if match)


def _entry(store: ObjectStore, uri: str, number: int) -> AppendedEntry:
    place = layout.appended_set(uri, number)
    return read_checked(store, place, lambda data: AppendedEntry.model_validate(unsealed_json(data)))


def growing_sets(config: StageConfig) -> dict[str, tuple[str, ...]]:
    """The encoded sets of a stage by their URI, with the names of the sources of the stage's order that are in each."""
    encoded: dict[str, tuple[str, ...]] = {s.uri: (s.name,) for s in config.dataset.sources if s.form == "latents"}
    return encoded or {str(config.paths.latents): tuple(order_sources(config))}


@dataclass(frozen=True)
class GrowingData:
    """What a train stage trains on where sets are appended to it.

    Args:
        store: object store.
        config: of the stage.
        cache: of this node.
    """

    store: ObjectStore
    config: StageConfig
    cache: NodeCache | None = None

    def decided(
        self, step: int, known: Sequence[AppendedSet], refused: Callable[[TrainerError], None]
    ) -> list[AppendedSet]:
        """What the stage takes in behind a step, `known` sets left out: as it was decided, or decided now and for ever.

        Args:
            step: last step without it.
            known: what was taken in before.
            refused: is told of each set that was appended and cannot be trained on.
        """
        place = layout.taken_in(self.config.paths.output, step)
        try:
            return _without(_read_decision(self.store, place), known)
        except ObjectMissing:
            found = list(self._new_sets(step, known, refused))
        try:
            self.store.put_once(place, sealed_json(TakenIn(sets=[asdict(one) for one in found]).to_wire()))
        except AlreadyExists:  # another generation came here, too, and what it saw counts
            return _without(_read_decision(self.store, place), known)
        return found

    def grown(self, data: LatentSet, appended: Sequence[AppendedSet]) -> LatentSet:
        """The samples of the stage with those of the sets that it has taken in.

        Args:
            data: what the stage has, perhaps with some of them.
            appended: all that it has taken in, in order of steps.

        Raises:
            DataError: a set is missing or has changed, or what `data` has was not taken in.
        """
        have = data.plan.appended
        if tuple(appended[: len(have)]) != have[: len(appended)]:
            raise DataError(f"sets that were taken in are {list(have)}, and {list(appended)} are to be")
        for _, sets in groupby(appended[len(have) :], lambda one: one.after_step):
            data = self._grown_once(data, list(sets))
        return data

    def _new_sets(
        self, step: int, known: Sequence[AppendedSet], refused: Callable[[TrainerError], None]
    ) -> Iterator[AppendedSet]:
        room = MOST_APPENDED - len(known)
        for uri, names in growing_sets(self.config).items():
            before = {one.number for one in known if one.source == names[0]}
            for number in _numbers(self.store, uri):
                if number in before:
                    continue
                try:
                    entry = _entry(self.store, uri, number)
                    self._open_as_known(entry.uri, entry.index)
                except (DataError, ObjectMissing) as error:
                    refused(error)
                    continue
                room -= len(names)
                if room < 0:
                    most = f"a stage takes in {MOST_APPENDED} sets at most; append fewer, larger ones"
                    refused(DataError(f"{entry.uri}: {most}"))
                    return
                yield from (AppendedSet(step, name, number, entry.uri, entry.index) for name in names)

    def _open_as_known(self, uri: str, identity: str) -> list[Group]:
        """What the stage takes of a set, if it is the one that was appended."""
        index, samples = open_set(self.store, self.config, _task(self.config), uri, self.cache)
        if index.identity != identity:
            raise DataError(
                f"{layout.sample_index(uri)}: is not the index of the set that was appended ({index.identity} instead "
                f"of {identity}); put it back, an appended set may not change"
            )
        return list(samples.groups)

    def _grown_once(self, data: LatentSet, sets: Sequence[AppendedSet]) -> LatentSet:
        parallel, plan = _task(self.config).parallel, data.plan
        places = {one.uri: one.index for one in sets}
        opened = {uri: self._open_as_known(uri, index) for uri, index in places.items()}
        split = len(self.config.dataset.raw) > 1
        groups = [
            replace(group, source=one.name)
            for one in sets
            for group in opened[one.uri]
            if not split or group.source == one.source
        ]
        appended = (*plan.appended, *sets)
        sources = (*plan.sources, *(one.name for one in sets))
        members = _with_new_groups(dict(zip((b.name for b in plan.buckets), data.groups, strict=True)), groups, sets)
        buckets = order_buckets(members, sources)
        totals = [sum(bucket.parts[number] for bucket in buckets) for number in range(len(sources))]
        digest = (int(plan.manifest, 16) + sum(group.digest for group in groups)) % 2**64
        return replace(
            data,
            plan=replace(
                plan,
                buckets=buckets,
                manifest=f"{digest:016x}",
                sources=sources,
                phases=tuple(grown_phases(weight_pieces(self.config), order_sources(self.config), totals, appended)),
                appended=appended,
                grew_from=(*plan.grew_from, (plan.fingerprint, len(plan.appended))),
            ),
            degrees=tuple(parallel.degree_of(mine[0].row) for mine in members.values()),
            groups=tuple(members.values()),
        )


def _read_decision(store: ObjectStore, place: str) -> list[AppendedSet]:
    taken = read_checked(store, place, lambda data: TakenIn.model_validate(unsealed_json(data)))
    return [AppendedSet(**fields) for fields in taken.sets]


def _without(found: Sequence[AppendedSet], known: Sequence[AppendedSet]) -> list[AppendedSet]:
    return [one for one in found if one not in known]


def _with_new_groups(
    buckets: dict[str, tuple[Group, ...]], groups: Sequence[Group], sets: Sequence[AppendedSet]
) -> dict[str, tuple[Group, ...]]:
    """Groups of new sets behind those that are there, in order of sets; buckets that are new come last, by name."""
    place = {one.name: number for number, one in enumerate(sets)}
    ordered = sorted(groups, key=lambda group: (group.name, place[group.source or ""]))
    more: dict[str, tuple[Group, ...]] = {}
    for group in ordered:
        name, batch = group.name, group.row.batch_size
        there = buckets.get(name) or more.get(name)
        if there is not None and there[0].row.batch_size != batch:
            name = f"{name.partition(' x')[0]} x{batch}"
        where = buckets if name in buckets else more
        where[name] = (*where.get(name, ()), group)
    return buckets | {
        name: tuple(sorted(mine, key=lambda group: place[group.source or ""])) for name, mine in sorted(more.items())
    }


def grown_phases(
    pieces: Sequence[WeightPiece], names: Sequence[str], totals: Sequence[int], appended: Sequence[AppendedSet]
) -> Iterator[OrderPhase]:
    """Weights of a grown order: those of each source are shared out by samples, exactly, among what is there of it.

    Args:
        pieces: weights of the sources in the configuration.
        names: of these sources.
        totals: samples of the order's sources: of these, then of each set that was taken in.
        appended: these sets.
    """
    ends = {piece.until_step for piece in pieces if piece.until_step is not None}
    ends |= {one.after_step for one in appended}
    bounds: list[int | None] = [-1, *sorted(ends), None]
    for start, end in pairwise(bounds):
        assert start is not None  # only the last bound is none
        piece = next(piece for piece in pieces if piece.until_step is None or piece.until_step > start)
        present = [one.after_step <= start for one in appended]
        weights: list[float | Fraction] = []
        shares = dict(zip(names, piece.weights, strict=True))
        here = [*zip(names, totals, strict=False)]
        here += [
            (one.source, total if there else 0)
            for one, total, there in zip(appended, totals[len(names) :], present, strict=True)
        ]
        for name, samples in here:
            weight, whole = shares[name], sum(other for of, other in here if of == name)
            share = Fraction(samples) if weight is None else exact(weight) * Fraction(samples, whole or 1)
            weights.append(share)
        yield OrderPhase(tuple(weights), end)


def _task(config: StageConfig) -> TrainTask:
    task = config.stage.train
    if task is None:
        raise DataError(f"stage {config.stage.name!r} does not train, so nothing can be taken in")
    return task
