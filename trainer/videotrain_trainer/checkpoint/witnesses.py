"""Whether what one machine cannot read is damaged: another machine is asked, now or in another generation."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import SuspectMark
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError, seal, unseal
from videotrain_trainer.checkpoint.state import Member
from videotrain_trainer.errors import ObjectMissing, TrainerError
from videotrain_trainer.storage import ObjectStore

log = logging.getLogger(__name__)


def leave_mark(store: ObjectStore, member: Member, step: int, damage: DamagedCheckpointError) -> None:
    """Write beside a checkpoint what this process reads of it. It binds no later generation; trouble is only logged."""
    mark = SuspectMark(
        generation=member.generation,
        rank=member.rank,
        node=member.node,
        at=datetime.now(UTC),
        uri=damage.uri,
        start=damage.start,
        stop=damage.stop,
        found=damage.found,
        problem=damage.problem,
    )
    try:
        store.put(layout.suspect_mark(member.prefix, step, member.generation, member.rank), seal(mark))
    except TrainerError as error:
        log.warning("the mark of a suspect checkpoint cannot be written: %s", error)


def marked_elsewhere(store: ObjectStore, member: Member, step: int, damage: DamagedCheckpointError) -> str | None:
    """The other machine that has read the same wrong bytes in an earlier generation, if one has."""
    for item in store.list(layout.checkpoint_prefix(member.prefix, step)):
        if "/suspect-" not in item.uri:
            continue
        try:
            mark = unseal(SuspectMark, item.uri, store.get(item.uri))
        except (DamagedCheckpointError, ObjectMissing) as error:
            log.warning("a mark of a suspect checkpoint is left out: %s", error)
            continue
        same = (mark.uri, mark.start, mark.stop, mark.found) == (damage.uri, damage.start, damage.stop, damage.found)
        if same and mark.node != member.node:
            return mark.node
    return None
