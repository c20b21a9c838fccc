"""Asking an API server again that did not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from videotrain_operator.kube.client import ApiUnavailable, KubeClient

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

RETRY_SECONDS: Final = (0.2, 5.0)
"""First and longest pause before asking an API server again that did not answer."""


async def retry_until_answered(client: KubeClient, what: str, request: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a request, repeated while the API server is away.

    Args:
        client: only for the message.
        what: what is tried, for the message.
        request: makes the awaitable; called once per attempt.
    """
    pause = RETRY_SECONDS[0]
    while True:
        try:
            return await request()
        except ApiUnavailable as error:
            _log.warning("%s at %s: no answer, again in %.1f s: %s", what, client.server, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])
