"""Ending tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has cleaned up; an error that it ended with is raised.

    A caller that is cancelled meanwhile stays so: its cancellation goes through the task, and looks like the task's.
    """
    caller = asyncio.current_task()
    before = caller.cancelling() if caller else 0
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.done() or (caller and caller.cancelling() > before):
            raise


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """The same for several at once; the first error is raised when all have ended."""
    found = list(tasks)
    for task in found:
        task.cancel()
    for error in await asyncio.gather(*found, return_exceptions=True):
        if isinstance(error, Exception):
            raise error
