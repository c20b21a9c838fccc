"""Host memory of a node while a train stage starts, and while it trains: pure arithmetic over a few assumptions.

The manifest of the encoded set, which every process holds, comes on top: it grows with the clips.
"""

from __future__ import annotations

from typing import Final

from videotrain_api.cost.peer_copies import AVERAGE_BYTES, STATE_BYTES, copies_bytes
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.cost.text_encoding import text_bytes
from videotrain_api.schema import ApiModel

PROCESS: Final = 4_000_000_000
"""Bytes of a worker process without its data: Python, torch, libraries of CUDA, the agent's part. Assumed."""
READING: Final = 1_000_000_000
"""Bytes that a process needs beside its share while it reads or draws weights."""
BATCHES: Final = 6
"""Micro-batches in the host's memory: four that are made ready, one that is copied and one that is put together."""


class HostMemory(ApiModel):
    """What a node's worker processes hold together, bytes."""

    processes: int
    """See PROCESS."""
    start: int
    """Weights or checkpoint while they are read, each process its share, and before them text encoders that encode
    beside training, whole. Freed before training."""
    checkpoints: int
    """Page-locked buffers that a checkpoint is copied into."""
    optimizer: int
    """Master weights and moments, with `offload: optimizer`."""
    copies: int
    """Copies of training state, in /dev/shm."""
    batches: int
    """Of the row with most."""

    @property
    def at_start(self) -> int:
        """Before the first step."""
        return self.processes + self.start + self.optimizer + self.copies

    @property
    def in_training(self) -> int:
        """From the first checkpoint on."""
        return self.processes + self.checkpoints + self.optimizer + self.copies + self.batches


def host_memory(table: TrainMemory, gpus: int) -> HostMemory:
    """Of each node of a world of so many GPUs; the smallest world needs most."""
    pool, layout, task = table.pool, table.task.parallel, table.task
    processes, trained = min(pool.gpus_per_node, gpus), table.parameters.trained
    width = STATE_BYTES + (AVERAGE_BYTES if task.ema_decay else 0)
    ranks = 1 if layout.engine == "deepspeed" and layout.deepspeed_stage == 0 else gpus
    share = -(-trained // ranks) * width
    nodes = -(-gpus // pool.gpus_per_node)
    return HostMemory(
        processes=processes * PROCESS,
        start=processes * max(share + READING, text_bytes(table.run.spec.text_encoder) if task.text == "online" else 0),
        checkpoints=processes * share,
        optimizer=processes * -(-trained // ranks) * STATE_BYTES if layout.offload == "optimizer" else 0,
        copies=copies_bytes(trained, nodes, average=bool(task.ema_decay))
        if table.run.spec.checkpoint.peer_copies
        else 0,
        batches=processes * BATCHES * max(_batch(table, number) for number in range(len(task.buckets))),
    )


def _batch(table: TrainMemory, number: int) -> int:
    """A micro-batch on the host: latents and text in bfloat16, noise in float32."""
    row, shape = table.task.buckets[number], table.shape
    image, _ = table.largest_clip(row)
    text = table.run.spec.text_encoder.max_tokens
    return row.batch_size * (image * shape.patch_channels * (2 + 4) + (text * shape.context + shape.pooled) * 2)
