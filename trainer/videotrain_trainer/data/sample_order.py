"""Which samples an optimizer step trains on: pure arithmetic that knows nothing of the world size.

Every bucket is an endless stream of positions. Position p of a bucket of n samples lies in epoch p // n and stands for
element `permutation(p mod n)` of that epoch, so an epoch holds every sample exactly once and may end inside a batch. A
step takes the next `micro_batches * batch_size` positions of one bucket; micro-batch s trains on the s-th run of
`batch_size` of them.
Whoever knows the cursors knows the rest of the order, which is why the state is a few numbers.

Which bucket is next: a visit that starts at cursor c of a bucket has the virtual time (c + u * width) / n with u drawn
from (seed, bucket, c), and the earliest visit wins. Buckets so interleave evenly but not in lockstep, and because the
time depends on cursors only, a change of `micro_batches` neither repeats nor loses a sample.

Where sources have weights, a bucket's stream is an interleaving of a stream per source, each with epochs of its own.
Source k of n_k samples, n_bk of them in bucket b, has the rate weight_k * n_bk / n_k there: the bucket is visited as
the sum of its rates says, and its positions are spread over its sources by them. So a source has its share of all
samples, and its buckets come to the end of an epoch together. Where weights change at a step, the state keeps how far
each source had come, and the arithmetic begins anew from there.

Sets that are appended to a source are sources of their own with such a change. A plan that grew by some has new
buckets, sources and elements behind those that were there, so up to that step it is the plan that it was: `adopt`.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

from videotrain_trainer.data.interleaving import Interleaving
from videotrain_trainer.data.permutation import GOLDEN, mix, permute, round_keys

ORDER_VERSION = 1
"""Rises when the same state would give another order."""


@dataclass(frozen=True)
class OrderBucket:
    """Samples that are trained together."""

    name: str
    """Such as `256px/33f/16:9`."""
    size: int
    """Number of samples."""
    batch_size: int
    """Samples of one micro-batch."""
    micro_batches: int | None = None
    """Micro-batches of a step of this bucket; as many as the plan says if None."""
    parts: tuple[int, ...] = ()
    """How many of its samples are of each of the plan's sources, in whose order they lie; empty if it has none."""


@dataclass(frozen=True)
class OrderPhase:
    """Steps with the same weights."""

    weights: tuple[float | Fraction, ...]
    """Of the plan's sources: shares of the samples, relative to each other; 0 leaves a source out."""
    until_step: int | None = None
    """Last step; only the last phase has none."""


@dataclass(frozen=True)
class AppendedSet:
    """An encoded set that was taken in beside the one that its source began with."""

    after_step: int
    """Last step without it."""
    source: str
    """Name of the source that it was appended to."""
    number: int
    """Of what was appended to that source, from 1."""
    uri: str
    """Prefix of the set."""
    index: str
    """SampleIndex.identity of it, then and ever since."""

    @property
    def name(self) -> str:
        """Of its samples among the plan's sources."""
        return f"{self.source}+{self.number}"


@dataclass(frozen=True)
class OrderMark:
    """Where an order stood when its weights changed."""

    step: int
    """Last step with the weights before."""
    cursors: tuple[int, ...]
    """Of every bucket, then."""
    taken: tuple[tuple[int, ...], ...]
    """For every bucket, samples that each source had given by then."""


