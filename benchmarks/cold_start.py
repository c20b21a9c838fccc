"""Cold start of a large model on two CPU ranks: what each rank reads and holds, and what the time goes into.

A transformer of 1.2 B parameters under FSDP2 starts from published weights (bf16, on disk), as a worker pod starts it:
a real agent, a roster, torchelastic, two workers. The world is lost in its first step, before that is saved; then the
same world starts again, from a checkpoint as large as its own (`laid_checkpoint.py`): ranks that save on a CPU hold
their state twice, 34 GB at this size.
Bytes read are those of the read system calls of a worker since it was announced (/proc/PID/io), memory is its largest
resident set (VmHWM); both are looked at all the time, and count as they were when it was ready (its record says when),
the latter once more behind the first step, which on a CPU adds what is a GPU's. The share of a rank is what it holds
then: master weights and both moments in float32.

The column for 11 B parameters on 224 ranks is modelled from these numbers; see `modelled`.

    python benchmarks/cold_start.py            # 23 GB of memory, 17 GB of disk
    python benchmarks/cold_start.py --ready    # starts end when the workers are ready: 17 GB of memory
    python benchmarks/cold_start.py --small    # 40 M parameters
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from laid_checkpoint import lay_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.agent_pods import Worlds
from support.training_worlds import make_latents, train_config

from videotrain_api.config.stage_config import StagePaths
from videotrain_api.cost.peer_copies import STATE_BYTES
from videotrain_api.records import TRAINER_RECORD, StartedRecord, StepRecord
from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.initial import write_initial
from videotrain_trainer.networks.weights import Destination

RANKS = 2
FLAGSHIP, FLAGSHIP_RANKS = 11_891_390_528, 224
"""Parameters of the 11B transformer, and the ranks of its first stage."""
LOOK_SECONDS = 0.02
NODE_BYTES_PER_SECOND = 1e9
"""Assumed in the modelled column: what a node of eight ranks reads from its object store."""
WHAT = (
    "cold start of an MMDiT under FSDP2 on 2 CPU ranks of one pod, by real agents; weights on disk, bf16; the "
    "checkpoint is as large as theirs, its values are noise"
)
LARGE = {"hidden_size": 2048, "num_heads": 16, "double_blocks": 4, "single_blocks": 9}
SMALL = {"hidden_size": 384, "num_heads": 3, "double_blocks": 4, "single_blocks": 9}


def configuration(folder, sizes, latents, weights, steps):
    layout = ParallelLayout(micro_batches_per_step=RANKS, engine="fsdp2")
    config = train_config(folder, latents, steps=steps, parallel=layout, precision="bf16", ema_decay=None)
    head = sizes["hidden_size"] // sizes["num_heads"]
    side = head * 7 // 32 * 2
    model = config.model.model_copy(update={**sizes, "mlp_ratio": 4.0, "rope_axes": [head - 2 * side, side, side]})
    paths = StagePaths(**config.paths.model_dump() | {"initial_weights": str(weights)})
    limits = {"start_seconds": 3600, "hang_seconds": 3600}
    return config.model_copy(update={"model": model, "paths": paths, **limits})


def write_weights_file(path, config):
    with torch.device("meta"):
        model = build_transformer(config.model, config.autoencoder, config.text_encoder)
    write_initial(model, 1, Destination(target=path), "open-sora-v2", torch.bfloat16)
    return sum(parameter.numel() for parameter in model.parameters())


def process(pid):
    """Bytes that a process has read, and its largest resident set, bytes."""
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(io["rchar"]), 1024 * int(peak)


class Watch(threading.Thread):
    """What processes have read and held, and when, until it is stopped."""

    def __init__(self, pids):
        super().__init__(daemon=True)
        self._pids, self._over = pids, threading.Event()
        self._seen = []

    def run(self):
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._seen.append((datetime.now(UTC), [process(pid) for pid in self._pids]))
            except (FileNotFoundError, ProcessLookupError, StopIteration):
                return  # one has ended

    def at(self, moment):
        """The last look before a moment."""
        return [seen for time, seen in self._seen if time <= moment][-1]

    def stop(self):
        self._over.set()
        self.join()


def records(pod, generation):
    file = pod.file(f"records-{generation}-0.jsonl")
    return [TRAINER_RECORD.validate_json(line) for line in file.open("rb")] if file.exists() else []


def one(kind, found):
    return next((record for record in found if isinstance(record, kind)), None)


def start(worlds, config, *, to_ready=False):
    """One start of the world: phases in seconds, and what the ranks read and held when they were ready.

    The world is killed then, or in its first step: as it is told and not yet saved.
    """
    (pod,) = worlds.pods
    generation = worlds.start(pod, config=config, processes=RANKS, created_at=datetime.now(UTC))
    pod.until(lambda _: all(pod.file(f"worker-{generation}-{rank}.pid").exists() for rank in range(RANKS)), 600)
    workers = [pod.worker(generation, rank) for rank in range(RANKS)]
    before = [process(worker.pid) for worker in workers]
    watch = Watch([worker.pid for worker in workers])
    watch.start()
    pod.until(lambda _: one(StartedRecord, records(pod, generation)), 3600)
    watch.stop()
    started = one(StartedRecord, records(pod, generation))
    ready = watch.at(started.at)
    phases = {phase: microseconds / 1e6 for phase, microseconds in started.phases_us.items()}
    found = {}
    if not to_ready:
        pod.until(lambda _: one(StepRecord, records(pod, generation)), 3600)
        step = one(StepRecord, records(pod, generation))
        phases["firstStep"] = (step.finished_at - started.at).total_seconds()
        found["largestResidentBehindFirstStepByRank"] = [process(worker.pid)[1] for worker in workers]
    pod.close()
    psutil.wait_procs(workers, timeout=60)
    return {
        "secondsByPhase": {phase: round(seconds, 2) for phase, seconds in phases.items()},
        "secondsFromRoster": round(sum(phases.values()), 2),
        "bytesReadByRank": [read - first for (read, _), (first, _) in zip(ready, before, strict=True)],
        "residentBeforeStartByRank": [peak for _, peak in before],
        "largestResidentByRank": [peak for _, peak in ready],
        **found,
    }


def beside(found, parameters, bytes_each):
    """Ratios to what a rank has to read and to hold."""
    share, held = parameters * bytes_each / RANKS, parameters * STATE_BYTES / RANKS
    return found | {
        "shareToRead": round(share),
        "readOverShare": round(max(found["bytesReadByRank"]) / share, 3),
        "shareToHold": round(held),
        "gigabytesAboveShare": round((max(found["largestResidentByRank"]) - held) / 1e9, 2),
    }


def modelled(first, again):
    """The 11B transformer on 224 ranks, eight to a node; nothing of it was measured.

    What does not depend on the size is taken as measured. Bytes are read at NODE_BYTES_PER_SECOND of a node, with as
    much more than a share as was measured; what a rank does with its bytes takes as long per byte as here.
    """
    out = {}
    for name, found, bytes_each in (("fromWeights", first, 2), ("fromCheckpoint", again, STATE_BYTES)):
        share = FLAGSHIP * bytes_each / FLAGSHIP_RANKS
        phase = "weights" if bytes_each == 2 else "checkpoint"
        per_byte = found["secondsByPhase"][phase] / found["shareToRead"]
        fixed = sum(found["secondsByPhase"][key] for key in ("order", "launch", "join", "claim", "ready"))
        reading = 8 * share * found["readOverShare"] / NODE_BYTES_PER_SECOND
        out[name] = {
            "modelled_bytesReadByRank": round(share * found["readOverShare"]),
            "modelled_bytesHeldByRank": round(FLAGSHIP * STATE_BYTES / FLAGSHIP_RANKS),
            "modelled_secondsReading": round(reading, 2),
            "modelled_secondsOfWork": round(per_byte * share, 2),
            "modelled_secondsFixed": round(fixed, 2),
        }
    return out


def measure(folder, sizes, *, to_ready):
    latents = make_latents(folder)
    weights = folder / "model.safetensors"
    config = configuration(folder, sizes, latents, weights, steps=1_000_000)
    policy = config.checkpoint.model_copy(update={"every_steps": 1})
    config = config.model_copy(update={"checkpoint": policy})
    parameters = write_weights_file(weights, config)
    with contextlib.closing(Worlds(folder / "pods", injected=None, pods=1)) as worlds:
        worlds.pods[0].until(lambda seen: seen.ready, 600)
        first = beside(start(worlds, config, to_ready=to_ready), parameters, 2)
        weights.unlink()
        lay_checkpoint(config, RANKS)
        worlds.replace(worlds.pods[0]).until(lambda seen: seen.ready, 600)
        again = beside(start(worlds, config, to_ready=to_ready), parameters, STATE_BYTES)
    return parameters, first, again


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a model of 40 M parameters")
    parser.add_argument("--ready", action="store_true", help="end when the workers are ready for their first step")
    parser.add_argument("--out", type=Path, help="file to write; by default results/cold-start-DATE.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        parameters, first, again = measure(Path(folder), SMALL if options.small else LARGE, to_ready=options.ready)
    result = {
        "what": WHAT,
        "parameters": parameters,
        "fromWeights": first,
        "fromCheckpoint": again,
        "elevenBillionOn224Ranks": modelled(first, again),
        "hardware": {"cores": os.cpu_count(), "machine": platform.machine(), "loadBefore": round(load, 1)},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }
    text = json.dumps(result, indent=2)
    out = options.out or Path(__file__).parent / "results" / f"cold-start-{date.today()}.json"
    out.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
