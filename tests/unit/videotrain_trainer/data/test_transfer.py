"""The way of batches to a device: from page-locked memory, on a stream of their own. The device is torch's `meta`."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from videotrain_trainer.data.transfer import OnHost, ToDevice, map_tensors, transfer_to


@dataclass(frozen=True)
class Inner:
    noise: torch.Tensor
    kinds: tuple


@dataclass(frozen=True)
class Batch:
    latent: torch.Tensor
    references: dict
    inner: Inner
    keys: tuple


def batch():
    return Batch(torch.ones(2), {"head": torch.ones(3)}, Inner(torch.ones(4), ("t2v",)), ("a", "b"))


def tensors(value):
    return [value.latent, value.references["head"], value.inner.noise]


@pytest.fixture
def log(monkeypatch):
    """What is asked of CUDA, in order."""
    told = []
    streams = ["compute"]
    pinned = set()

    class Stream:
        def __init__(self, _device=None):
            self.name = "side"

        def wait_event(self, event):
            told.append(("wait", self.name, event.recorded_on))

    class Event:
        def record(self, stream):
            self.recorded_on = stream.name
            told.append(("record", stream.name))

    compute = Stream()
    compute.name = "compute"

    @contextmanager
    def on(stream):
        streams.append(stream.name)
        yield
        streams.pop()

    @contextmanager
    def device(_device):
        yield

    def pin(tensor):
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    def to(tensor, _device, non_blocking=False):
        told.append(("copy", streams[-1], tensor.data_ptr() in pinned, non_blocking))
        return torch.empty_like(tensor, device="meta")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: compute)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: told.append(("keep for", stream.name)))
    return told


def test_every_tensor_is_changed_however_deep_and_nothing_else():
    doubled = map_tensors(batch(), lambda tensor: 2 * tensor)
    assert [tensor.sum().item() for tensor in tensors(doubled)] == [4, 6, 8]
    assert (doubled.keys, doubled.inner.kinds) == (("a", "b"), ("t2v",))


def test_no_copy_comes_from_pageable_memory_or_waits_and_all_are_on_the_side_stream(log):
    way = ToDevice(torch.device("cuda", 3))
    host = Future()
    moved = way.start(host)
    assert log == [], "nothing is copied before the batch is there"
    host.set_result(way.stage(batch()))
    assert log == [("copy", "side", True, True)] * 3 + [("record", "side")]
    log.clear()
    there = way.finish(moved)
    assert log == [("wait", "compute", "side")] + [("keep for", "compute")] * 3
    assert all(tensor.is_meta for tensor in tensors(there))


def test_an_error_of_the_batch_is_told_to_who_asks_for_it(log):
    way = ToDevice(torch.device("cuda"))
    host = Future()
    moved = way.start(host)
    host.set_exception(OSError("no route"))
    with pytest.raises(OSError, match="no route"):
        way.finish(moved)


def test_on_the_cpu_a_batch_stays_what_it_is():
    way = transfer_to(torch.device("cpu"))
    assert isinstance(way, OnHost)
    host, whole = Future(), batch()
    host.set_result(way.stage(whole))
    assert way.finish(way.start(host)) is whole
