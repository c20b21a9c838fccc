"""A checkpoint of step 0 of a stage, of any size, written as ranks write theirs but for the model: values are noise.

Ranks that save on one machine hold their state twice, in what stands for GPU memory and in the buffer that is stored.
Where a machine has not that much memory, this writes what they would have, rank by rank through the trainer's own
writer, with the buffers alone in memory.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import torch

from videotrain_api.storage.artifacts import CheckpointManifest
from videotrain_trainer.checkpoint.catalog import read_commit
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.checkpoint.save import CheckpointWriter
from videotrain_trainer.checkpoint.state import Member, Point
from videotrain_trainer.data.sets import open_latents
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.sharded_state import numel, pack
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

NOISE = 1 << 22
"""Numbers that are drawn; they repeat."""
SCALES = {"master": 0.02, "exp_avg": 1e-4, "exp_avg_sq": 1e-8}


class Unheard:
    """Takes records of what nobody waits for."""

    def write(self, record):
        """Nothing."""


class NoiseState:
    """The state of a rank of FSDP2, rows of every parameter, whose values are noise."""

    def __init__(self, shapes, rank, size):
        self.shapes, self.device, self.quantities = shapes, torch.device("cpu"), tuple(SCALES)
        spans = []
        for name, shape in shapes.items():
            rows, width = -(-shape[0] // size), numel(shape[1:])
            first, last = min(rank * rows, shape[0]), min((rank + 1) * rows, shape[0])
            spans.append((name, first * width, (last - first) * width))
        self.saved = self.held = pack(spans)
        self._noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(rank))

    def read(self, quantity, out):
        """Fill the vector; second moments are never negative."""
        noise = self._noise.abs() if quantity == "exp_avg_sq" else self._noise
        for part in out.split(NOISE):
            torch.mul(noise[: len(part)], SCALES[quantity], out=part)


def lay_checkpoint(config, size: int) -> CheckpointManifest:
    """Write it where the stage looks for its newest one, as a world of this size would have; its manifest."""
    store = ObjectStore.for_storage(config.storage)
    with torch.device("meta"):
        model = build_transformer(config.model, config.autoencoder, config.text_encoder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    cursor = open_latents(store, config).plan.start().to_json()
    point = Point(step=0, captured_at=datetime.now(UTC), data_cursor=cursor, samples=0, lines=[])
    prefix, stage = config.paths.output, config.stage.name
    reporter = StageReporter(sink=Unheard(), generation=1, stage=stage, config_hash=config.hash())

    def save(rank):
        member = Member(
            run=config.run,
            stage=stage,
            prefix=prefix,
            config_hash=config.hash(),
            generation=1,
            rank=rank,
            world_size=size,
            node="here",
        )
        writer = CheckpointWriter(store, member, config.checkpoint, OrderLog(store, prefix, None, reporter), reporter)
        writer.save(NoiseState(shapes, rank, size), point)
        writer.wait()

    with ThreadPoolExecutor(size) as ranks:
        list(ranks.map(save, range(size)))
    return read_commit(store, prefix, 0)
