"""Batches for the micro-batches of a step, made ready ahead by threads and copied to the device beside its work.

Shapes: B batch, C channels, T frames, F given frames, H height, W width (latent or pixel), L text tokens, D text width,
P pooled width.

Which rank runs which micro-batches is the caller's business; a batch depends on (seed, bucket, position) alone.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from videotrain_api.config.text_classes import text_class
from videotrain_api.cost.data_wait import LOADER_THREADS, MICRO_BATCHES_AHEAD
from videotrain_trainer.data.sample_cache import SampleCache
from videotrain_trainer.data.sample_index import BucketIndex, SamplePlace
from videotrain_trainer.data.sample_order import OrderState, StepOrder
from videotrain_trainer.data.sample_reader import ReadingCounts, SampleReader
from videotrain_trainer.data.sets import LatentSet, TrainingSet
from videotrain_trainer.data.shards import DamagedSample, Member
from videotrain_trainer.data.stage_samples import HeldOut
from videotrain_trainer.data.transfer import Transfer, transfer_to
from videotrain_trainer.errors import DamagedObject, DataError
from videotrain_trainer.storage import ObjectStore

log = logging.getLogger(__name__)

REFERENCE = "reference."
"""Prefix of a sample's tensors that hold the separately encoded frames of a v2v kind."""
CAPTION = "caption."
"""Prefix of those that hold a text, in UTF-8, which is encoded beside training; a prompt style follows."""
TextRow = tuple[Tensor, Tensor, int]
"""Context (L, D) and pooled feature (P,) of a text in bfloat16, and its tokens, padding not counted."""
Captions = Callable[[Sequence[str]], Sequence[TextRow]]
"""Encodes the texts of a micro-batch, in order; may be called by several threads."""
HOST: Final = torch.device("cpu")
SPARES = 3
"""Stand-ins that are tried for one damaged sample."""
DAMAGED_SHARE = 0.01
"""A stage ends when more than this share of its samples (but always more than one) is damaged."""


class SampleKey(NamedTuple):
    """Which sample, and which numbers its random draws are keyed by."""

    uid: str
    bucket: str
    position: int
    """In the bucket's endless stream; with seed and bucket it keys every random number of the sample."""


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """One micro-batch of a train stage. Tensors are bfloat16, as stored."""

    latent_BCTHW: Tensor
    cond_first_BC1HW: Tensor
    """The first frame, encoded alone."""
    cond_last_BC1HW: Tensor
    """The last frame, encoded alone."""
    references_BCFHW: dict[str, Tensor]
    """Frames of v2v kinds by kind, encoded alone; only of a causal autoencoder."""
    context_BLD: Tensor
    """Text features, zeros behind the last token."""
    pooled_BP: Tensor
    keys: tuple[SampleKey, ...]
    text_tokens: tuple[int, ...]
    """Of each caption, padding not counted."""


class SkippedSample(NamedTuple):
    """A damaged sample and what stood in for it."""

    uid: str
    stand_in: str
    reason: str


Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


class _Gathering(Generic[Sample, Batch]):
    """A micro-batch whose samples are being loaded; the thread that loads the last one puts the batch together."""

    def __init__(self, size: int, finish: Callable[[list[Sample]], Batch]) -> None:
        self.batch: Future[Batch] = Future()
        self._samples: list[Sample | None] = [None] * size
        self._missing = size
        self._finish = finish
        self._lock = threading.Lock()

    def load(self, place: int, load: Callable[[], Sample]) -> None:
        """Load the sample at a place of the batch. The first error of any place is the batch's."""
        try:
            sample = load()
            with self._lock:
                self._samples[place] = sample
                self._missing -= 1
                last = self._missing == 0
            if last:
                self.batch.set_result(self._finish(cast("list[Sample]", self._samples)))
        except BaseException as error:  # told by whoever asks for the batch
            with self._lock:
                if not self.batch.done():
                    self.batch.set_exception(error)


@dataclass
class _Pending(Generic[Batch]):
    """A micro-batch that was asked for ahead."""

    step: int
    micro_batch: int
    on_host: Future[Batch]
    moved: Future[Batch] | None = None
    """On its way to the device."""


