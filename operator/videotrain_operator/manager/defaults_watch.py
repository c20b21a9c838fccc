"""The cluster's defaults for runs, as their ConfigMap has them now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from videotrain_api.render.defaults import NO_DEFAULTS, parse_defaults
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.schema import Json
from videotrain_api.vocabulary import RUN_DEFAULTS_KEY
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import ApiError, KubeClient
from videotrain_operator.kube.json_text import read_json

LOOK_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class DefaultsWatch:
    """Reads the defaults again and again. What cannot be read changes nothing: the last that could be stay."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        on_change: Callable[[RunDefaults], None],
        on_unreadable: Callable[[Json, str], Awaitable[None]],
    ) -> None:
        """Nothing is read before `first`.

        Args:
            client: the API server.
            namespace: of the ConfigMap.
            name: of the ConfigMap.
            on_change: told of defaults that are others than before.
            on_unreadable: told the ConfigMap and what is wrong with it, once for each of its versions.
        """
        self._client, self._namespace, self._name = client, namespace, name
        self._on_change, self._on_unreadable = on_change, on_unreadable
        self._current = NO_DEFAULTS
        self._version = ""
        self.problem = ""
        """Why what is there cannot be read; empty if it can."""
        self.unreadable = 0
        """Versions that could not be read since the start."""

    async def first(self) -> None:
        """Return when defaults have been read: nobody knows what runs may be before."""
        while not await self.look() or self.problem:
            await asyncio.sleep(LOOK_SECONDS)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> bool:
        """Read them once; False if the API server gave no answer."""
        try:
            config_map = await self._client.get("ConfigMap", self._namespace, self._name)
        except NotFound:
            config_map = {}
        except ApiError as error:
            _log.warning("run defaults: configmap=%s/%s: %s; trying again", self._namespace, self._name, error)
            return False
        head = config_map.get("metadata") or {}
        version = str(head.get("resourceVersion", "none"))
        if version == self._version:
            return True
        self._version, self.problem = version, ""
        try:
            found = parse_defaults(_read(config_map))
        except ValueError as error:
            self.problem = str(error)
            self.unreadable += 1
            _log.error(
                "run defaults: configmap=%s/%s cannot be read, %s: %s",
                self._namespace,
                self._name,
                "the last readable ones stay" if self._current is not NO_DEFAULTS else "nothing begins before it can",
                error,
            )
            if head:
                await self._on_unreadable(config_map, self.problem)
            return True
        if found != self._current:
            self._on_change(found)
        self._current = found
        _log.info("run defaults: configmap=%s/%s version=%s taken", self._namespace, self._name, version)
        return True


def _read(config_map: Json) -> object:
    """What the ConfigMap holds.

    Raises:
        ValueError: there is none, or no JSON in it.
    """
    if not config_map:
        raise ValueError("there is no such ConfigMap")
    text = (config_map.get("data") or {}).get(RUN_DEFAULTS_KEY)
    if text is None:
        raise ValueError(f"data has no {RUN_DEFAULTS_KEY}; set it to {{}} for no defaults")
    try:
        found: object = read_json(text)
    except ValueError as error:
        raise ValueError(f"data.{RUN_DEFAULTS_KEY}: no JSON: {error}") from None
    return found
