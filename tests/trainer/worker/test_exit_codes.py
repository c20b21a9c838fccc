"""Which exit code an exception stands for."""

import errno

import pytest
import torch
import torch.distributed as dist

from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.errors import DataError, Fenced, StorageDenied
from videotrain_trainer.worker.exit_codes import classify, describe


def chained(outer, inner):
    try:
        try:
            raise inner  # noqa: TRY301
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), ExitCode.DATA),
        (Fenced("x"), ExitCode.FENCED),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.DISK_FULL),
        (OSError(errno.EPERM, "x"), ExitCode.INTERNAL),
        (dist.DistBackendError("x"), ExitCode.PEER_LOST),
        (dist.DistStoreError("wait timeout"), ExitCode.PEER_LOST),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:1"), ExitCode.PEER_LOST),
        (dist.DistBackendError("NCCL error: unhandled cuda error"), ExitCode.CUDA),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), ExitCode.CUDA),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ExitCode.INTERNAL),
        (ValueError("x"), ExitCode.INTERNAL),
        (KeyboardInterrupt(), ExitCode.INTERNAL),
        (chained(RuntimeError("loading failed"), StorageDenied("x")), ExitCode.PERMISSION),
        (chained(DataError("outermost counts"), OSError(errno.ENOSPC, "full")), ExitCode.DATA),
    ],
)
def test_an_exception_has_the_code_of_its_cause(error, code):
    assert classify(error) == code


def test_a_message_for_people_is_shown_as_it_is():
    assert describe(DataError("clip 7 is damaged")) == "clip 7 is damaged"
    assert describe(ValueError("7")) == "ValueError: 7"
    assert len(describe(ValueError("7" * 9000))) == 2000
