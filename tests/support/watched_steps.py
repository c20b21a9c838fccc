"""A real world of one process whose steps are watched: what they read of tensors, and in which order they are read."""

from __future__ import annotations

import collections
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from support.training_worlds import _CONTEXT
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_api.config.stage_config import StageConfig
from videotrain_trainer.worker.stage_context import StageContext, World

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select")
"""Operations whose result the host needs before it can go on."""


class HostReads(TorchDispatchMode):
    """Counts what the host reads, by the file of ours or of DeepSpeed that does so."""

    def __init__(self):
        super().__init__()
        self.where = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in READS:
            frames = [frame.filename for frame in traceback.extract_stack()]
            own = [name for name in frames if "videotrain_trainer/" in name or "deepspeed/" in name]
            self.where[own[-1].split("site-packages/")[-1].split("videotrain_trainer/")[-1]] += 1
        return function(*args, **(kwargs or {}))


class Records(list):
    """A record sink."""

    def write(self, record):
        self.append(record)


class NoDrain:
    """Nobody asks to stop."""

    def requested(self):
        return False


def context_of(folder: Path, config: StageConfig, records=None) -> StageContext:
    """A stage in a world of one."""
    scratch = folder / "scratch"
    scratch.mkdir()
    return StageContext(
        config=config,
        world=World(rank=0, size=1, local_rank=0, device=torch.device("cpu")),
        generation=1,
        restore=True,
        saved_step=0,
        node="here",
        records=records if records is not None else Records(),
        drain=NoDrain(),
        scratch=scratch,
        cache=scratch,
    )


def watch(folder: Path, config: StageConfig) -> dict:
    """Run a train stage in a process of its own.

    Returns:
        `told`: "queue N" and "read N" in their order; `reads`: for every step, reads while it is queued by file;
        `copies`: for every copy to the host meanwhile, whether it lets the host go on; `steps`: recorded steps.
    """
    out = folder / "watched.json"
    process = _CONTEXT.Process(target=_watched, args=(str(folder), config.model_dump_json(by_alias=True), str(out)))
    process.start()
    process.join(120)
    assert process.exitcode == 0, f"the watched world ended with {process.exitcode}"
    return json.loads(out.read_text())


def _watched(folder: str, text: str, out: str) -> None:
    from videotrain_trainer.tasks import train
    from videotrain_trainer.training import loop
    from videotrain_trainer.training.step import Stepper

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    told, reads, copies = [], [], []
    queue, read, to, queueing = Stepper.queue, Stepper.read, torch.Tensor.to, []

    def watched_queue(self, order):
        told.append(f"queue {order.step}")
        queueing.append(order)
        with HostReads() as found:
            step = queue(self, order)
        queueing.clear()
        reads.append(found.where)
        return step

    def watched_read(self, step, wishes):
        told.append(f"read {step.order.step}")
        return read(self, step, wishes)

    def watched_to(tensor, *args, **kwargs):
        ours = "videotrain_trainer/training/step.py" in sys._getframe(1).f_code.co_filename
        if queueing and ours and args and str(args[0]) == "cpu":
            copies.append(kwargs.get("non_blocking", False))
        return to(tensor, *args, **kwargs)

    Stepper.queue, Stepper.read, torch.Tensor.to = watched_queue, watched_read, watched_to
    loop.export_weights = lambda _run: None
    records = Records()
    train.run(context_of(Path(folder), StageConfig.model_validate_json(text), records))
    steps = [record.step for record in records if record.kind == "step"]
    Path(out).write_text(json.dumps({"told": told, "reads": reads, "copies": copies, "steps": steps}))
    dist.destroy_process_group()
    os._exit(0)