@dataclass(frozen=True)
class OrderState:
    """How far an order has come. The same on every rank, saved once, below 16 KB of JSON if weights do not change."""

    step: int
    """Steps done."""
    cursors: tuple[int, ...]
    """Next position of every bucket, in the plan's order of buckets."""
    fingerprint: str
    """Names the plan; another data set, seed or schedule has another one."""
    version: int = ORDER_VERSION
    since: OrderMark | None = None
    """The last change of weights; None before the first one."""
    appended: tuple[AppendedSet, ...] = ()
    """Sets that the plan has grown by, in their order."""

    def to_json(self) -> dict[str, object]:
        """For the commit manifest of a checkpoint."""
        fields: dict[str, object] = {
            "step": self.step,
            "cursors": list(self.cursors),
            "fingerprint": self.fingerprint,
            "version": self.version,
        }
        if self.since is not None:
            taken = [list(of_bucket) for of_bucket in self.since.taken]
            fields["since"] = {"step": self.since.step, "cursors": list(self.since.cursors), "taken": taken}
        if self.appended:
            fields["appended"] = [asdict(found) for found in self.appended]
        return fields

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OrderState:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a field is missing or has another type.
        """
        try:
            cursors = tuple(int(cursor) for cursor in data["cursors"])
            since = None
            if mark := data.get("since"):
                taken = tuple(tuple(int(count) for count in of_bucket) for of_bucket in mark["taken"])
                since = OrderMark(int(mark["step"]), tuple(int(cursor) for cursor in mark["cursors"]), taken)
            appended = tuple(AppendedSet(**found) for found in data.get("appended", ()))
            return cls(int(data["step"]), cursors, str(data["fingerprint"]), int(data["version"]), since, appended)
        except (KeyError, TypeError) as error:
            raise ValueError(f"state of the sample order: {error!r} in {json.dumps(data)[:200]}") from error


@dataclass(frozen=True)
class MicroBatchIndices(Sequence[list[int]]):
    """Element s: indices in the bucket that micro-batch s trains on. Computed when asked for: a rank needs its own."""

    plan: OrderPlan
    bucket: int
    cursor: int
    phase: int
    since: OrderMark | None

    def __len__(self) -> int:
        return self.plan.micro_batches_of(self.bucket)

    @overload
    def __getitem__(self, micro_batch: int) -> list[int]: ...
    @overload
    def __getitem__(self, micro_batch: slice) -> list[list[int]]: ...
    def __getitem__(self, micro_batch: int | slice) -> list[int] | list[list[int]]:
        if isinstance(micro_batch, slice):
            return [self[number] for number in range(*micro_batch.indices(len(self)))]
        if not -len(self) <= micro_batch < len(self):
            raise IndexError(micro_batch)
        batch = self.plan.buckets[self.bucket].batch_size
        first = self.cursor + micro_batch % len(self) * batch
        positions = range(first, first + batch)
        return [self.plan.index_at(self.bucket, position, self.phase, self.since) for position in positions]


@dataclass(frozen=True)
class StepOrder:
    """One optimizer step: all micro-batches hold samples of one bucket."""

    step: int
    """1-based number of this step."""
    bucket: str
    bucket_index: int
    """Place of the bucket in the plan."""
    epoch: int
    """Pass over the bucket in which the step's first sample lies, from 0; 0 where sources have passes of their own."""
    micro_batches: Sequence[list[int]]
    """For every micro-batch, indices in the bucket."""
    positions: Sequence[range]
    """For every micro-batch, positions in the bucket's endless stream; these key the samples' random numbers."""
    source_epochs: tuple[int, ...] = ()
    """For every source of the plan, pass over its samples of the bucket in which the next one lies, from 0."""


