"""Safetensors files read tensor by tensor: one file or many with an index, on disk, in memory or in the object store.

Only headers are read when weights are opened. A tensor's bytes are fetched when it is asked for, by one ranged read, so
memory is bounded by the tensors that the caller holds. Files that carry checksums are verified as they are read, and
what does not fit is read again on connections of its own before it is believed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from videotrain_api.resource.locations import HUB_SCHEME
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.checksums import READINGS, checksum, read_again
from videotrain_trainer.errors import ConfigError, DamagedObject, ObjectMissing
from videotrain_trainer.files import local_path
from videotrain_trainer.networks.weights.readers import ByteReader, LocalFile, Memory, StoredObject
from videotrain_trainer.networks.weights.seal import SEAL, Sealed, checksums_in, seal_of
from videotrain_trainer.node_cache import NodeCache
from videotrain_trainer.storage import ObjectStore

LOG = logging.getLogger(__name__)
HEADER_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""A longer header is no header: the limit of the format's own reader."""
INDEX_SUFFIX = ".safetensors.index.json"
CONFIG_FILE = "config.json"
"""What Hugging Face's libraries write beside weights."""
USUAL_FILE = "weights/model.safetensors"
"""Where a finished stage has its result."""
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Data types by their names in the format."""
MISREAD = (ConfigError, DamagedObject, ObjectMissing)
"""What one reading may say of a file that is whole."""
REMEDY = f"make it again. A file that was changed on purpose has to lose the field {SEAL} of its metadata"


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """First byte in the file."""
    length: int
    """Bytes."""


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file whose header was read; tensors are read when asked for."""

    what: str
    """Where it came from, for messages."""
    reader: ByteReader
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    """Free text fields, without the checksums."""
    header: bytes = b""
    """All bytes before the first tensor."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """CRC-32C of each tensor's bytes, 8 hex digits; empty for a file that carries none."""

    @classmethod
    def open(cls, reader: ByteReader, what: str) -> SafetensorsFile:
        """Read and check the header.

        Raises:
            ConfigError: it is no safetensors file, or it ends before its tensors do.
            DamagedObject: it does not fit its checksum.
        """
        found = read_again(reader, lambda source: cls._open(source, what), MISREAD)
        if not found.checksums and found.infos:
            _say_unsealed(what)
        return found

    @classmethod
    def _open(cls, reader: ByteReader, what: str) -> SafetensorsFile:
        size = reader.size
        length = int.from_bytes(reader.read(0, min(size, HEADER_LENGTH_BYTES)), "little")
        begin = HEADER_LENGTH_BYTES + length
        if size < HEADER_LENGTH_BYTES or length > MOST_HEADER_BYTES:
            raise ConfigError(f"{what}: not a safetensors file: {size} bytes that begin with no header length")
        if size < begin:
            raise ConfigError(f"{what}: truncated: the header has {length} bytes, but the file ends after {size}")
        header = bytes(reader.read(0, begin))
        infos, metadata = _header(header[HEADER_LENGTH_BYTES:], begin, what)
        _check_complete(infos, begin, size, what)
        return cls(what, reader, infos, metadata, header, _unsealed(metadata, infos, what))

    def content(self, name: str) -> bytes | bytearray:
        """The bytes of one tensor.

        Raises:
            ConfigError: the file ends before they do.
            DamagedObject: they do not fit their checksum.
        """
        return read_again(self.reader, lambda source: self._content(source, name), MISREAD)

    def _content(self, reader: ByteReader, name: str) -> bytes | bytearray:
        info, wanted = self.infos[name], self.checksums.get(name)
        data = reader.read(info.offset, info.length)
        if len(data) != info.length:
            raise ConfigError(
                f"{self.what}: truncated while it was read: {name} has {len(data)} of {info.length} bytes"
            )
        if wanted is not None and checksum(data) != wanted:
            raise DamagedObject(
                f"{self.what}: damaged, as {READINGS} readings say: {name} does not fit its checksum {wanted}; {REMEDY}"
            )
        return data

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it is stored; verified like `content`."""
        info = self.infos[name]
        return _tensor(self.content(name), info.dtype).reshape(info.shape)

    def read_range(self, name: str, start: int, length: int) -> Tensor:
        """(length,): elements of one tensor from `start` on, on the CPU, as they are stored.

        Checksums are of whole tensors, so nothing is verified here.

        Raises:
            ConfigError: the file ends before they do.
        """
        info = self.infos[name]
        first, size = info.offset + start * info.dtype.itemsize, length * info.dtype.itemsize

        def read(reader: ByteReader) -> bytes | bytearray:
            data = reader.read(first, size)
            if len(data) != size:
                raise ConfigError(f"{self.what}: truncated while it was read: {name} has {len(data)} of {size} bytes")
            return data

        return _tensor(read_again(self.reader, read, MISREAD), info.dtype)


def _tensor(data: bytes | bytearray, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    writable = data if isinstance(data, bytearray) else bytearray(data)
    return torch.frombuffer(writable, dtype=torch.uint8).view(dtype)


@dataclass(frozen=True)
class Weights:
    """The tensors of one model, in one file or many."""

    what: str
    """Where they came from, for messages."""
    files: Mapping[str, SafetensorsFile]
    """The file of each tensor."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Free text fields."""
    places: Sequence[str] = ()
    """Paths or URIs of the files, each once; none for content in memory."""
    config: Mapping[str, Any] | None = None
    """Content of the `config.json` beside the files; None if there is none."""
    config_place: str | None = None
    """Path or URI of that."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, in the order of the files."""
        return {name: file.infos[name].shape for name, file in self.files.items()}

    def contents(self) -> Iterator[bytes | bytearray]:
        """All bytes, verified, a tensor at a time: of each file once, in order, then the configuration beside them."""
        for file in {id(file): file for file in self.files.values()}.values():
            yield file.header
            yield from map(file.content, sorted(file.infos, key=lambda name: file.infos[name].offset))
        if self.config is not None:
            yield json.dumps(self.config, sort_keys=True).encode()

    def dtype(self, name: str) -> torch.dtype:
        """Data type as stored."""
        return self.files[name].infos[name].dtype

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it is stored."""
        return self.files[name].read(name)


def open_weights(
    source: str | Path | bytes,
    what: str | None = None,
    store: ObjectStore | None = None,
    cache: NodeCache | None = None,
) -> Weights:
    """Open weights without reading any tensor.

    Args:
        source: content of a file; or the path or URI (file://, s3://) of a safetensors file, of an index
            (`*.safetensors.index.json`), or of a folder with one of either: what Hugging Face's libraries write, or the
            result of a stage.
        what: name for messages; the source itself if unset.
        store: serves s3://; by default one with the credentials of the environment.
        cache: where objects with tensors are fetched whole, which pays where a process reads all of them.

    Raises:
        ConfigError: there are no weights, files are damaged, or index and files disagree.
    """
    if isinstance(source, bytes):
        name = what or "weights"
        return _of_file(SafetensorsFile.open(Memory(source), name), name)
    place = Place(source, store, cache)
    file = place.weights_file()
    name = what or str(source)
    if file.endswith(INDEX_SUFFIX):
        found = _of_index(place, file, name)
    else:
        found = _of_file(SafetensorsFile.open(place.reader(file), name), name, file)
    beside = f"{file.rpartition('/')[0]}/{CONFIG_FILE}" if "/" in file else CONFIG_FILE
    if not place.has(beside):
        return found
    return replace(found, config=_json_object(place.read(beside), beside), config_place=beside)


def read_metadata(source: bytes, what: str) -> dict[str, str]:
    """The free text fields of a safetensors file; empty if it has none.

    Args:
        source: content of the file.
        what: where it came from, for messages.

    Raises:
        ConfigError: it is no safetensors file.
    """
    return dict(open_weights(source, what).metadata)


class Place:
    """A path or URI of a file or folder: lists what is in it and opens weights.

    Args:
        source: a path, `file://` or `s3://`.
        store: serves s3://; by default one with the credentials of the environment.
        cache: for objects with tensors; none are kept if unset.
    """

    def __init__(self, source: str | Path, store: ObjectStore | None, cache: NodeCache | None = None) -> None:
        text = str(source)
        self.remote = text.startswith(("s3://", HUB_SCHEME))
        self.root = text if self.remote else str(local_path(text))
        self.store = (store or default_store(text)) if self.remote else None
        self._cache = cache if self.remote else None

    def reconnected(self) -> Self:
        """The same place through connections of its own."""
        return type(self)(self.root, self.store.reconnected() if self.store else None, self._cache)

    def weights_file(self) -> str:
        """The file or index that is meant.

        Raises:
            ConfigError: none, or more than one.
        """
        if self.root.endswith((".safetensors", INDEX_SUFFIX)):
            return self._existing(self.root)
        usual = self.inside(USUAL_FILE)
        if self.root.startswith("s3://") and self.has(usual):
            return usual  # a stage's folder may hold very many objects
        below = self._below(self.root)
        for folder in ("", "weights/"):
            here = [name for name in below if name.startswith(folder) and "/" not in name[len(folder) :]]
            for suffix in (INDEX_SUFFIX, ".safetensors"):
                found = [name for name in here if name.endswith(suffix)]
                if len(found) > 1:
                    raise ConfigError(f"{self.root}: several weights to choose from: {', '.join(found)}; name one")
                if found:
                    return self.inside(found[0])
        if self.has(self.root):
            raise ConfigError(f"{self.root}: not a weight file: its name must end with .safetensors or {INDEX_SUFFIX}")
        raise ConfigError(f"{self.root}: there are no weights: neither *{INDEX_SUFFIX} nor *.safetensors")

    def inside(self, name: str) -> str:
        """Path or URI of a file in this folder, whether it is there or not."""
        return f"{self.root.rstrip('/')}/{name}"

    def has(self, file: str) -> bool:
        """Is there such a file or object?"""
        if self.store is None:
            return Path(file).is_file()
        return self.store.exists(file) or self.store.reconnected().exists(file)

    def read(self, file: str) -> bytes:
        """A small file as a whole."""
        reader = self.reader(file)
        return bytes(reader.read(0, reader.size))

    def reader(self, file: str) -> ByteReader:
        """Byte ranges of a file or object."""
        if self._cache is not None and file.endswith(".safetensors"):
            cached = self._cache.file(file)
            if cached is not None:
                return cached
        return StoredObject(self.store, file) if self.store else LocalFile(Path(file))

    def beside(self, index: str, name: str) -> str:
        """A file in the folder of the index."""
        return self._existing(f"{index.rsplit('/', 1)[0]}/{name}" if "/" in index else name)

    def _existing(self, file: str) -> str:
        if not self.has(file):
            raise ConfigError(f"{file}: there is no such weight file")
        return file

    def _below(self, folder: str) -> list[str]:
        if self.store:
            prefix = folder.rstrip("/")
            return [found.uri.removeprefix(f"{prefix}/") for found in self.store.list(prefix)]
        root = Path(folder)
        return sorted(
            path.relative_to(root).as_posix() for pattern in ("*", "weights/*") for path in root.glob(pattern)
        )


def default_store(uri: str) -> ObjectStore:
    """The object store of an s3:// URI in this environment: AWS_ENDPOINT_URL, credentials as boto3 finds them."""
    bucket = "of-no-use" if uri.startswith(HUB_SCHEME) else uri.removeprefix("s3://").split("/", 1)[0]
    return ObjectStore.for_storage(Storage(uri=f"s3://{bucket}"))


def _unsealed(metadata: dict[str, str], infos: Mapping[str, TensorInfo], what: str) -> dict[str, str]:
    """Takes the seal out of the metadata and gives the checksums of the tensors; none if there is no seal."""
    seal = metadata.pop(SEAL, None)
    if seal is None:
        return {}
    try:
        found = checksums_in(seal, list(infos))
    except ValueError as error:
        raise DamagedObject(f"{what}: damaged, as {READINGS} readings say: {error}; {REMEDY}") from error
    if seal_of({n: Sealed(info.dtype, info.shape, found[n]) for n, info in infos.items()}, metadata) != seal:
        raise DamagedObject(
            f"{what}: damaged, as {READINGS} readings say: the header does not fit its checksum; {REMEDY}"
        )
    return found


@cache
def _say_unsealed(what: str) -> None:
    LOG.info("%s carries no checksums of videotrain: what is read of it is taken as it is", what)


def _of_file(file: SafetensorsFile, what: str, *places: str) -> Weights:
    return Weights(what, dict.fromkeys(file.infos, file), file.metadata, places)


def _of_index(place: Place, index: str, what: str) -> Weights:
    reader = place.reader(index)
    try:
        mapping: dict[str, str] = dict(json.loads(reader.read(0, reader.size))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{index}: not an index of safetensors files (no weight_map): {error}") from error
    names = dict.fromkeys(mapping.values())
    shards = {name: SafetensorsFile.open(place.reader(path := place.beside(index, name)), path) for name in names}
    lost = [
        f"missing: {tensor} is not in {shard}" for tensor, shard in mapping.items() if tensor not in shards[shard].infos
    ]
    extra = [
        f"unexpected: {tensor} in {shard} is not in the index"
        for shard, file in shards.items()
        for tensor in file.infos
        if mapping.get(tensor) != shard
    ]
    if lost or extra:
        raise ConfigError(f"{index}: index and files disagree:{listed(lost + extra)}")
    metadata = {key: value for file in shards.values() for key, value in file.metadata.items()}
    places = [shard.what for shard in shards.values()]
    return Weights(what, {tensor: shards[shard] for tensor, shard in mapping.items()}, metadata, places)


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{what}: a configuration in JSON is needed there: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{what}: a JSON object is needed there")
    return fields


def listed(problems: Iterable[str], shown: int = 20) -> str:
    """Lines for a message, cut after `shown`."""
    lines = list(problems)
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return "".join(f"\n  {line}" for line in lines[:shown] + more)


def _header(data: bytes, begin: int, what: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        header = json.loads(data)
        metadata: dict[str, str] = header.pop("__metadata__", {})
        infos = {name: _info(facts, begin) for name, facts in header.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{what}: not a safetensors file: {error}") from error
    for name, info in infos.items():
        if math.prod(info.shape) * info.dtype.itemsize != info.length:
            raise ConfigError(f"{what}: damaged header: {name} {list(info.shape)} cannot have {info.length} bytes")
    return infos, metadata


def _info(facts: Mapping[str, object], begin: int) -> TensorInfo:
    dtype, shape, offsets = str(facts["dtype"]), facts["shape"], facts["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"data type {dtype!r} is none of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError("shape and data_offsets must be lists")
    return TensorInfo(DTYPES[dtype], tuple(shape), begin + int(offsets[0]), int(offsets[1]) - int(offsets[0]))


def _check_complete(infos: Mapping[str, TensorInfo], begin: int, size: int, what: str) -> None:
    end = max((info.offset + info.length for info in infos.values()), default=begin)
    if end <= size:
        return
    cut = [
        f"truncated: {name} {list(info.shape)} needs bytes {info.offset} to {info.offset + info.length}"
        for name, info in infos.items()
        if info.offset + info.length > size
    ]
    raise ConfigError(f"{what}: truncated: {end} bytes expected, the file ends after {size}:{listed(cut)}")