class MicroBatchLoader(ABC, Generic[Sample, Batch]):
    """Makes the micro-batches of one rank ready ahead of the step that is being trained on.

    Threads fetch, decode and put together; the batch after the one that was fetched is copied to the device while that
    one is computed on. A damaged sample is replaced by a spare that its place in the order decides, so every world
    takes the same one.

    Args:
        data: the samples and their order.
        state: of the order; prefetching starts behind it.
        micro_batches_of_rank: for every bucket of the plan, micro-batches that this process runs in a step of it,
            ascending; may be empty.
        threads: requests or decodes at the same time.
        device: where batches are wanted.
    """

    def __init__(
        self,
        data: TrainingSet,
        state: OrderState,
        micro_batches_of_rank: Sequence[Sequence[int]],
        threads: int,
        device: torch.device = HOST,
    ) -> None:
        data.plan.check(state)
        self._data = data
        self._transfer: Transfer = transfer_to(device)
        self._lock = threading.Lock()
        self._skipped: dict[str, SkippedSample] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._ahead = _micro_batches_after(data, state, micro_batches_of_rank)
        self._pending: deque[_Pending[Batch]] = deque()
        self._prefetch()

    @property
    def skipped(self) -> list[SkippedSample]:
        """Damaged samples met so far in this process, each once."""
        with self._lock:
            return list(self._skipped.values())

    def fetch(self, order: StepOrder, micro_batch: int) -> Batch:
        """The batch of a micro-batch, on the device. Fast if steps are asked for in order; any other order works too.

        Raises:
            DamagedObject: samples are damaged beyond the limit, as this machine reads them.
            StorageUnavailable: the object store keeps failing.
        """
        wanted = self._take(order.step, micro_batch) or self._submit(order, micro_batch)
        self._prefetch()
        batch = self._transfer.finish(wanted.moved or self._transfer.start(wanted.on_host))
        # Only now, or the copy of the next batch could be queued before that of this one. One batch ahead is enough,
        # and more would take memory of the device.
        if self._pending and self._pending[0].moved is None:
            self._pending[0].moved = self._transfer.start(self._pending[0].on_host)
        return batch

    def go_on(self, data: TrainingSet, state: OrderState, micro_batches_of_rank: Sequence[Sequence[int]]) -> None:
        """Prefetch along an order that has grown out of the present one. What was asked for ahead is left to itself.

        Args:
            data: the samples and the order that has grown.
            state: of it; prefetching goes on behind it.
            micro_batches_of_rank: as before.
        """
        data.plan.check(state)
        self._data = data
        self._pending.clear()
        self._ahead = _micro_batches_after(data, state, micro_batches_of_rank)
        self._prefetch()

    def close(self) -> None:
        """Stop the threads; fetches that have begun are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def reading(self) -> ReadingCounts:
        """What was asked of the object store so far; nothing where samples are not read one by one."""
        return ReadingCounts()

    @abstractmethod
    def _load(self, bucket: int, index: int, key: SampleKey) -> Sample:
        """An element of a bucket of the plan; called in a thread, raises DamagedSample."""

    @abstractmethod
    def _collate(self, samples: list[Sample]) -> Batch:
        """Samples of a micro-batch, in order, to a batch; called in a thread."""

    def _take(self, step: int, micro_batch: int) -> _Pending[Batch] | None:
        while self._pending and (self._pending[0].step, self._pending[0].micro_batch) <= (step, micro_batch):
            found = self._pending.popleft()
            if (found.step, found.micro_batch) == (step, micro_batch):
                return found
        return None

    def _prefetch(self) -> None:
        for order, micro_batch in islice(self._ahead, MICRO_BATCHES_AHEAD - len(self._pending)):
            self._pending.append(self._submit(order, micro_batch))

    def _submit(self, order: StepOrder, micro_batch: int) -> _Pending[Batch]:
        pairs = list(zip(order.positions[micro_batch], order.micro_batches[micro_batch], strict=True))
        found: _Gathering[Sample, Batch] = _Gathering(
            len(pairs), lambda samples: self._transfer.stage(self._collate(samples))
        )
        for place, (position, index) in enumerate(pairs):
            self._pool.submit(found.load, place, partial(self._load_or_spare, order, position, index))
        return _Pending(order.step, micro_batch, found.batch)

    def _load_or_spare(self, order: StepOrder, position: int, index: int) -> Sample:
        failed: list[tuple[str, str]] = []
        for attempt in range(SPARES + 1):
            chosen = self._data.plan.spare(order.bucket_index, index, position, attempt) if attempt else index
            key = SampleKey(self._data.uid(order.bucket_index, chosen), order.bucket, position)
            try:
                sample = self._load(order.bucket_index, chosen, key)
            except DamagedSample as error:
                failed.append((key.uid, str(error)))
                continue
            self._note([SkippedSample(uid, key.uid, reason) for uid, reason in failed])
            return sample
        raise DamagedObject(f"{len(failed)} damaged samples for one place in the order, the first one: {failed[0][1]}")

    def _note(self, skipped: list[SkippedSample]) -> None:
        total = sum(bucket.size for bucket in self._data.plan.buckets)
        with self._lock:
            for sample in skipped:
                if sample.uid not in self._skipped:
                    log.warning("skipped sample %s for %s: %s", sample.uid, sample.stand_in, sample.reason)
                self._skipped[sample.uid] = sample
            if len(self._skipped) > max(1, int(total * DAMAGED_SHARE)):
                reason = next(reversed(self._skipped.values())).reason
                raise DamagedObject(
                    f"{self._data.uri}: {len(self._skipped)} of {total} samples are damaged, more than "
                    f"{DAMAGED_SHARE:.0%}; the last one: {reason}"
                )


class LatentSample(NamedTuple):
    """What a thread hands to the collation."""

    tensors: dict[str, Tensor]
    key: SampleKey
    text_tokens: int


class LatentLoader(MicroBatchLoader[LatentSample, LatentBatch]):
    """Encoded samples from tar shards: one ranged GET each, checksum verified before decoding.

    Args:
        store: object store.
        latents: the samples and their order.
        state: of the order.
        micro_batches_of_rank: for every bucket, micro-batches that this process runs, ascending.
        device: where batches are wanted.
        cache: of samples on this node.
        captions: encodes the captions of samples that have no text features of their own.
    """

    def __init__(
        self,
        store: ObjectStore,
        latents: LatentSet,
        state: OrderState,
        micro_batches_of_rank: Sequence[Sequence[int]],
        device: torch.device = HOST,
        cache: SampleCache | None = None,
        captions: Captions | None = None,
    ) -> None:
        self._reader = SampleReader(store, cache)
        self._latents, self._captions = latents, captions
        super().__init__(latents, state, micro_batches_of_rank, threads=LOADER_THREADS, device=device)

    def go_on(self, data: TrainingSet, state: OrderState, micro_batches_of_rank: Sequence[Sequence[int]]) -> None:
        """As MicroBatchLoader."""
        if not isinstance(data, LatentSet):
            raise TypeError(f"data: {data}; encoded samples are needed")
        self._latents = data
        super().go_on(data, state, micro_batches_of_rank)

    def _load(self, bucket: int, index: int, key: SampleKey) -> LatentSample:
        latents = self._latents
        group, number = latents.find(bucket, index)
        return load_sample(self._reader, latents, group.bucket, group.bucket.place(number), key)

    def reading(self) -> ReadingCounts:
        """Requests for samples."""
        return self._reader.counts()

    def close(self) -> None:
        """Stop the threads."""
        super().close()
        self._reader.close()

    def _collate(self, samples: list[LatentSample]) -> LatentBatch:
        return collate(self._latents, samples, self._captions)


def load_sample(
    reader: SampleReader, latents: LatentSet, bucket: BucketIndex, place: SamplePlace, key: SampleKey
) -> LatentSample:
    """One encoded sample by its row of the index.

    Raises:
        DamagedSample: it is missing, does not fit its checksum or has another shape than its bucket.
    """
    uri = f"{bucket.uri}/{place.shard}"
    member = Member(name=place.uid, offset=place.offset, length=place.length, crc32c=place.crc32c)
    tensors = reader.tensors(uri, member)
    expected, found = (latents.latent_channels, *bucket.info.latent), tuple(tensors["latent"].shape)
    if found != expected:
        raise DamagedSample(f"{uri}: sample {member.name} has shape {found}, its bucket {expected}")
    return LatentSample(tensors, key, place.text_tokens)


def collate(latents: LatentSet, samples: list[LatentSample], captions: Captions | None = None) -> LatentBatch:
    """Samples of one shape to a batch, in order."""
    length, texts = latents.context_length, _texts(latents, samples, captions)
    if not latents.attend_padding:
        length = max(text_class(sample.text_tokens, length) for sample in samples)  # a bucket has one class
    tensors = [sample.tensors for sample in samples]
    return LatentBatch(
        latent_BCTHW=torch.stack([found["latent"] for found in tensors]),
        cond_first_BC1HW=torch.stack([found["cond_first"] for found in tensors]),
        cond_last_BC1HW=torch.stack([found["cond_last"] for found in tensors]),
        references_BCFHW={
            name.removeprefix(REFERENCE): torch.stack([found[name] for found in tensors])
            for name in tensors[0]
            if name.startswith(REFERENCE)
        },
        context_BLD=torch.stack([_padded(context_LD, length, latents) for context_LD, _ in texts]),
        pooled_BP=torch.stack([pooled_P for _, pooled_P in texts]),
        keys=tuple(sample.key for sample in samples),
        text_tokens=tuple(sample.text_tokens for sample in samples),
    )


def _texts(
    latents: LatentSet, samples: Sequence[LatentSample], captions: Captions | None
) -> list[tuple[Tensor, Tensor]]:
    """Context and pooled feature of each sample: as stored, or of its caption."""
    style = latents.prompt_style
    if captions is None:
        return [(one.tensors[f"context.{style}"], one.tensors[f"pooled.{style}"]) for one in samples]
    rows = captions([bytes(one.tensors[f"{CAPTION}{style}"].tolist()).decode() for one in samples])
    for one, (_, _, tokens) in zip(samples, rows, strict=True):
        if tokens > one.text_tokens:
            raise DataError(
                f"{latents.uri}: the caption of sample {one.key.uid} had {one.text_tokens} tokens where it was encoded "
                f"and has {tokens} with spec.textEncoder; use the tokenizer of then, or encode again"
            )
    return [(context_LD, pooled_P) for context_LD, pooled_P, _ in rows]


def held_out_batches(
    store: ObjectStore, latents: LatentSet, samples: Sequence[HeldOut], captions: Captions | None = None
) -> list[LatentBatch]:
    """Held-out samples as batches of one, keyed by their uid.

    Raises:
        DataError: one is damaged; a validation loss over other samples would not compare.
    """
    batches, reader = [], SampleReader(store)
    for held in samples:
        place = held.bucket.place(held.number)
        key = SampleKey(place.uid, place.uid, 0)
        batches.append(collate(latents, [load_sample(reader, latents, held.bucket, place, key)], captions))
    reader.close()
    return batches


def _padded(context_LD: Tensor, length: int, latents: LatentSet) -> Tensor:
    """So many rows: zeros are added, or what the encoder has padded beyond the caption's length class is left out."""
    found = context_LD.shape[0]
    if found > latents.context_length:
        raise DataError(
            f"text features have {found} tokens, textEncoder.maxTokens allows {latents.context_length}; encode again"
        )
    return torch.nn.functional.pad(context_LD[:length], (0, 0, 0, max(0, length - found)))


def _micro_batches_after(
    data: TrainingSet, state: OrderState, micro_batches_of_rank: Sequence[Sequence[int]]
) -> Iterator[tuple[StepOrder, int]]:
    if not any(micro_batches_of_rank):
        return
    for order in data.plan.walk(state):
        for micro_batch in micro_batches_of_rank[order.bucket_index]:
            yield order, micro_batch
