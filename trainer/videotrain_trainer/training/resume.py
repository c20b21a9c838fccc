"""Where a generation goes on: from copies of the state in memory, from a checkpoint, or from the first weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine
from videotrain_trainer.checkpoint.catalog import read_commit
from videotrain_trainer.checkpoint.copies import CopyFolder
from videotrain_trainer.checkpoint.copy_restore import Restored, restore_copies
from videotrain_trainer.checkpoint.damage import read_again
from videotrain_trainer.checkpoint.load import load_newest
from videotrain_trainer.checkpoint.state import Member
from videotrain_trainer.data.sample_order import OrderState
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sharded_state import ShardedState
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.training.copy_proof import lines_since
from videotrain_trainer.training.step import Grows, Objective
from videotrain_trainer.worker.stage_context import StageContext

log = logging.getLogger(__name__)
_MANIFEST: Final = TypeAdapter(CheckpointManifest | None)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What the ranks hold at the start of a generation."""

    order: OrderState
    samples: int
    """Consumed up to there."""
    stored: CheckpointManifest | None
    """Of the newest complete checkpoint, which copies may be ahead of; None if there is none."""
    skipped: Sequence[str] = ()
    """Newer checkpoints that were refused, with why."""
    lines: Sequence[OrderLine] = ()
    """Order of the steps from that checkpoint on; on rank 0 only."""
    from_copies: bool = False
    """The state came from copies in memory."""
    copies: Sequence[str] = ()
    """Names of those that lie in this pod."""

    @property
    def stored_step(self) -> int:
        """Step of the newest complete checkpoint; 0 for none."""
        return self.stored.step if self.stored else 0


def resume(
    context: StageContext,
    store: ObjectStore,
    member: Member,
    objective: Objective,
    state: ShardedState,
    complete: Sequence[int],
    peers: WorldPeers,
) -> Resumed:
    """Fill `state` from the newest that there is. Collective.

    Copies in memory go first, where the stage keeps some: they are at least as new as any checkpoint, or are left.

    Args:
        context: of the stage.
        store: object store.
        member: this process.
        objective: has the samples and their order, which grow by what the state has taken in.
        state: share of this rank, with its first weights.
        complete: steps of the complete checkpoints, as rank 0 has listed them.
        peers: the other ranks.

    Raises:
        TrainerError: see `load_newest`; or the copies' steps were not trained as the order has them.
        ConfigError: the order of the samples has changed since.
    """
    if context.copies is not None:
        folder = CopyFolder(context.copies.folder, context.copies.key, member)
        newest = max(complete, default=0)
        found = None
        if context.restore:
            found = restore_copies(folder, context.copies.node_ranks, newest, state, peers)
        if context.world.rank % context.copies.node_ranks == 0:
            folder.clear(keep=found.names if found else ())
        # Nobody makes a new copy before the old ones are cleared away.
        peers.any([True])
        if found is not None:
            return _from_copies(store, member, objective, newest, found, peers)
    loaded = load_newest(store, member, complete, state, peers, context.saved_step)
    samples = loaded.manifest.samples if loaded.manifest else 0
    order = _order_state(objective, loaded.manifest)
    return Resumed(order=order, samples=samples, stored=loaded.manifest, skipped=loaded.skipped)


def _from_copies(
    store: ObjectStore, member: Member, objective: Objective, newest: int, found: Restored, peers: WorldPeers
) -> Resumed:
    stored = None
    if peers.rank == 0 and newest:
        stored = read_again(store, lambda source: read_commit(source, member.prefix, newest, member.owner))
    stored = peers.from_first(_MANIFEST, stored)
    lines: list[OrderLine] = []
    order = _checked(objective, found.data_cursor, f"the copies of step {found.step}")
    if peers.rank == 0:
        log.info(
            "goes on from copies in memory, of step %d of generation %d; the newest checkpoint is of step %d",
            found.step,
            found.generation,
            newest,
        )
        lines = lines_since(objective.data, _order_state(objective, stored), found.step, found.proof)
    return Resumed(order=order, samples=found.samples, stored=stored, lines=lines, from_copies=True, copies=found.names)


def _order_state(objective: Objective, stored: CheckpointManifest | None) -> OrderState:
    if stored is None:
        return objective.data.plan.start()
    return _checked(objective, stored.data_cursor, f"the checkpoint at step {stored.step}")


def _checked(objective: Objective, cursor: dict[str, object], what: str) -> OrderState:
    """A state under the order of the objective, which has taken in by then what the state has."""
    try:
        state = OrderState.from_json(cursor)
        if isinstance(objective, Grows) and len(state.appended) > len(objective.data.plan.appended):
            objective.take_in(state.appended)
        plan = objective.data.plan
        state = plan.adopt(state)
        plan.check(state)
    except ValueError as error:
        raise ConfigError(
            f"{what} cannot be continued: {error}. Give the run another name, or restore data set, seed and bucket "
            "table"
        ) from error
    return state
