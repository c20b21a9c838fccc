"""One loader reads one epoch of one set, in batches of tensors; prints what it took as JSON.

Runs in the trainer's environment for ours and in that of `peers.txt` for the others, so it imports what the library
that is asked for needs and nothing else. Every library gives the same bytes of each sample, which become tensors and
a batch by the same code (ours: by its own, which does the same and compares the checksum of each sample before).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

BATCH, LONGEST, SHUFFLED, AHEAD = 8, 200, 200, 4
SHAPES = {"video": (16, 9, 32, 32), "picture": (16, 1, 16, 16)}
"""Latents of each set: 33 frames of 256 x 256 pixels, and a picture of 128 x 128."""


def batch_of(samples: list[Any]) -> dict[str, torch.Tensor]:
    """Stacked tensors; text is padded as our loader pads it."""
    from safetensors.torch import load

    tensors = [load(found if isinstance(found, bytes) else found["data"]) for found in samples]
    for found in tensors:
        context = found["context.plain"]
        found["context.plain"] = torch.nn.functional.pad(context, (0, 0, 0, LONGEST - context.shape[0]))
    return {name: torch.stack([found[name] for found in tensors]) for name in tensors[0]}


def torch_loader(data: Any, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=batch_of)
    return iter(loader)


def ours(case: argparse.Namespace) -> Iterator[Any]:
    import obstore.store  # noqa: F401  imported when it is first needed, which would count as reading
    from stream_s3 import latent_set

    from videotrain_api.resource.trainrun import Storage
    from videotrain_trainer.data.loader import LatentLoader
    from videotrain_trainer.storage import ObjectStore

    yield None
    store = ObjectStore.for_storage(Storage(uri="s3://bench/run", endpoint_url=case.url))
    latents = latent_set(store, f"s3://bench/{case.set}/ours", SHAPES[case.set][0], BATCH, LONGEST)
    loader = LatentLoader(store, latents, latents.plan.start(), [[0]])
    for _, order in zip(range(case.samples // BATCH), latents.plan.walk(latents.plan.start()), strict=False):
        yield loader.fetch(order, 0).latent_BCTHW
    loader.close()


def mds(case: argparse.Namespace) -> Iterator[Any]:
    from streaming import StreamingDataset

    yield None
    os.environ["S3_ENDPOINT_URL"] = case.url
    remote, local = f"s3://bench/{case.set}/mds", str(case.folder / "mds")
    yield from torch_loader(StreamingDataset(remote=remote, local=local, shuffle=True, batch_size=BATCH), case.workers)


def litdata(case: argparse.Namespace) -> Iterator[Any]:
    import litdata
    import obstore.store  # noqa: F401
    from litdata.streaming import downloader

    yield None
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # or it refuses any endpoint without TLS
    options = {"endpoint_url": case.url}
    data = litdata.StreamingDataset(
        f"s3://bench/{case.set}/litdata", cache_dir=str(case.folder / "litdata"), shuffle=True, storage_options=options
    )
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=case.workers, collate_fn=batch_of)
    yield from loader


def webdataset(case: argparse.Namespace) -> Iterator[Any]:
    import webdataset

    yield None
    shards = [f"pipe:curl -s -f {case.url}/bench/{case.set}/ours/{name}" for name in case.shards]
    data = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(SHUFFLED)
    data = data.to_tuple("safetensors").map_tuple(bytes).map(lambda found: found[0])
    yield from torch_loader(data, case.workers)


def lance(case: argparse.Namespace) -> Iterator[Any]:
    import lance

    yield None
    options = {"aws_endpoint": case.url, "allow_http": "true", "aws_region": "us-east-1"}
    # Of that version nobody has to ask for a listing, which nginx does not have.
    data = lance.dataset(f"s3://bench/{case.set}/lance", version=1, storage_options=options)
    order = torch.randperm(case.samples, generator=torch.Generator().manual_seed(1)).tolist()

    def load(start: int) -> dict[str, torch.Tensor]:
        return batch_of(data.take(order[start : start + BATCH]).column("data").to_pylist())

    with ThreadPoolExecutor(AHEAD) as pool:
        yield from pool.map(load, range(0, case.samples, BATCH))


LOADERS: dict[str, Callable[[argparse.Namespace], Iterator[Any]]] = {
    "ours": ours,
    "mds": mds,
    "litdata": litdata,
    "webdataset": webdataset,
    "lance": lance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LOADERS)
    parser.add_argument("--set", choices=SHAPES, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for what the library keeps on this machine")
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--shards", nargs="*", default=[])
    case = parser.parse_args()
    torch.set_num_threads(1)
    batches = LOADERS[case.library](case)
    next(batches)
    imported = time.process_time()
    began, first, count = time.perf_counter(), 0.0, 0
    for batch in batches:
        first = first or time.perf_counter() - began
        count += len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    whole = time.perf_counter() - began
    found = {"first_batch_seconds": first, "seconds": whole, "samples": count, "import_cpu_seconds": imported}
    print(json.dumps(found | {"peak_kb_of_one_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main()
