"""Ending tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has cleaned up; an error that it ended with is raised."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.done():
            raise  # it is the caller that was cancelled


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """The same for several at once; the first error is raised when all have ended."""
    found = list(tasks)
    for task in found:
        task.cancel()
    for error in await asyncio.gather(*found, return_exceptions=True):
        if isinstance(error, Exception):
            raise error
