"""Safetensors files read tensor by tensor: one file or many with an index, on disk, in memory or in the object store.

Only headers are read when weights are opened. A tensor's bytes are fetched when it is asked for, by one ranged read, so
memory is bounded by the tensors that the caller holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.files import local_path
from videotrain_trainer.storage import ObjectStore

HEADER_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""A longer header is no header: the limit of the format's own reader."""
INDEX_SUFFIX = ".safetensors.index.json"
RANGE_BYTES = 64 * 1024**2
"""Most bytes of one read of a whole file."""
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


class ByteReader(Protocol):
    """Something that gives byte ranges."""

    @property
    def size(self) -> int:
        """How many bytes there are in all."""

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """`length` bytes from `offset`; fewer if it ends before."""


@dataclass(frozen=True)
class _Memory:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


@dataclass(frozen=True)
class _LocalFile:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)  # one copy: tensors need memory that may be written to
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < length and (count := file.readinto(memoryview(buffer)[done:])):
                done += count
        return buffer[:done] if done < length else buffer


@dataclass(frozen=True)
class _Object:
    store: ObjectStore
    uri: str

    @property
    def size(self) -> int:
        return self.store.stat(self.uri).size

    def read(self, offset: int, length: int) -> bytes:
        return self.store.get_range(self.uri, offset, length)


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

    @classmethod
    def open(cls, reader: ByteReader, what: str) -> SafetensorsFile:
        """Read and check the header.

        Raises:
            ConfigError: it is no safetensors file, or it ends before its tensors do.
        """
        size = reader.size
        length = int.from_bytes(reader.read(0, min(size, HEADER_LENGTH_BYTES)), "little")
        begin = HEADER_LENGTH_BYTES + length
        if size < HEADER_LENGTH_BYTES or length > MOST_HEADER_BYTES:
            raise ConfigError(f"{what}: not a safetensors file: {size} bytes that begin with no header length")
        if size < begin:
            raise ConfigError(f"{what}: truncated: the header has {length} bytes, but the file ends after {size}")
        infos, metadata = _header(reader.read(HEADER_LENGTH_BYTES, length), begin, what)
        _check_complete(infos, begin, size, what)
        return cls(what, reader, infos, metadata)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it is stored."""
        info = self.infos[name]
        data = self.reader.read(info.offset, info.length)
        if len(data) != info.length:
            raise ConfigError(
                f"{self.what}: truncated while it was read: {name} has {len(data)} of {info.length} bytes"
            )
        if not data:
            return torch.empty(info.shape, dtype=info.dtype)
        writable = data if isinstance(data, bytearray) else bytearray(data)
        return torch.frombuffer(writable, dtype=torch.uint8).view(info.dtype).reshape(info.shape)


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
        """All bytes, a range at a time: of each file once, in order, then the configuration beside them."""
        for file in {id(file): file for file in self.files.values()}.values():
            for offset in range(0, file.reader.size, RANGE_BYTES):
                yield file.reader.read(offset, min(RANGE_BYTES, file.reader.size - offset))
        if self.config is not None:
            yield json.dumps(self.config, sort_keys=True).encode()

    def dtype(self, name: str) -> torch.dtype:
        """Data type as stored."""
        return self.files[name].infos[name].dtype

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it is stored."""
        return self.files[name].read(name)


def open_weights(source: str | Path | bytes, what: str | None = None, store: ObjectStore | None = None) -> Weights:
    """Open weights without reading any tensor.

    Args:
        source: content of a file; or the path or URI (file://, s3://) of a safetensors file, of an index
            (`*.safetensors.index.json`), or of a folder with one of either: what Hugging Face's libraries write, or the
            result of a stage.
        what: name for messages; the source itself if unset.
        store: serves s3://; by default one with the credentials of the environment.

    Raises:
        ConfigError: there are no weights, files are damaged, or index and files disagree.
    """
    if isinstance(source, bytes):
        name = what or "weights"
        return _of_file(SafetensorsFile.open(_Memory(source), name), name)
    place = Place(source, store)
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
    """

    def __init__(self, source: str | Path, store: ObjectStore | None) -> None:
        text = str(source)
        self.remote = text.startswith("s3://")
        self.root = text if self.remote else str(local_path(text))
        self.store = (store or default_store(text)) if self.remote else None

    def weights_file(self) -> str:
        """The file or index that is meant.

        Raises:
            ConfigError: none, or more than one.
        """
        if self.root.endswith((".safetensors", INDEX_SUFFIX)):
            return self._existing(self.root)
        usual = self.inside(USUAL_FILE)
        if self.store is not None and self.store.exists(usual):
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
        return self.store.exists(file) if self.store else Path(file).is_file()

    def read(self, file: str) -> bytes:
        """A small file as a whole."""
        reader = self.reader(file)
        return bytes(reader.read(0, reader.size))

    def reader(self, file: str) -> ByteReader:
        """Byte ranges of a file or object."""
        return _Object(self.store, file) if self.store else _LocalFile(Path(file))

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
    bucket = uri.removeprefix("s3://").split("/", 1)[0]
    return ObjectStore.for_storage(Storage(uri=f"s3://{bucket}"))


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


def _header(data: bytes | bytearray, begin: int, what: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
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
