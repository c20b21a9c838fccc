"""How long a sample is waited for when 1 of 100 requests to the object store stalls for two seconds.

The server is one of this file's: it answers ranged GETs as S3 does, after a delay that is drawn as those of object
stores look (median 30 ms, 99th percentile 100 ms), and stalls every hundredth request on average. Reading is the
loader's own, by as many threads. Without stalls, with them, and with them but no second requests: in turns, in one
process. `replayed` is the same without a server and without waiting: the reader's code on a clock that jumps from event
to event (`tests/support/request_replay.py`), which no other work on the machine changes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
from aiohttp import web

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.request_replay import MEDIAN, SPREAD, STALL_SECONDS, percentile
from support.request_replay import waits as replayed

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.data import sample_reader
from videotrain_trainer.data.sample_reader import Budget, SampleReader
from videotrain_trainer.data.shards import Member
from videotrain_trainer.storage import ObjectStore

BODY = bytes(range(256)) * 256
THREADS, READS, ROUNDS = 8, 1000, 5
REPLAYS, REPLAYED_READS = 6, 4000


def serve() -> None:
    """Print the port and answer until killed; the first part of the path is the share of requests that stall."""
    draw = random.Random(0)

    async def answer(request: web.Request) -> web.Response:
        stall = float(request.match_info["share"].removeprefix("stall"))
        late = draw.random() < stall
        await asyncio.sleep(STALL_SECONDS if late else MEDIAN * math.exp(draw.gauss(0, SPREAD)))
        first, last = (int(part) for part in request.headers["Range"].removeprefix("bytes=").split("-"))
        headers = {
            "Content-Range": f"bytes {first}-{last}/{len(BODY)}",
            "ETag": '"x"',
            "Last-Modified": "Sun, 29 Nov 2026 00:00:00 GMT",
        }
        return web.Response(status=206, body=BODY[first : last + 1], headers=headers)

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/bench/{share}/{key}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def waits(store: ObjectStore, stall: float, second: bool) -> dict[str, Any]:
    reader = SampleReader(store)
    if not second:
        without_second_requests(reader)
    member = Member(name="x", offset=0, length=len(BODY), crc32c=google_crc32c.value(BODY))

    def read(_: int) -> float:
        began = time.perf_counter()
        reader.read(f"s3://bench/stall{stall}/x", member)
        return time.perf_counter() - began

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(200)))  # what is late has to be learnt first
        seconds = sorted(pool.map(read, range(READS)))
    counts = reader.counts()
    reader.close()
    return {
        "p50_ms": round(1e3 * seconds[len(seconds) // 2], 1),
        "p95_ms": round(1e3 * seconds[int(0.95 * len(seconds))], 1),
        "p99_ms": round(1e3 * seconds[int(0.99 * len(seconds))], 1),
        "p999_ms": round(1e3 * seconds[int(0.999 * len(seconds))], 1),
        "over_a_second": sum(found > 1 for found in seconds),
        "requests_a_sample": round(counts.requests / counts.samples, 3),
        "second": counts.second,
        "second_first": counts.second_first,
    }


def replays() -> dict[str, Any]:
    """99th percentiles on the clock that jumps, for each seed of the delays."""
    told = []
    for seed in range(REPLAYS):
        unharmed, _ = replayed(0.0, REPLAYED_READS, seed)
        stalled, counts = replayed(0.01, REPLAYED_READS, seed)
        alone, _ = replayed(0.01, REPLAYED_READS, seed, prepare=without_second_requests)
        p99 = [percentile(found, 99) for found in (unharmed, stalled, alone)]
        told.append([*p99, p99[1] / p99[0], counts.requests / counts.samples])
    names = ("unharmed", "stalled", "stalled_without_second_requests", "stalled_over_unharmed", "requests_a_sample")
    return {name: [round(each[n], 3) for each in told] for n, name in enumerate(names)}


def without_second_requests(reader: SampleReader) -> None:
    reader._budget = Budget(share=0.0, at_once=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    os.environ |= {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}
    load = round(os.getloadavg()[0], 1)
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        store = ObjectStore.for_storage(Storage(uri="s3://bench/run", endpoint_url=url))
        cases = {"unharmed": (0.0, True), "stalled": (0.01, True), "stalled_without_second_requests": (0.01, False)}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, case in cases.items():
                found[name].append(waits(store, *case))
    finally:
        server.kill()
        server.wait()
    middle = {name: sorted(each["p99_ms"] for each in rounds)[ROUNDS // 2] for name, rounds in found.items()}
    result = {
        "benchmark": "stalled_requests",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load_before": load},
        "setting": {
            "reads": READS,
            "threads": THREADS,
            "stalled_share": 0.01,
            "stall_seconds": STALL_SECONDS,
            "extra_share": sample_reader.EXTRA_SHARE,
        },
        "goal": {"p99_stalled_over_unharmed": 1.3},
        "p99_ms_median_of_rounds": middle,
        "p99_stalled_over_unharmed": round(middle["stalled"] / middle["unharmed"], 2),
        "replayed_p99_seconds_by_seed": replays(),
        "rounds": found,
    }
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
