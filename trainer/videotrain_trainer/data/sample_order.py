"""Which samples an optimizer step trains on: pure arithmetic that knows nothing of the world size.

Every bucket is an endless stream of positions. Position p of a bucket of n samples lies in epoch p // n and stands for
element `permutation(p mod n)` of that epoch, so an epoch holds every sample exactly once and may end inside a batch. A
step takes the next `micro_batches * batch_size` positions of one bucket; micro-batch s trains on the s-th run of
`batch_size` of them.
Whoever knows the cursors knows the rest of the order, which is why the state is a few numbers.

Which bucket is next: a visit that starts at cursor c of a bucket has the virtual time (c + u * width) / (weight * n)
with u drawn from (seed, bucket, c), and the earliest visit wins. Buckets so interleave evenly but not in lockstep, and
because the time depends on cursors only, a change of `micro_batches` neither repeats nor loses a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, overload

ORDER_VERSION = 1
"""Rises when the same state would give another order."""
ROUNDS = 4
"""Feistel rounds; even, so that halves of different width end where they began."""
MIN_BITS = 6
"""Small buckets are permuted within 64 places, where four rounds still mix well."""
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class OrderBucket:
    """Samples that are trained together."""

    name: str
    """Such as `256px/33f/16:9`."""
    size: int
    """Number of samples."""
    batch_size: int
    """Samples of one micro-batch."""
    weight: float = 1.0
    """How often the bucket's samples are seen, relative to the other buckets'."""
    micro_batches: int | None = None
    """Micro-batches of a step of this bucket; as many as the plan says if None."""


@dataclass(frozen=True)
class OrderState:
    """How far an order has come. The same on every rank, saved once, below 16 KB of JSON."""

    step: int
    """Steps done."""
    cursors: tuple[int, ...]
    """Next position of every bucket, in the plan's order of buckets."""
    fingerprint: str
    """Names the plan; another data set, seed or schedule has another one."""
    version: int = ORDER_VERSION

    def to_json(self) -> dict[str, object]:
        """For the commit manifest of a checkpoint."""
        return {
            "step": self.step,
            "cursors": list(self.cursors),
            "fingerprint": self.fingerprint,
            "version": self.version,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OrderState:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a field is missing or has another type.
        """
        try:
            cursors = tuple(int(cursor) for cursor in data["cursors"])
            return cls(int(data["step"]), cursors, str(data["fingerprint"]), int(data["version"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"state of the sample order: {error!r} in {json.dumps(data)[:200]}") from error


@dataclass(frozen=True)
class MicroBatchIndices(Sequence[list[int]]):
    """Element s: indices in the bucket that micro-batch s trains on. Computed when asked for: a rank needs its own."""

    plan: OrderPlan
    bucket: int
    cursor: int

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
        return [self.plan.index_at(self.bucket, position) for position in range(first, first + batch)]


@dataclass(frozen=True)
class StepOrder:
    """One optimizer step: all micro-batches hold samples of one bucket."""

    step: int
    """1-based number of this step."""
    bucket: str
    bucket_index: int
    """Place of the bucket in the plan."""
    epoch: int
    """Pass over the bucket in which the step's first sample lies, from 0."""
    micro_batches: Sequence[list[int]]
    """For every micro-batch, indices in the bucket."""
    positions: Sequence[range]
    """For every micro-batch, positions in the bucket's endless stream; these key the samples' random numbers."""


@dataclass(frozen=True)
class OrderPlan:
    """The order of a stage's samples.

    Attributes:
        buckets: at least one; names are unique and sizes positive.
        seed: of the stage.
        micro_batches: micro-batches of one step over the whole world, of buckets without a number of their own.
        manifest: hash of the manifest whose rows the indices mean.
    """

    buckets: tuple[OrderBucket, ...]
    seed: int
    micro_batches: int
    manifest: str = ""
    _times: dict[int, tuple[int, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("buckets: there is none; at least one with at least one sample is needed")
        if self.micro_batches < 1:
            raise ValueError(f"micro-batches: {self.micro_batches}; at least 1 is needed")
        if len({bucket.name for bucket in self.buckets}) < len(self.buckets):
            raise ValueError(f"buckets: names must be unique, got {[bucket.name for bucket in self.buckets]}")
        for bucket in self.buckets:
            if min(bucket.size, bucket.batch_size, bucket.micro_batches or 1) < 1 or not bucket.weight > 0:
                raise ValueError(f"buckets: size, batch_size, micro_batches and weight must be positive: {bucket}")

    def micro_batches_of(self, bucket: int) -> int:
        """Micro-batches of a step of a bucket, by its place in the plan."""
        return self.buckets[bucket].micro_batches or self.micro_batches

    @cached_property
    def fingerprint(self) -> str:
        """Names everything that the meaning of cursors depends on; `micro_batches` may change, so it is not in it."""
        parts = [ORDER_VERSION, self.seed, self.manifest, [[b.name, b.size, b.weight] for b in self.buckets]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def start(self) -> OrderState:
        """Before the first step."""
        return OrderState(0, (0,) * len(self.buckets), self.fingerprint)

    def check(self, state: OrderState) -> None:
        """Refuse the state of another order.

        Raises:
            ValueError: data set, seed, bucket table or order version differ from those of the state.
        """
        if state.version != ORDER_VERSION:
            raise ValueError(f"state of the sample order has version {state.version}, this trainer {ORDER_VERSION}")
        if state.fingerprint != self.fingerprint or len(state.cursors) != len(self.buckets):
            raise ValueError(
                f"state of the sample order belongs to another data set, seed or bucket table: its fingerprint is "
                f"{state.fingerprint}, that of this stage {self.fingerprint}"
            )

    def step(self, state: OrderState) -> StepOrder:
        """The step after `state`. O(number of buckets), whatever their sizes."""
        number = self._next_bucket(state)
        bucket, cursor = self.buckets[number], state.cursors[number]
        ends = range(cursor, cursor + self._step_size(number), bucket.batch_size)
        return StepOrder(
            step=state.step + 1,
            bucket=bucket.name,
            bucket_index=number,
            epoch=cursor // bucket.size,
            micro_batches=MicroBatchIndices(self, number, cursor),
            positions=[range(first, first + bucket.batch_size) for first in ends],
        )

    def advance(self, state: OrderState) -> OrderState:
        """State after that step. Call it when the optimizer step is done, not when its input is prefetched."""
        number = self._next_bucket(state)
        cursors = list(state.cursors)
        cursors[number] += self._step_size(number)
        return replace(state, step=state.step + 1, cursors=tuple(cursors))

    def walk(self, state: OrderState) -> Iterator[StepOrder]:
        """All steps after `state`, without end."""
        while True:
            yield self.step(state)
            state = self.advance(state)

    def index_at(self, bucket: int, position: int) -> int:
        """Element of the bucket at a position of its stream."""
        size = self.buckets[bucket].size
        epoch, place = divmod(position, size)
        return permute(place, size, _round_keys(self.seed, self.buckets[bucket].name, f"epoch {epoch}"))

    def spare(self, bucket: int, position: int, attempt: int) -> int:
        """Element that stands in for a damaged sample at `position`: a function of the place, not of the world.

        Args:
            bucket: place of the bucket in the plan.
            position: of the damaged sample.
            attempt: from 1; later ones are for spares that are damaged too.
        """
        size = self.buckets[bucket].size
        keys = _round_keys(self.seed, self.buckets[bucket].name, f"spare {position}")
        return permute((attempt - 1) % size, size, keys)

    def _next_bucket(self, state: OrderState) -> int:
        times = self._times
        best, best_time = 0, float("inf")
        for number, cursor in enumerate(state.cursors):
            known = times.get(number)
            if known is None or known[0] != cursor:
                # Only the bucket of the last step has a new cursor; its neighbours' times are still right.
                known = times[number] = (cursor, self._visit_time(number, cursor))
            if known[1] < best_time:
                best, best_time = number, known[1]
        return best

    def _visit_time(self, number: int, cursor: int) -> float:
        bucket = self.buckets[number]
        offset = mix(_round_keys(self.seed, bucket.name, "visits")[0] + cursor * GOLDEN) / 2**64
        return (cursor + offset * self._step_size(number)) / (bucket.weight * bucket.size)

    def _step_size(self, number: int) -> int:
        """Samples of a step of a bucket."""
        return self.micro_batches_of(number) * self.buckets[number].batch_size


def mix(value: int) -> int:
    """A 64-bit hash of an integer (the finaliser of SplitMix64)."""
    value &= MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def permute(place: int, size: int, keys: tuple[int, ...]) -> int:
    """Place `place` of a keyed permutation of range(size).

    A Feistel network permutes the next power of two; places outside the range are permuted again until they fall into
    it (cycle walking), which keeps the map one-to-one and needs no memory.
    """
    bits = max((size - 1).bit_length(), MIN_BITS)
    low_bits, high_bits = bits // 2, bits - bits // 2
    while True:
        left, right = place >> low_bits, place & ((1 << low_bits) - 1)
        left_bits, right_bits = high_bits, low_bits
        for key in keys:
            mixed = ((right + 1) * GOLDEN ^ key) * 0xD6E8FEB86659FD93 & MASK
            left, right = right, left ^ (mixed >> (64 - left_bits))
            left_bits, right_bits = right_bits, left_bits
        place = left << low_bits | right
        if place < size:
            return place


def sample_seed(seed: int, bucket: str, position: int) -> int:
    """63 bits for the random numbers of one sample: crop, timestep, noise, dropout. The same in every world."""
    text = f"{seed}\0{bucket}\0{position}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@lru_cache(maxsize=8192)
def _round_keys(seed: int, bucket: str, purpose: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"{seed}\0{bucket}\0{purpose}".encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "big") for i in range(ROUNDS))
