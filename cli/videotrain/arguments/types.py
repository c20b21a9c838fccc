"""What arguments of the command line are read as. Each refuses what it cannot be, by an error that says what can."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def folder(text: str) -> Path:
    """A folder, which need not exist."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder; for the current one write '.'")
    return Path(text)


def seed(text: str) -> int:
    """A seed."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; a whole number from 0 to 2^63 - 1 is needed")
    return int(text)


def world(text: str) -> int:
    """A number of GPUs."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 262_144:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GPUs; a whole number from 1 to 262144 is needed")
    return int(text)


def count(text: str) -> int:
    """A number of nodes or things, up to 1,000."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; a whole number from 1 to 1000 is needed")
    return int(text)


def lines(text: str) -> int:
    """A number of lines; 0 for none."""
    if not text.isascii() or not text.isdigit() or int(text) > sys.maxsize:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; a whole number from 0 is needed")
    return int(text)


def port(text: str) -> int:
    """A TCP port; 0 is any free one."""
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no port; a whole number from 0 (any free port) to 65535 is needed"
        )
    return int(text)


def utilisation(text: str) -> float:
    """A share above 0, up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no utilisation; a number above 0 and up to 1 is needed, such as 0.45"
        )
    return value


def amount(text: str) -> float:
    """Any number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount; a number of 0 or more is needed, such as 0.5")
    return value


def stage_seconds(text: str) -> tuple[str, float]:
    """A stage and the seconds of its step."""
    stage, _, seconds = text.partition("=")
    try:
        value = float(seconds)
    except ValueError:
        value = float("nan")
    if not stage or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not STAGE=SECONDS, such as train-256px=10.2")
    return stage, value
