"""Which exit code an exception stands for."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch
import torch.distributed as dist

from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.errors import TrainerError

_CUDA_MARKS = (
    "CUDA error",
    "cudaError",
    "unhandled cuda error",
    "ncclUnhandledCudaError",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
)
_PEER_MARKS = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Application timeout caused pair closure",
    "NCCL communicator was aborted",
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _code_of(error: BaseException) -> ExitCode | None:
    if isinstance(error, TrainerError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.DISK_FULL
    if isinstance(error, torch.OutOfMemoryError):
        return ExitCode.INTERNAL  # the model does not fit; the device is healthy
    text = str(error)
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in _CUDA_MARKS)
    ):
        return ExitCode.CUDA
    if isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in _PEER_MARKS)
    ):
        return ExitCode.PEER_LOST
    return None


def classify(error: BaseException) -> ExitCode:
    """Exit code of the outermost exception in the chain that has one of its own; INTERNAL if none has."""
    codes = (_code_of(link) for link in _chain(error))
    return next((code for code in codes if code is not None), ExitCode.INTERNAL)


def describe(error: BaseException, limit: int = 2000) -> str:
    """One message for people: the text of a TrainerError as it is, any other with its class."""
    text = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
