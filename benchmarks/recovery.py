"""Seconds from a killed node to the first step of the next generation, by phase, and the cold start beside it.

Real agents train a tiny transformer with DeepSpeed (2 nodes x 2 workers, gloo). A node's whole process tree is killed;
this script plays the operator and polls the survivor every 0.5 s. The peer does the same start with the `torchrun`
command, which imports everything in every process.

    python benchmarks/recovery.py [--rounds 5]
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.agent_pods import Worlds
from support.training_worlds import make_latents, train_config

from videotrain_api import vocabulary as names
from videotrain_api.records import TRAINER_RECORD, StartedRecord, StepRecord

POLL_SECONDS = 0.5
"""How often the operator asks the agents."""


def now():
    return datetime.now(UTC)


def kill_node(pod):
    below = psutil.Process(pod.process.pid).children(recursive=True)
    killed = now()
    pod.process.kill()
    pod.process.wait()
    psutil.wait_procs(below, timeout=30)
    return killed


def notice(pod, generation):
    while True:
        current = pod.progress().current
        if current.generation == generation and current.state == "failed":
            return now()
        time.sleep(POLL_SECONDS)


def announced(pod, generation):
    """When the first worker has been forked and has announced itself."""
    file = pod.file(f"worker-{generation}-0.pid")
    while not file.exists():
        time.sleep(0.005)
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def first_step(pod, generation):
    def done(seen):
        return seen.current.generation == generation and seen.current.first_step_at is not None

    progress = pod.until(done).current
    records = [TRAINER_RECORD.validate_json(line) for line in pod.file(f"records-{generation}-0.jsonl").open("rb")]
    return progress, next(record for record in records if isinstance(record, StepRecord))


def phases(killed, noticed, up, progress, step):
    marks = {
        "notice": noticed,
        "stopAndOrder": progress.launched_at,
        "launchAndJoin": up,
        "initAndLoad": progress.started_at,
        "firstStep": step.finished_at,
    }
    times = [killed, *marks.values()]
    parts = {name: (b - a).total_seconds() for name, a, b in zip(marks, times, marks.values(), strict=False)}
    return parts | {"total": (step.finished_at - killed).total_seconds()}


def recover(worlds, config, generation):
    """Lose the second node, go on with the first; phases of the recovery."""
    first, second = worlds.pods
    first.until(lambda seen: seen.current is not None and seen.current.generation == generation and seen.current.saved)
    killed = kill_node(second)
    noticed = notice(first, generation)
    after = worlds.start(first, config=config, to=[first], reason="NodeLost", drain=False)
    up = announced(first, after)
    return phases(killed, noticed, up, *first_step(first, after))


def join(worlds, config):
    """Put a node in the place of the lost one: seconds until its agent is ready, then to the first step of all."""
    first, second = worlds.pods
    began = now()
    third = worlds.replace(second)
    third.until(lambda seen: seen.ready)
    ordered = now()
    generation = worlds.start(first, third, config=config, reason="Grow")
    _, step = first_step(first, generation)
    parts = {"imports": ordered - began, "drainAndStart": step.finished_at - ordered, "total": step.finished_at - began}
    return generation, {name: part.total_seconds() for name, part in parts.items()}


def warm_start(worlds, config):
    """Drain and start the same world again: seconds from order to ready and to the end of the first step."""
    first, second = worlds.pods
    generation = worlds.start(first, second, config=config, reason="Resumed")
    progress, step = first_step(first, generation)
    ready = (progress.started_at - progress.launched_at).total_seconds()
    return {"ready": ready, "firstStep": (step.finished_at - progress.launched_at).total_seconds()}


def cold_start(worlds, config, folder, number):
    """The same world by the torchrun command: seconds from its start to ready and to the end of the first step."""
    began, processes = now(), []
    for rank, pod in enumerate(worlds.pods):
        root = folder / f"cold-{number}-{rank}"
        file = root / "walk.json"
        root.mkdir()
        file.write_text(config.canonical_json())
        pod_variables = {
            names.ENV_POD_ROOT: str(root),
            names.ENV_CONFIG_FILE: str(file),
            names.ENV_RESTORE: "1",
            names.ENV_SAVED_STEP: "0",
        }
        variables = {names.ENV_GENERATION: str(100 + number), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        place = [f"--node-rank={rank}", f"--master-addr={worlds.pods[0].address}", f"--master-port={29600 + number}"]
        world = ["--nnodes=2", "--nproc-per-node=2", *place, "-m", "videotrain_trainer.cli", "run"]
        command = [sys.executable, "-m", "torch.distributed.run", *world]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, env=pod.environment | pod_variables | variables, **quiet))
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], codes
    lines = (folder / f"cold-{number}-0" / names.DIR_RUN / f"records-{100 + number}-0.jsonl").open("rb")
    records = [TRAINER_RECORD.validate_json(line) for line in lines]
    started = next(record for record in records if isinstance(record, StartedRecord))
    step = next(record for record in records if isinstance(record, StepRecord))
    return {
        "ready": (started.at - began).total_seconds(),
        "firstStep": (step.finished_at - began).total_seconds(),
    }


def summary(rounds):
    keys = rounds[0].keys()
    middle = {key: round(statistics.median(found[key] for found in rounds), 2) for key in keys}
    return middle | {"worstTotal": round(max(list(found.values())[-1] for found in rounds), 2), "rounds": len(rounds)}


def measure(folder, rounds):
    latents = make_latents(folder)
    config = train_config(folder, latents, steps=100_000)
    recoveries, joins, warm, cold = [], [], [], []
    with contextlib.closing(Worlds(folder / "pods", injected=None)) as worlds:
        generation = worlds.start(*worlds.pods, config=config)
        for _ in range(rounds):
            recoveries.append(recover(worlds, config, generation))
            generation, parts = join(worlds, config)
            joins.append(parts)
        for _ in range(rounds):
            warm.append(warm_start(worlds, config))
        worlds.start(action="stop")
        worlds.pods[0].until(lambda seen: seen.current.ended_at)
        for number in range(max(1, rounds // 2)):
            out = folder / f"cold-{number}"
            out.mkdir()
            cold.append(cold_start(worlds, train_config(out, latents, steps=3), folder, number))
    return {
        "nodeLost": summary(recoveries),
        "nodeJoins": summary(joins),
        "startWarm": summary(warm),
        "startColdTorchrun": summary(cold),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), options.rounds)
    result = {
        "what": "median seconds; 2 nodes x 2 workers, tiny transformer, DeepSpeed, gloo; polled every 0.5 s",
        "seconds": seconds,
        "coldOverWarm": round(seconds["startColdTorchrun"]["firstStep"] / seconds["startWarm"]["firstStep"], 1),
        "hardware": {"cores": os.cpu_count(), "machine": platform.machine(), "loadBefore": round(load, 1)},
        "versions": {"python": platform.python_version(), "torch": version("torch"), "deepspeed": version("deepspeed")},
    }
    text = json.dumps(result, indent=2)
    (Path(__file__).parent / "results" / f"recovery-{date.today()}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
