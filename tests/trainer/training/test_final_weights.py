"""The result of a stage by ranks that are threads: byte by byte the file that one process would write."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from support.checkpoint_worlds import Records, ThreadPeers, make_store

from videotrain_trainer import assembled_object
from videotrain_trainer.networks.weights import Destination, open_weights, planned_order, write_weights
from videotrain_trainer.sharded_state import numel
from videotrain_trainer.training import final_weights
from videotrain_trainer.training.final_tensors import FinalTensors
from videotrain_trainer.training.final_weights import _File
from videotrain_trainer.worker.stage_context import World
from videotrain_trainer.worker.stage_reporter import StageReporter

SHAPES = {"a": (37, 11), "b": (5,), "scale": (), "c": (1000, 3)}
BUFFERS = {"steps": torch.arange(9), "flag": torch.tensor([True, False, True])}


class Held(FinalTensors):
    """Tensors that are in memory; remembers how much was asked for at once."""

    def __init__(self, values, dtype):
        super().__init__({name: tuple(value.shape) for name, value in values.items()}, dtype)
        self.values, self.most = values, 0

    def _read(self, items):
        self.most = max(self.most, sum(length for _, _, length in items))
        return [self.values[name].reshape(-1)[start : start + length] for name, start, length in items]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "part"), [(1, 1 << 20), (1, 512), (3, 512), (5, 4096)])
def test_ranks_write_together_what_one_process_would_write_alone(tmp_path, monkeypatch, ranks, part, dtype):
    for module in (final_weights, assembled_object):
        monkeypatch.setattr(module, "PART_BYTES", part)
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    metadata = {"run": "default/test", "step": "8"}
    expected = tmp_path / "expected.safetensors"
    everything = values | BUFFERS
    write_weights(
        Destination(target=expected, sealed=True), planned_order(everything), everything.__getitem__, metadata
    )
    store, uri = make_store(), f"file://{tmp_path}/out/model.safetensors"
    board, barrier = [None] * ranks, threading.Barrier(ranks)
    held = [Held(values, dtype).with_buffers(BUFFERS) for _ in range(ranks)]
    records = [Records() for _ in range(ranks)]

    def one(rank):
        run = SimpleNamespace(
            store=store,
            peers=ThreadPeers(rank, ranks, board, barrier),
            context=SimpleNamespace(
                world=World(rank=rank, size=ranks, local_rank=rank, device=torch.device("cpu")),
                reporter=StageReporter(sink=records[rank], generation=1, stage="s", config_hash="0" * 16),
            ),
        )
        _File(held[rank], metadata).write(run, uri)

    with ThreadPoolExecutor(ranks) as pool:
        list(pool.map(one, range(ranks)))
    written = tmp_path / "out/model.safetensors"
    assert written.read_bytes() == expected.read_bytes()
    assert [path.name for path in written.parent.iterdir()] == ["model.safetensors"]
    weights = open_weights(written)  # verifies the header
    assert all(torch.equal(weights.read(name), value) for name, value in everything.items())
    assert max(tensors.most for tensors in held) <= max(part, 1) // dtype.itemsize
    assert sum(numel(shape) for shape in SHAPES.values()) > held[0].most or part == 1 << 20
    for found in records:
        told = [record for record in found.all if record.kind == "phase"]
        assert [record.done for record in told] == sorted(record.done for record in told)
        assert (told[-1].done, told[-1].phase) == (told[-1].total, "export")
