"""Safetensors files written tensor by tensor, whole or in shards with Hugging Face's index, to disk or object store."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from videotrain_trainer.checksums import checksum
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.files import local_path, replacing
from videotrain_trainer.networks.weights.files import DTYPES, INDEX_SUFFIX, default_store
from videotrain_trainer.networks.weights.seal import SEAL, Sealed, seal_of, unset_seal
from videotrain_trainer.storage import ObjectStore, disk_full_is_clear

SHARD_BYTES = 4 * 1024**3
"""Default size of a shard."""
ALIGNMENT = 8
"""Headers are padded to a multiple of it, so that tensors are aligned in memory."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """How many bytes the tensor takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


MakeTensor = Callable[[str], Tensor]
Tell = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where weights go: a file, or a folder for shards."""

    target: str | Path
    """A path or URI (file://, s3://) that ends in `.safetensors` for one file; else a folder."""
    stem: str = "model"
    """Name of the files in a folder, without number and suffix."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes of a file in a folder, unless one tensor is larger."""
    store: ObjectStore | None = None
    """Serves s3://; by default one with the credentials of the environment."""
    sealed: bool = False
    """Whether files carry checksums of their header and tensors. Files for other programs do not: those may change
    tensors and keep the free text fields."""


def write_weights(
    destination: Destination,
    plan: Sequence[Planned],
    make: MakeTensor,
    metadata: Mapping[str, str] | None = None,
    tell: Tell | None = None,
) -> list[str]:
    """Write tensors in the order of the plan, each made just before it is written.

    A file appears under its name when it is complete, the index last. Files for the object store are made in the
    temporary folder first, one at a time.

    Args:
        destination: file or folder.
        plan: what will be written.
        make: gives the tensor of a name.
        metadata: free text fields of every file.
        tell: is told the bytes of each tensor once it is written.

    Returns:
        Names of the files.

    Raises:
        ConfigError: a tensor is not as planned, a name is planned twice, or a folder has such files already: shards of
            two models must not be mixed up.
        DiskFull: no space left.
    """
    if len({planned.name for planned in plan}) < len(plan):
        raise ConfigError(f"{destination.target}: a tensor name is to be written twice")
    folder = _Folder(destination)
    folder.check_free(destination.stem)
    shards = [list(plan)] if folder.single else _shards(plan, destination.shard_bytes)
    names = [folder.single] if folder.single else _names(destination.stem, len(shards))
    for name, shard in zip(names, shards, strict=True):
        with folder.file(name) as file:
            _write_file(file, shard, make, metadata or {}, tell, destination.sealed)
    if len(shards) > 1:
        mapping = {planned.name: name for name, shard in zip(names, shards, strict=True) for planned in shard}
        total = sum(planned.length for planned in plan)
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        with folder.file(f"{destination.stem}{INDEX_SUFFIX}") as file:
            file.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")
    return names


def weights_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Small tensors as one sealed safetensors file in memory."""
    buffer = io.BytesIO()
    _write_file(buffer, planned_order(tensors), tensors.__getitem__, metadata or {}, None, sealed=True)
    return buffer.getvalue()


def planned_order(tensors: Mapping[str, Tensor]) -> list[Planned]:
    """A plan for tensors as they are, wide data types first: programs that map a file need each one aligned."""
    plan = [Planned(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    return sorted(plan, key=lambda planned: -planned.dtype.itemsize)


def _names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _shards(plan: Sequence[Planned], limit: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    size = 0
    for planned in plan:
        if shards[-1] and size + planned.length > limit:
            shards.append([])
            size = 0
        shards[-1].append(planned)
        size += planned.length
    return shards


def _write_file(
    file: BinaryIO,
    plan: Sequence[Planned],
    make: MakeTensor,
    metadata: Mapping[str, str],
    tell: Tell | None,
    sealed: bool,
) -> None:
    file.write(file_header(plan, {**metadata, SEAL: unset_seal(len(plan))} if sealed else metadata))
    written: dict[str, Sealed] = {}
    for planned in plan:
        tensor = make(planned.name)
        if tuple(tensor.shape) != planned.shape or tensor.dtype != planned.dtype:
            raise ConfigError(
                f"{planned.name}: {list(tensor.shape)} {tensor.dtype} came where {list(planned.shape)} "
                f"{planned.dtype} was announced"
            )
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().data if planned.length else memoryview(b"")
        if sealed:
            written[planned.name] = Sealed(planned.dtype, planned.shape, checksum(data))
        file.write(data)
        if tell:
            tell(planned.length)
    if sealed:
        file.seek(0)
        file.write(file_header(plan, {**metadata, SEAL: seal_of(written, metadata)}))


def file_header(plan: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    """All bytes of a file before its first tensor; a multiple of ALIGNMENT."""
    facts: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for planned in plan:
        ends = [offset, offset + planned.length]
        facts[planned.name] = {"dtype": _NAMES[planned.dtype], "shape": list(planned.shape), "data_offsets": ends}
        offset += planned.length
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class _Folder:
    """Files that appear under their names when they are complete."""

    def __init__(self, destination: Destination) -> None:
        target = str(destination.target)
        self._remote = target.startswith("s3://")
        self._store = (destination.store or default_store(target)) if self._remote else None
        if not self._remote:
            target = str(local_path(target).absolute())
        is_file = target.endswith(".safetensors")
        self._root, self.single = target.rsplit("/", 1) if is_file else (target.rstrip("/"), "")

    def check_free(self, stem: str) -> None:
        """Raises ConfigError if a folder has weights of that name already; a single file may be replaced."""
        if self.single:
            return
        if self._store is not None:
            below = [found.uri.removeprefix(f"{self._root}/") for found in self._store.list(self._root)]
            found = [name for name in below if name.startswith(stem) and "/" not in name]
        else:
            found = [path.name for path in Path(self._root).glob(f"{stem}*.safetensors*")]
        if found:
            raise ConfigError(f"{self._root}: there is {found[0]} already; remove it or write to another folder")

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        if self._store is not None:
            with tempfile.TemporaryDirectory(prefix="videotrain-weights-") as scratch:
                path = Path(scratch) / name
                with disk_full_is_clear(path), path.open("wb") as file:
                    yield file
                self._store.put(f"{self._root}/{name}", path)
            return
        path = Path(self._root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_full_is_clear(path), replacing(path) as partial, partial.open("wb") as file:
            yield file
