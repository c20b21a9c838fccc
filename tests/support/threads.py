"""Threads of torch in tests."""

from __future__ import annotations

import os

import torch


def set_threads() -> None:
    """As many threads as the environment says, one if it says nothing: torch alone would take a machine's cores."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
