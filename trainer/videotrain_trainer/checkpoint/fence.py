"""Keeps an older generation from writing once a newer one has begun.

Every generation leaves a mark of its own, created only if absent, and the highest mark is the fence. Marks are never
rewritten, so two generations that start at once cannot lower it, and no compare-and-swap is asked of the object store.
"""

from __future__ import annotations

import logging
import re

from videotrain_api.storage import layout
from videotrain_trainer.errors import Fenced, StorageUnavailable, TrainerError
from videotrain_trainer.storage import ObjectStore

log = logging.getLogger(__name__)
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
            StorageUnavailable: the mark is not stored after several tries, or not listed.
        """
        self._refuse_newer(self._marks(self._store))
        self._store.put_once(layout.fence(self._prefix, self._generation), b"{}\n")
        self.check()
        try:
            for generation in self._marks(self._store):
                if generation < self._generation:
                    self._store.delete(layout.fence(self._prefix, generation))
        except TrainerError as error:
            # Older marks do no harm; the next generation clears them away.
            log.warning("older marks are left: %s", error)

    def check(self) -> None:
        """Refuse to go on if a newer generation exists; call it once the mark is left.

        Raises:
            Fenced: it does.
            StorageUnavailable: two listings lack this generation's own mark, so they may lack a newer one too.
        """
        for store in (self._store, self._store.reconnected()):
            marks = self._marks(store)
            self._refuse_newer(marks)
            if self._generation in marks:
                return
        raise StorageUnavailable(
            f"{layout.fence(self._prefix, self._generation)}: the mark of this generation was stored, and two listings "
            "lack it; the object store gives old listings, or the mark was deleted"
        )

    def _refuse_newer(self, marks: list[int]) -> None:
        newest = max(marks, default=0)
        if newest > self._generation:
            raise Fenced(
                f"{self._prefix}: generation {newest} has begun; generation {self._generation} must not write any more"
            )

    def _marks(self, store: ObjectStore) -> list[int]:
        folder = layout.fence(self._prefix, self._generation).rpartition("/")[0]
        found = (_MARK.search(item.uri) for item in store.list(folder))
        return [int(match.group(1)) for match in found if match]
