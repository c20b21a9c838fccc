"""Appends an encoded set to another one: both stay as they are, and an entry beside the first names the second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from videotrain_api.storage import layout
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.appended import AppendedEntry, appended_entries
from videotrain_trainer.data.checked_file import Column
from videotrain_trainer.data.sample_index import BucketIndex, SampleIndex, open_index, sample_digests, text_of
from videotrain_trainer.data.sets import EncodedSetInfo, read_set_info
from videotrain_trainer.errors import AlreadyExists, DataError, ObjectMissing, StorageUnavailable
from videotrain_trainer.storage import ObjectStore

ALIKE: Final = (
    "sources",
    "latent_channels",
    "spatial_compression",
    "context_dim",
    "pooled_dim",
    "text_encoder",
    "trim_padding",
    "autoencoder_weights",
)
"""What two sets must have in common to be trained on together: latents of two autoencoders mean different things."""
COVERED: Final = ("prompts", "captions", "references", "rows")
"""What the new set must have at least."""
AT_ONCE: Final = 1 << 20
"""Rows that are looked through at a time, some tens of MB."""
ATTEMPTS: Final = 8
"""Times that others may append while sets are compared."""
_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)


def append(store: ObjectStore, uri: str, new: str) -> tuple[int, int]:
    """Append a set; its number among what was appended, and its samples.

    Args:
        store: where both lie.
        uri: prefix of the set that stages train on.
        new: prefix of the set that is appended.

    Raises:
        DataError: they are one set, were not made alike, or have a clip in common.
        StorageUnavailable: others keep appending.
    """
    _check_alike(store, uri, new)
    index = _index(store, new)
    digests = np.unique(np.concatenate([_digests(part) for bucket in index.buckets for part in _parts(bucket)]))
    compared: set[str] = set()
    for _ in range(ATTEMPTS):
        entries = appended_entries(store, uri)
        there = [uri, *(entry.uri for entry in entries.values())]
        if new in there[1:]:
            raise DataError(f"{new}: was appended to {uri} already")
        for other in there:
            if other not in compared:
                _refuse_shared_clips(_index(store, other), index, digests)
                compared.add(other)
        number = max(entries, default=0) + 1
        entry = AppendedEntry(uri=new, index=index.identity)
        try:
            store.put_once(layout.appended_set(uri, number), sealed_json(entry.to_wire()))
        except AlreadyExists:
            continue  # another set has this number, and is compared, too
        return number, index.samples
    raise StorageUnavailable(f"{uri}: others appended to it {ATTEMPTS} times meanwhile; append again")


def listed(store: ObjectStore, uri: str) -> Iterator[tuple[int, str, int]]:
    """Number, prefix and samples of each set that was appended."""
    for number, entry in appended_entries(store, uri).items():
        yield number, entry.uri, _index(store, entry.uri).samples


def _index(store: ObjectStore, uri: str) -> SampleIndex:
    try:
        return open_index(store, uri, None)
    except ObjectMissing as error:
        raise DataError(f"{uri}: has no sample index; write it: videotrain-trainer index {uri}") from error


def _check_alike(store: ObjectStore, uri: str, new: str) -> None:
    if uri == new:
        raise DataError(f"{new}: cannot be appended to itself")
    old: EncodedSetInfo = read_set_info(store, uri)
    info: EncodedSetInfo = read_set_info(store, new)
    for name in ALIKE:
        found, wanted = getattr(info, name), getattr(old, name)
        if found != wanted:
            raise DataError(f"{new}: was encoded with {name} {found!r}, {uri} with {wanted!r}; encode it as that one")
    for name in COVERED:
        missing = sorted(set(getattr(old, name)) - set(getattr(info, name)))
        if missing:
            raise DataError(
                f"{new}: has no {name} {', '.join(missing)}, {uri} has; encode it for the same train stages"
            )


def _refuse_shared_clips(index: SampleIndex, new: SampleIndex, digests: Column) -> None:
    """A clip that is in both would be trained on twice in a pass. The larger set is read once, from end to end.

    Args:
        index: of the larger set.
        new: of the set that is appended.
        digests: of its clips, sorted.
    """
    for bucket in index.buckets:
        for part in _parts(bucket):
            found = _digests(part)
            places = np.minimum(np.searchsorted(digests, found), len(digests) - 1)
            alike = {text_of(clip) for clip in part[digests[places] == found]}
            # Two of 2^64 may be alike by chance, so texts decide.
            shared = _those_of(new, alike) if alike else set()
            if shared:
                raise DataError(f"{new.uri}: clip {min(shared)} is in {index.uri}, too; encode new videos only")


def _those_of(index: SampleIndex, clips: set[str]) -> set[str]:
    parts = (part for bucket in index.buckets for part in _parts(bucket))
    return {text for part in parts for text in map(text_of, part) if text in clips}


def _parts(bucket: BucketIndex) -> Iterator[Column]:
    clips = bucket.clips()
    for at in range(0, len(clips), AT_ONCE):
        yield clips[at : at + AT_ONCE]


def _digests(clips: Column) -> Column:
    """64 bits of each clip's uid, the same however a set stores it."""
    if clips.dtype.kind == "V":
        raw = np.ascontiguousarray(clips).view(np.uint8).reshape(len(clips), clips.dtype.itemsize)
        digits = np.empty((len(clips), 2 * clips.dtype.itemsize), np.uint8)
        digits[:, 0::2], digits[:, 1::2] = _HEX[raw >> 4], _HEX[raw & 15]
        clips = digits.reshape(-1).view(f"S{digits.shape[1]}")
    return sample_digests(clips, None, None)
