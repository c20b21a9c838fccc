"""Keeps an older generation from writing once a newer one has begun.

Every generation leaves a mark of its own, created only if absent, and the highest mark is the fence. Marks are never
rewritten, so two generations that start at once cannot lower it, and no compare-and-swap is asked of the object store.
"""

from __future__ import annotations

import re
from contextlib import suppress

from videotrain_api.storage import layout
from videotrain_trainer.errors import AlreadyExists, Fenced
from videotrain_trainer.storage import ObjectStore

_MARK = re.compile(r"g(\d+)\.json$")


class Fence:
    """The fence of one stage, seen from one generation.

    Args:
        store: object store.
        prefix: of the stage.
        generation: of this process.
    """

    def __init__(self, store: ObjectStore, prefix: str, generation: int) -> None:
        self._store = store
        self._prefix = prefix
        self._generation = generation

    def raise_(self) -> None:
        """Leave this generation's mark; call it before the checkpoint to start from is chosen.

        Raises:
            Fenced: a newer generation has left one.
        """
        self.check()
        with suppress(AlreadyExists):  # the same generation was started twice: its mark says all that is needed
            self._store.put(layout.fence(self._prefix, self._generation), b"{}\n", only_if_absent=True)
        for generation in self._marks():
            if generation < self._generation:
                self._store.delete(layout.fence(self._prefix, generation))

    def check(self) -> None:
        """Refuse to go on if a newer generation exists.

        Raises:
            Fenced: it does.
        """
        newest = max(self._marks(), default=0)
        if newest > self._generation:
            raise Fenced(
                f"{self._prefix}: generation {newest} has begun; generation {self._generation} must not write any more"
            )

    def _marks(self) -> list[int]:
        folder = layout.fence(self._prefix, self._generation).rpartition("/")[0]
        found = (_MARK.search(item.uri) for item in self._store.list(folder))
        return [int(match.group(1)) for match in found if match]
