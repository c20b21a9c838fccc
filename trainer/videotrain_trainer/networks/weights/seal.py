"""Checksums that a safetensors file carries: one of each tensor, and one of all that its header says.

They are one free text field of the header, so any program reads the file. A tensor is verified as it is read and sealed
as it is written, so nothing is read twice for it. The order of the header and the places of the tensors do not count: a
program that copies tensors and fields into a file of its own makes one that still fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch

from videotrain_trainer.checksums import checksum

SEAL: Final = "videotrain-crc32c"
"""Field of the metadata: 8 hex digits of the header, then 8 of each tensor in order of their names."""
_DIGITS: Final = 8


class Sealed(NamedTuple):
    """A tensor as the seal knows it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: str
    """CRC-32C of its bytes, 8 hex digits."""


def unset_seal(tensors: int) -> str:
    """A seal of so many tensors, as long as the real one that takes its place once they are written."""
    return "0" * _DIGITS * (1 + tensors)


def seal_of(tensors: Mapping[str, Sealed], metadata: Mapping[str, str]) -> str:
    """The seal of tensors by name, and of the other free text fields."""
    names = sorted(tensors)
    facts = [[name, str(tensors[name].dtype), *tensors[name].shape, tensors[name].checksum] for name in names]
    content = json.dumps([facts, dict(metadata)], sort_keys=True, separators=(",", ":"))
    return checksum(content.encode()) + "".join(tensors[name].checksum for name in names)


def checksums_in(seal: str, names: list[str]) -> dict[str, str]:
    """The checksums of the tensors with these names, in any order. `seal_of` tells whether they are to be trusted.

    Raises:
        ValueError: the seal is one of other tensors.
    """
    if len(seal) != len(unset_seal(len(names))):
        raise ValueError(f"the seal is not one of {len(names)} tensors")
    digits = [seal[start : start + _DIGITS] for start in range(_DIGITS, len(seal), _DIGITS)]
    return dict(zip(sorted(names), digits, strict=True))