@dataclass(frozen=True)
class OrderPlan:
    """The order of a stage's samples.

    Attributes:
        buckets: at least one; names are unique and sizes positive.
        seed: of the stage.
        micro_batches: micro-batches of one step over the whole world, of buckets without a number of their own.
        manifest: hash of the manifest whose rows the indices mean.
        sources: names of the sources that have weights, if any; each bucket then has `parts`.
        phases: their weights, in order of steps.
        appended: sets that the plan has grown by: the last of its sources, in this order.
        grew_from: fingerprints of the plans that it was before, and how many sets these had grown by.
    """

    buckets: tuple[OrderBucket, ...]
    seed: int
    micro_batches: int
    manifest: str = ""
    sources: tuple[str, ...] = ()
    phases: tuple[OrderPhase, ...] = ()
    appended: tuple[AppendedSet, ...] = ()
    grew_from: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    _times: dict[int, dict[int, tuple[int, float]]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By phase and bucket: cursor, and when its next step is due."""
    _mixed: dict[int, list[_Mixed | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("buckets: there is none; at least one with at least one sample is needed")
        if self.micro_batches < 1:
            raise ValueError(f"micro-batches: {self.micro_batches}; at least 1 is needed")
        if len({bucket.name for bucket in self.buckets}) < len(self.buckets):
            raise ValueError(f"buckets: names must be unique, got {[bucket.name for bucket in self.buckets]}")
        for bucket in self.buckets:
            if min(bucket.size, bucket.batch_size, bucket.micro_batches or 1) < 1:
                raise ValueError(f"buckets: size, batch_size and micro_batches must be positive: {bucket}")
            if len(bucket.parts) != len(self.sources) or (self.sources and sum(bucket.parts) != bucket.size):
                raise ValueError(
                    f"buckets: {bucket} must have parts of {len(self.sources)} sources that sum to its size"
                )
        if bool(self.sources) != bool(self.phases):
            raise ValueError(f"phases: {self.phases}; sources have weights, and nothing else has: {self.sources}")
        for phase in self.phases:
            if len(phase.weights) != len(self.sources) or min(phase.weights) < 0:
                raise ValueError(f"phases: {phase} must have a weight of at least 0 for each of {self.sources}")
            if not any(self._weight_of(phase, source) for source in range(len(self.sources))):
                raise ValueError(f"phases: {phase} leaves no sample of {self.sources}")

    def micro_batches_of(self, bucket: int) -> int:
        """Micro-batches of a step of a bucket, by its place in the plan."""
        return self.buckets[bucket].micro_batches or self.micro_batches

    @cached_property
    def fingerprint(self) -> str:
        """Names everything that the meaning of cursors depends on; `micro_batches` may change, so it is not in it."""
        parts: list[Any] = [ORDER_VERSION, self.seed, self.manifest, [[b.name, b.size, 1.0] for b in self.buckets]]
        if self.sources:
            phases = [[phase.until_step, [_written(weight) for weight in phase.weights]] for phase in self.phases]
            parts += [self.sources, phases, [bucket.parts for bucket in self.buckets]]
        if self.appended:
            parts += [[asdict(found) for found in self.appended]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def start(self) -> OrderState:
        """Before the first step."""
        return self._marked(OrderState(0, (0,) * len(self.buckets), self.fingerprint, appended=self.appended))

    def adopt(self, state: OrderState) -> OrderState:
        """The same state under this plan, if it is one of a plan that this one grew out of; any other as it is.

        Raises:
            ValueError: the plan has grown at a step that lies behind the state.
        """
        if (state.fingerprint, len(state.appended)) not in self.grew_from:
            return state
        late = [found for found in self.appended[len(state.appended) :] if found.after_step < state.step]
        if late:
            raise ValueError(f"state of the sample order at step {state.step} was made without {late[0]}")
        more = (0,) * (len(self.buckets) - len(state.cursors))
        since = state.since
        if since is not None:
            none = (0,) * len(self.sources)
            taken = (*((*found, *none)[: len(none)] for found in since.taken), *(none for _ in more))
            since = OrderMark(since.step, (*since.cursors, *more), taken)
        grown = replace(
            state,
            cursors=(*state.cursors, *more),
            fingerprint=self.fingerprint,
            since=since,
            appended=self.appended,
        )
        return self._marked(grown)

    def check(self, state: OrderState) -> None:
        """Refuse the state of another order.

        Raises:
            ValueError: data set, seed, bucket table or order version differ from those of the state.
        """
        if state.version != ORDER_VERSION:
            raise ValueError(f"state of the sample order has version {state.version}, this trainer {ORDER_VERSION}")
        if state.fingerprint != self.fingerprint or len(state.cursors) != len(self.buckets):
            raise ValueError(
                f"state of the sample order belongs to another data set, seed or bucket table, or to other sources or "
                f"weights: its fingerprint is "
                f"{state.fingerprint}, that of this stage {self.fingerprint}"
            )

    def step(self, state: OrderState) -> StepOrder:
        """The step after `state`. O(number of buckets), whatever their sizes."""
        number = self._next_bucket(state)
        bucket, cursor, phase = self.buckets[number], state.cursors[number], self._phase(state.step + 1)
        ends = range(cursor, cursor + self._step_size(number), bucket.batch_size)
        taken = self.taken(state, number)
        return StepOrder(
            step=state.step + 1,
            bucket=bucket.name,
            bucket_index=number,
            epoch=0 if self.sources else cursor // bucket.size,
            micro_batches=MicroBatchIndices(self, number, cursor, phase, state.since),
            positions=[range(first, first + bucket.batch_size) for first in ends],
            source_epochs=tuple(done // max(1, size) for done, size in zip(taken, bucket.parts, strict=True)),
        )

    def advance(self, state: OrderState) -> OrderState:
        """State after that step. Call it when the optimizer step is done, not when its input is prefetched."""
        number = self._next_bucket(state)
        cursors = list(state.cursors)
        cursors[number] += self._step_size(number)
        return self._marked(replace(state, step=state.step + 1, cursors=tuple(cursors)))

    def _marked(self, state: OrderState) -> OrderState:
        """With the mark of a change of weights, if they change behind it."""
        step = state.step
        if self._phase(step + 1) == self._phase(step) or (state.since and state.since.step == step):
            return state
        taken = tuple(self._taken(state, bucket, self._phase(step)) for bucket in range(len(state.cursors)))
        return replace(state, since=OrderMark(step, state.cursors, taken))

    def taken(self, state: OrderState, bucket: int) -> tuple[int, ...]:
        """How many samples each source has given to a bucket before `state`; empty without sources."""
        return self._taken(state, bucket, self._phase(state.step + 1)) if self.sources else ()

    def walk(self, state: OrderState) -> Iterator[StepOrder]:
        """All steps after `state`, without end."""
        while True:
            yield self.step(state)
            state = self.advance(state)

    def index_at(self, bucket: int, position: int, phase: int = 0, since: OrderMark | None = None) -> int:
        """Element of the bucket at a position of its stream.

        Args:
            bucket: place of the bucket in the plan.
            position: in its stream; with sources not before those of `since`.
            phase: in which the position is reached, if there are sources.
            since: the change of weights with which that phase began.
        """
        name, size, first, purpose = self.buckets[bucket].name, self.buckets[bucket].size, 0, "epoch"
        mixed = self._mixed_in(phase)[bucket]
        if mixed is not None:
            source, position = mixed.interleaving.locate(position - (since.cursors[bucket] if since else 0))
            position += since.taken[bucket][source] if since else 0
            size, first = self.buckets[bucket].parts[source], mixed.firsts[source]
            purpose = f"source {self.sources[source]} epoch"
        epoch, place = divmod(position, size)
        return first + permute(place, size, round_keys(self.seed, name, f"{purpose} {epoch}"))

    def source_of(self, bucket: int, index: int) -> int:
        """Place among the sources of the one that an element of a bucket is of; there must be some."""
        return bisect_right(list(accumulate(self.buckets[bucket].parts)), index)

    def spare(self, bucket: int, index: int, position: int, attempt: int) -> int:
        """Element that stands in for a damaged sample: a function of the place, not of the world. It is of the same
        source, unless that has no other sample in the bucket.

        Args:
            bucket: place of the bucket in the plan.
            index: element that is damaged.
            position: of the damaged sample.
            attempt: from 1; later ones are for spares that are damaged too.
        """
        size, first = self.buckets[bucket].size, 0
        if self.sources:
            source, parts = self.source_of(bucket, index), self.buckets[bucket].parts
            if parts[source] > 1:
                size, first = parts[source], sum(parts[:source])
            else:
                size = sum(parts[: self._known_with(source)])
        keys = round_keys(self.seed, self.buckets[bucket].name, f"spare {position}")
        return first + permute((attempt - 1) % size, size, keys)

    def _known_with(self, source: int) -> int:
        """Sources that were there when one of them came: what came later may not change stand-ins of before."""
        base = len(self.sources) - len(self.appended)
        if source < base:
            return base
        step = self.appended[source - base].after_step
        return base + sum(found.after_step <= step for found in self.appended)

    def _next_bucket(self, state: OrderState) -> int:
        times = self._times.setdefault(self._phase(state.step + 1), {})
        best, best_time = 0, float("inf")
        for number, cursor in enumerate(state.cursors):
            known = times.get(number)
            if known is None or known[0] != cursor:
                # Only the bucket of the last step has a new cursor; its neighbours' times are still right.
                known = times[number] = (cursor, self._visit_time(state, number))
            if known[1] < best_time:
                best, best_time = number, known[1]
        return best

    def _visit_time(self, state: OrderState, number: int) -> float:
        bucket, cursor = self.buckets[number], state.cursors[number]
        offset = mix(round_keys(self.seed, bucket.name, "visits")[0] + cursor * GOLDEN) / 2**64
        ahead = offset * self._step_size(number)
        if not self.sources:
            return (cursor + ahead) / bucket.size
        mixed = self._mixed_in(self._phase(state.step + 1))[number]
        if mixed is None:
            return float("inf")
        return (cursor - (state.since.cursors[number] if state.since else 0) + ahead) / mixed.rate

    def _step_size(self, number: int) -> int:
        """Samples of a step of a bucket."""
        return self.micro_batches_of(number) * self.buckets[number].batch_size

    def _phase(self, step: int) -> int:
        """Place of the phase that a step lies in; 0 if there is none."""
        ended = (phase.until_step is not None and phase.until_step < step for phase in self.phases[:-1])
        return sum(ended)

    def _taken(self, state: OrderState, bucket: int, phase: int) -> tuple[int, ...]:
        since, mixed = state.since, self._mixed_in(phase)[bucket]
        before = since.taken[bucket] if since else (0,) * len(self.sources)
        if mixed is None:
            return before
        more = mixed.interleaving.counts(state.cursors[bucket] - (since.cursors[bucket] if since else 0))
        return tuple(one + other for one, other in zip(before, more, strict=True))

    def _mixed_in(self, phase: int) -> list[_Mixed | None]:
        """For every bucket how its sources are mixed in a phase; None without sources, or if all weigh nothing."""
        if phase not in self._mixed:
            weights = [self._weight_of(self.phases[phase], k) for k in range(len(self.sources))]
            self._mixed[phase] = [_Mixed.of(bucket.parts, weights) for bucket in self.buckets]
        return self._mixed[phase]

    def _weight_of(self, phase: OrderPhase, source: int) -> Fraction:
        """What each sample of a source weighs; 0 if it has none."""
        samples = sum(bucket.parts[source] for bucket in self.buckets)
        return exact(phase.weights[source]) / samples if samples else Fraction(0)


@dataclass(frozen=True)
class _Mixed:
    """The sources of a bucket in one phase."""

    interleaving: Interleaving
    rate: float
    """Of all of them."""
    firsts: tuple[int, ...]
    """First element of each source."""

    @classmethod
    def of(cls, parts: Sequence[int], weights: Sequence[Fraction]) -> _Mixed | None:
        rates = tuple(weight * size for weight, size in zip(weights, parts, strict=True))
        if not any(rates):
            return None
        return cls(Interleaving(rates), float(sum(rates)), tuple(accumulate(parts[:-1], initial=0)))


def exact(weight: float | Fraction) -> Fraction:
    """The decimal that was written, not the binary number next to it."""
    return weight if isinstance(weight, Fraction) else Fraction(repr(weight))


def _written(weight: float | Fraction) -> float | str:
    return str(weight) if isinstance(weight, Fraction) else weight


def sample_seed(seed: int, bucket: str, position: int) -> int:
    """63 bits for the random numbers of one sample: crop, timestep, noise, dropout. The same in every world."""
    text = f"{seed}\0{bucket}\0{position}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
