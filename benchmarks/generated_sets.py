"""Sample indexes, and catalogues beside them, of any number of rows without any sample: what opening, ordering and
restarting cost can be measured on them.

Rows look like those of a set whose clips gave one sample each: uids of 32 hexadecimal digits, evenly spread, in order;
places one behind the other in shards of 512 MiB. Every column is made as a whole and a bucket at a time, and goes
through the writer that encode stages use.

    python benchmarks/generated_sets.py FOLDER --rows 100000000 --buckets 100
    python benchmarks/generated_sets.py FOLDER --rows 1000000 --catalogue
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_trainer.data.index_writer import BucketColumns, publish_index, write_bucket
from videotrain_trainer.data.manifest import LATENT_SCHEMA, SCORES
from videotrain_trainer.data.sample_index import open_index
from videotrain_trainer.files import local_path
from videotrain_trainer.storage import ObjectStore

SHARD_BYTES = 512 * 1024 * 1024
ASPECTS = ("16:9", "1:1", "9:16", "4:3", "3:4")
SUFFIX = "-0"
HEX = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), "S2")


def bucket_columns(number: int, rows: int, seed: int = 0) -> BucketColumns:
    """The samples of one bucket, in order of uid.

    Args:
        number: of the bucket; gives its name and the shape of its latents.
        rows: of it.
        seed: of uids, sizes and scores.
    """
    frames, aspect = 1 + number // len(ASPECTS), ASPECTS[number % len(ASPECTS)]
    dice = np.random.default_rng((seed, number))
    step = 2**64 // rows
    high = np.arange(rows, dtype=np.uint64) * np.uint64(step) + dice.integers(0, step, rows, dtype=np.uint64)
    words = np.empty((rows, 2), ">u8")
    words[:, 0], words[:, 1] = high, dice.integers(0, 2**64, rows, dtype=np.uint64)
    length = dice.integers(60_000, 120_000, rows, dtype=np.int64) * frames
    ends = np.cumsum(length)
    shard = (ends - length) // SHARD_BYTES
    firsts = np.searchsorted(shard, np.arange(int(shard[-1]) + 1))
    row = f"256px/{4 * frames}f"
    name = f"{row}/{aspect}"
    return BucketColumns(
        bucket=name,
        latent=(frames, 32, 32),
        clip=words.view("V16").reshape(rows),
        suffix=np.zeros(rows, np.uint8),
        suffixes=[SUFFIX],
        uid=None,
        kind=np.zeros(rows, np.uint8),
        kinds=[(row, [row], None)],
        shard=shard,
        shards=[f"shards/{name.replace('/', '-').replace(':', 'x')}-{each:06d}.tar" for each in range(len(firsts))],
        offset=ends - length - (ends - length)[firsts][shard],
        length=length,
        crc32c=dice.integers(0, 2**32, rows, dtype=np.uint32),
        text_tokens=dice.integers(20, 200, rows, dtype=np.uint16),
        scores={score: dice.random(rows) * 30 for score in SCORES},
    )


def catalogue_table(columns: BucketColumns) -> Any:
    """The same samples as rows of a catalogue: a pyarrow.Table."""
    rows = len(columns.clip)
    clips = HEX[np.ascontiguousarray(columns.clip).view(np.uint8).reshape(rows, 16)].view("S32").reshape(rows)
    texts = {
        "uid": np.char.add(clips, SUFFIX.encode()),
        "clip": clips,
        "caption": np.char.add(b"a generated caption of clip ", clips),
        "source": np.char.add(clips, b".mp4"),
    }
    same = {"row": columns.kinds[0][0], "bucket": columns.bucket}
    numbers = {"offset": columns.offset, "length": columns.length, "crc32c": columns.crc32c}
    numbers |= {name: np.full(rows, size) for name, size in zip(
        ("latent_frames", "latent_height", "latent_width"), columns.latent, strict=True
    )}  # fmt: skip
    numbers |= {"frames": np.full(rows, 4 * columns.latent[0]), "start": np.zeros(rows), "fps": np.full(rows, 24.0)}
    numbers |= {"text_tokens": columns.text_tokens, **columns.scores}
    arrays = {name: pa.array(values.astype("U")) for name, values in texts.items()}
    arrays |= {name: pa.array(itertools.repeat(value, rows), pa.string()) for name, value in same.items()}
    arrays["shard"] = pa.array(columns.shards).take(pa.array(columns.shard))
    arrays |= {name: pa.array(values) for name, values in numbers.items()}
    return pa.table([arrays[field.name].cast(field.type) for field in LATENT_SCHEMA], schema=LATENT_SCHEMA)


def sizes(rows: int, buckets: int) -> Iterator[tuple[int, int]]:
    """Number and rows of each bucket: earlier ones have more, as short clips do."""
    weights = np.linspace(2, 1, buckets)
    counts = np.maximum(1, np.floor(rows * weights / weights.sum()).astype(int))
    counts[0] += rows - int(counts.sum())
    yield from enumerate(map(int, counts))


def generate(store: ObjectStore, prefix: str, rows: int, buckets: int, *, catalogue: bool = False) -> None:
    """Write an index, and a catalogue beside it.

    Args:
        store: where it goes.
        prefix: of the set; `file://` for a catalogue, which is written row group by row group.
        rows: in all.
        buckets: over which they are spread.
        catalogue: write it, too.
    """
    infos, path = [], Path(local_path(layout.latent_manifest(prefix))) if catalogue else None
    writer = None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(path, LATENT_SCHEMA, compression="zstd", write_page_checksum=True)
    for number, count in sizes(rows, buckets):
        columns = bucket_columns(number, count)
        infos.append(write_bucket(store, prefix, columns))
        if writer is not None:
            writer.write_table(catalogue_table(columns))
    if writer is not None:
        writer.close()
    publish_index(store, prefix, infos, path.stat().st_size if path is not None else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--buckets", type=int, default=100)
    parser.add_argument("--catalogue", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prefix = options.folder.resolve().as_uri()
    store = ObjectStore.for_storage(Storage(uri="s3://unused/here"))
    wall, cpu = time.perf_counter(), time.process_time()
    generate(store, prefix, options.rows, options.buckets, catalogue=options.catalogue)
    made = {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    wall, cpu = time.perf_counter(), time.process_time()
    index = open_index(store, prefix, None)
    place = index.buckets[-1].place(index.buckets[-1].info.samples - 1)
    opened = {"wall_s": round(time.perf_counter() - wall, 3), "cpu_s": round(time.process_time() - cpu, 3)}
    files = [path.stat().st_size for path in options.folder.rglob("*") if path.is_file()]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
        "rows": index.samples,
        "buckets": len(index.buckets),
        "catalogue": options.catalogue,
        "bytes": sum(files),
        "generated": made,
        "opened_and_one_row_read": opened,
        "last_uid": place.uid,
        "largest_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
