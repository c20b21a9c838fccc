"""Copies of training state in memory: whether they have room."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.cost.peer_copies import copied_parameters, copies_bytes
from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import node_bounds, pool_of, pool_path
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

_GIBIBYTE = 1024**3


def check_copies(facts: Facts) -> Iterator[Problem]:
    """The copies of every stage must fit /dev/shm in the smallest world, where a node's part is largest."""
    spec = facts.run.spec
    copies = spec.checkpoint.peer_copies
    if copies is None or facts.autoencoder is None:
        return
    for index, stage in enumerate(spec.stages):
        task, counts = stage.train or stage.autoencoder, node_counts(node_bounds(facts.run, stage))
        if task is None or not counts:
            continue
        trained = copied_parameters(stage, facts.model, facts.autoencoder, spec.text_encoder)
        needed = -(-copies_bytes(trained, counts[0], average=bool(task.ema_decay)) // _GIBIBYTE)
        room, pool = pool_of(facts.run, stage).shm_gibibytes, pool_path(facts.run, index)
        if needed > room:
            allowed = (
                f"the copies of stage {stage.name!r} take {needed} GiB of /dev/shm on each of {counts[0]} node(s), and "
                f"{pool}.shmGibibytes is {room}: raise it with {pool}.memory, or begin with more nodes"
            )
            yield Problem("spec.checkpoint.peerCopies", copies.to_wire(), allowed)
