"""Following one kind of a real API server: list, watch, and list again when history was lost."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import ApiError, ApiUnavailable, KubeClient

_log = logging.getLogger(__name__)

GONE: Final = 410
RETRY_SECONDS: Final = (0.2, 5.0)
"""First and longest pause before asking an API server again that did not answer."""


class Follower(Protocol):
    """Told what there is and what changes."""

    def replaced(self, items: list[Json], version: int, /) -> None:
        """Everything there is, as of a resourceVersion."""

    def changed(self, body: Json, deleted: bool) -> None:
        """One object was made, changed or removed."""


async def follow(client: KubeClient, kind: str, follower: Follower) -> None:
    """Keep a follower up to date for ever; while the API server is away it is told nothing.

    Raises:
        ApiError: the server refuses for good, for example because the credentials may not list this kind.
    """
    version, pause = "", RETRY_SECONDS[0]
    while True:
        try:
            if not version:
                version = await _list(client, kind, follower)
            async for event in client.watch(kind, resource_version=version):
                pause = RETRY_SECONDS[0]
                if isinstance(event, str):
                    version = event
                    continue
                version = event.object["metadata"]["resourceVersion"]
                follower.changed(event.object, event.type == "DELETED")
        except ApiUnavailable as error:
            _log.warning("%s: the API server does not answer, asking again in %.1f s: %s", kind, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])
        except ApiError as error:
            if error.status != GONE:
                raise
            _log.info("%s: the server no longer knows what happened since %s, listing again", kind, version)
            version = ""
        except NotFound as error:  # an API server that is starting serves its paths one after the other
            _log.warning("%s: not served yet: %s", kind, error)
            await asyncio.sleep(pause)


async def _list(client: KubeClient, kind: str, follower: Follower) -> str:
    found: list[Json] = []
    version = ""
    async for items, at in client.pages(kind):
        found += items
        version = version or at
    follower.replaced(found, int(version))
    return version


async def retry_until_answered(client: KubeClient, what: str, request: Any) -> Any:
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
