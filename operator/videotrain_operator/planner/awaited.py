"""Pods between their making and their first line in the ledger.

A pod is noted before it is made, so that one that was bound and went while no operator looked is not free of charge
without a word: nobody can know then what it cost, and the bill says that it is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from videotrain_api.crd.wire import Manifest
from videotrain_api.render.names import pod_name
from videotrain_operator.accounting.attribution import microseconds
from videotrain_operator.accounting.stored_ledger import Awaited, Kind, awaited_in, name_parts
from videotrain_operator.planner.draft import Draft


def resolve_awaited(draft: Draft, ledger: Mapping[str, Any]) -> bool:
    """Keep in `draft.awaited` what is still open.

    Args:
        draft: the pass.
        ledger: as stored; empty if there is none.

    Returns:
        Whether one may have been held of which nothing will ever be known.
    """
    known = ledger.get("pods", {})
    went = {pod.name for pod in draft.observed.departed if pod.uid not in known}
    since = draft.observed.followed_since
    lost = False
    for number, note in awaited_in(ledger).items():
        name = pod_name(draft.run.metadata.name, number)
        pod = draft.pods.get(name)
        if pod is not None and pod.uid not in known:
            if pod.bound_at is None:
                draft.awaited[number] = note
        elif name in draft.observed.missing:
            draft.awaited[number] = note
        elif name in went:
            continue
        elif since is None or note.since >= microseconds(since):
            draft.awaited[number] = note  # the API server refuses it, or has not answered
        else:
            lost = True
    return lost


def with_new_pods(draft: Draft, made: Iterable[Manifest]) -> dict[int, Awaited]:
    """Pods that are awaited after this pass, by number.

    Args:
        draft: the pass.
        made: pods that it makes.
    """
    awaited = draft.awaited
    if draft.releases_all():  # none is made any more, so what is not there was never made
        awaited = {
            number: note for number, note in awaited.items() if pod_name(draft.run.metadata.name, number) in draft.pods
        }
    pool = draft.pool()
    kind = Kind(pool.gpus_per_node, draft.price(pool), draft.pool_mark() or "")
    note = Awaited(kind, microseconds(draft.now))
    numbers = (name_parts(item["metadata"]["name"])[1] for item in made)
    same = {number for number, known in awaited.items() if known.kind == note.kind}
    return awaited | {number: note for number in numbers if number is not None and number not in same}
