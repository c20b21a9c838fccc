"""The same samples in the formats of other loaders; runs where those are installed (`peers.txt`).

python formats.py FOLDER-OF-SAMPLES FOLDER-TO-WRITE SHARD-BYTES
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def mds(samples: list[Path], folder: Path, shard_bytes: int) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"data": "bytes"}, size_limit=shard_bytes) as writer:
        for path in samples:
            writer.write({"data": path.read_bytes()})


def litdata(samples: list[Path], folder: Path, shard_bytes: int) -> None:
    import litdata

    inputs = [str(path) for path in samples]
    litdata.optimize(_read, inputs, str(folder), chunk_bytes=shard_bytes, num_workers=1)


def _read(path: str) -> dict[str, bytes]:
    return {"data": Path(path).read_bytes()}


def lance(samples: list[Path], folder: Path, shard_bytes: int) -> None:
    import lance
    import pyarrow as pa

    schema = pa.schema([pa.field("data", pa.large_binary())])
    batches = (pa.record_batch([pa.array([path.read_bytes()], pa.large_binary())], schema) for path in samples)
    lance.write_dataset(batches, str(folder), schema, max_bytes_per_file=shard_bytes)


WRITERS: dict[str, Callable[[list[Path], Path, int], None]] = {"mds": mds, "litdata": litdata, "lance": lance}


def main() -> None:
    samples, folder, shard_bytes = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2]), int(sys.argv[3])
    for name, write in WRITERS.items():
        write(samples, folder / name, shard_bytes)


if __name__ == "__main__":
    main()
