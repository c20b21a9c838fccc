"""The watch of TrainingBudgets, whose definition may come later, or go: the operator lives on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from videotrain_api.schema import Json
from videotrain_api.vocabulary import BUDGET_KIND
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.cache import Store
from videotrain_operator.kube.client import ApiError, ApiUnavailable, KubeClient
from videotrain_operator.kube.informer import Informer, OnEvent

AGAIN_SECONDS: Final = 1.0
"""Until a server that does not answer is asked again."""
REFUSED_SECONDS: Final = 5.0
"""Until one that refuses is."""
_log = logging.getLogger(__name__)


class BudgetWatch(Informer):
    """Keeps the store of TrainingBudgets current whenever the server serves them and lets them be read.

    Until they were read once, nobody knows whether there is one: `synced` is not set. What was read stays in the store
    while they cannot be read.
    """

    def __init__(
        self,
        client: KubeClient,
        store: Store,
        on_event: OnEvent,
        *,
        on_read: Callable[[], object],
        on_refused: Callable[[Exception], object],
    ) -> None:
        """Begin with nothing known.

        Args:
            client: of the API server.
            store: to keep.
            on_event: told of what is new in it.
            on_read: told when they can be read, at first or again.
            on_refused: told of each refusal.
        """
        super().__init__(client, BUDGET_KIND, store, on_event)
        self._on_read, self._on_refused = on_read, on_refused
        self.answered = asyncio.Event()
        """The server told of them, or that it does not."""
        self.refusal = ""
        """Why they cannot be read now."""

    async def run(self) -> None:
        """Follow them until cancelled; no answer of the server ends it."""
        while True:
            try:
                await self._client.list_page(BUDGET_KIND, limit="1")
                self._version = ""  # another definition of the same name counts anew
                await super().run()
            except (ApiError, NotFound) as error:
                waits = isinstance(error, ApiUnavailable)
                if not self.refusal:
                    more = "; runs that one suspended stay so"
                    _log.warning("waiting for the API server to tell of %s: %s%s", BUDGET_KIND, error, more)
                self.refusal = str(error)
                if not waits:
                    self._on_refused(error)
                    self.answered.set()
                await asyncio.sleep(AGAIN_SECONDS if waits else REFUSED_SECONDS)

    def replaced(self, items: list[Json], version: int, /) -> None:
        """See Informer.replaced."""
        super().replaced(items, version)
        first, self.refusal = self.refusal or not self.synced.is_set(), ""
        self.answered.set()
        if first:
            self._on_read()
