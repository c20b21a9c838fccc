"""Batches on their way to the device: page-locked by the loader's threads, copied beside the step that computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def map_tensors(value: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The value with all tensors in it changed: of dataclasses and dictionaries, however deep."""
    found: Any = value
    if isinstance(found, Tensor):
        found = change(found)
    elif isinstance(found, dict):
        found = {name: map_tensors(item, change) for name, item in found.items()}
    elif is_dataclass(found) and not isinstance(found, type):
        found = replace(
            found, **{field.name: map_tensors(getattr(found, field.name), change) for field in fields(found)}
        )
    return found  # type: ignore[no-any-return]


class Transfer(Protocol):
    """How batches come from the host to where they are computed on."""

    def stage(self, batch: Batch) -> Batch:
        """Make a batch ready to be copied; called in a thread of the loader."""

    def start(self, batch: Future[Batch]) -> Future[Batch]:
        """Copy a batch once it is there, beside what the device computes."""

    def finish(self, batch: Future[Batch]) -> Batch:
        """The batch on the device, for the work that the caller queues from now on."""


class OnHost:
    """Batches stay where they are: the CPU computes."""

    def stage(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch

    def start(self, batch: Future[Batch]) -> Future[Batch]:
        """Nothing to copy."""
        return batch

    def finish(self, batch: Future[Batch]) -> Batch:
        """Wait for the batch."""
        return batch.result()


class ToDevice:
    """Copies on a stream of its own, so that the host waits for none and the device computes meanwhile.

    A copy from memory that is not page-locked would make the host wait until the device has done all that was queued.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stage(self, batch: Batch) -> Batch:
        """Copy the tensors into page-locked memory."""
        with torch.cuda.device(self._device):  # a new thread is on device 0, and would begin a context there
            return map_tensors(batch, Tensor.pin_memory)

    def start(self, batch: Future[Batch]) -> Future[Batch]:
        """Copy it on the side stream, from whichever thread it comes."""
        moved: Future[Any] = Future()

        def copy(done: Future[Batch]) -> None:
            try:
                with torch.cuda.stream(self._stream):
                    there = map_tensors(done.result(), lambda tensor: tensor.to(self._device, non_blocking=True))
                    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    copied.record(self._stream)
                moved.set_result((there, copied))
            except BaseException as error:  # whoever asks for the batch is told
                moved.set_exception(error)

        batch.add_done_callback(copy)
        return moved

    def finish(self, batch: Future[Batch]) -> Batch:
        """Let the current stream wait for the copy; the host waits only until it is queued."""
        found: Any = batch.result()
        there, copied = found
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # its memory belongs to the side stream, which may be further than this one
            return tensor

        return map_tensors(there, keep)  # type: ignore[no-any-return]


def transfer_to(device: torch.device) -> Transfer:
    """The way to a device."""
    return OnHost() if device.type == "cpu" else ToDevice(device)
