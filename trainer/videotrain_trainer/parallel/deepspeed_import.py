"""Imports DeepSpeed so that it works and starts fast; everything else of this package gets it from here.

Importing this module is the one expensive import of training, so only the tasks that train do it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

# Counting devices asks the driver's library and creates no context, unlike DeepSpeed's own detection; a process that
# has imported this may still be forked.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.device_count() else "cpu")

import deepspeed
import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.compiler as _compiler
from deepspeed.utils import logger as _logger


def _nothing(*_args: Any, **_keywords: Any) -> None:
    return None


def _uncompiled(*_args: Any, **_keywords: Any) -> Callable[[Any], Any]:
    return lambda function: function


def _import_muon() -> None:
    """Import Muon, which every ZeRO optimizer does to ask whether it is in use, without torch's compiler.

    Muon's module starts the compiler when it is imported: about a second, three without cached bytecode.
    """
    compile_, _compiler.compile = _compiler.compile, _uncompiled
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        _compiler.compile = compile_


_import_muon()
_logger.setLevel(logging.ERROR)

# On the CPU, DeepSpeed compiles a C++ shared-memory collective when its communication starts (two minutes on two cores,
# and an abort without a compiler). Gloo needs none of it. The submodule is hidden behind a name of its own package, so
# it is reached through sys.modules.
sys.modules["deepspeed.comm.torch"].build_shm_op = _nothing  # type: ignore[attr-defined]

# The bf16 optimizer prints memory tables while it is built, each after a full garbage collection (a second in all).
sys.modules["deepspeed.runtime.bf16_optimizer"].see_memory_usage = _nothing  # type: ignore[attr-defined]

# torch 2.13 renamed two collectives; DeepSpeed still calls them by their old names, once per step.
warnings.filterwarnings("ignore", message=r".*(all_gather_into_tensor|reduce_scatter_tensor).*", category=FutureWarning)

__all__ = ["deepspeed"]
