"""What holds even where nothing else can be decided: suspension, deadline and budget, from the pods alone.

A pass that cannot read what was stored, or whose writes are refused, still holds nodes that cost. This looks at nothing
but the pods and the few fields of the spec that say when they have to go, each read by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from videotrain_api.money import MICROSECONDS_PER_HOUR, cost_micros, parse_micros
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.training_budgets import TrainingBudget
from videotrain_api.resource.trainrun import Budget
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import LABEL_TEAM
from videotrain_operator.accounting.money import parse_price
from videotrain_operator.planner.decision import Deletion
from videotrain_operator.planner.observed import PodView

_MICROSECOND: Final = timedelta(microseconds=1)


def overdue_pods(
    run: Mapping[str, Any],
    pods: Iterable[PodView],
    now: datetime,
    time_untrusted: str = "",
    budgets: Sequence[TrainingBudget] = (),
) -> tuple[Deletion, ...]:
    """The pods that have to go, each with its own grace, in which its agent saves.

    With a budget that shrinks the run to its smallest world, those beyond it; else all of them or none.

    Args:
        run: the object as it is stored; its spec and status may hold anything.
        pods: worker pods that are there.
        now: the time of this pass, aware.
        time_untrusted: why that may be wrong; then neither deadline nor the run's budget takes a pod.
        budgets: those of teams, as they are stored.
    """
    spec = run.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    there = [pod for pod in pods if not pod.deleting]
    first = 0
    asked = _is_asked_to_stop(run, spec) or _is_stopped_by_its_team(run, spec, budgets)
    if not asked and time_untrusted:
        return ()
    if not asked and not _is_too_late(run, spec, there, now):
        budget = _budget(spec)
        if budget is None or budget.action == "Notify" or not _is_spent(budget, *_spent(run, spec, there, now)):
            return ()
        first = _smallest(spec) if budget.action == "Shrink" else 0
    return tuple(Deletion(kind="Pod", name=pod.name, uid=pod.uid) for pod in there if pod.index >= first)


def _is_asked_to_stop(run: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    return spec.get("suspend") is True or "deletionTimestamp" in run["metadata"]


def _is_stopped_by_its_team(run: Mapping[str, Any], spec: Mapping[str, Any], budgets: Iterable[TrainingBudget]) -> bool:
    head, priority = run["metadata"], spec.get("priority")
    priority = priority if isinstance(priority, int) else 0
    team = str((head.get("labels") or {}).get(LABEL_TEAM, ""))
    covering = (b for b in budgets if b.covers(head.get("namespace", "default"), team))
    return any(rule.action == "CheckpointAndSuspend" for b in covering for rule in b.holding(priority))


def _is_too_late(run: Mapping[str, Any], spec: Mapping[str, Any], pods: Iterable[PodView], now: datetime) -> bool:
    limit = spec.get("activeDeadlineSeconds")
    since = min(_bound(pods), default=None)
    if not isinstance(limit, int) or since is None:
        return False
    earlier = timedelta(microseconds=read_status(run.get("status")).status.active_microseconds)
    return earlier + (now - since) >= timedelta(seconds=limit)


def _bound(pods: Iterable[PodView]) -> Iterator[datetime]:
    yield from (pod.bound_at for pod in pods if pod.bound_at is not None and pod.finished_at is None)


def _budget(spec: Mapping[str, Any]) -> Budget | None:
    try:
        return Budget.from_wire(spec.get("budget"))
    except ManifestError:
        return None


def _spent(run: Mapping[str, Any], spec: Mapping[str, Any], pods: Iterable[PodView], now: datetime) -> tuple[int, int]:
    """GPU microseconds and micros: what the pods held, or what the status knows and they held since it, if more."""
    status = read_status(run.get("status")).status
    since = (status.cost.counted_until if status.cost is not None else None) or status.observed_at or now
    alone = later = (0, 0)
    for pod in pods:
        if pod.bound_at is None:
            continue
        end = pod.finished_at or now
        alone = _plus(alone, _worth(spec, pod, end - pod.bound_at))
        later = _plus(later, _worth(spec, pod, end - max(pod.bound_at, since)))
    if status.cost is None:
        return alone
    known = _plus(later, (status.cost.held_gpu_microseconds, status.cost.total_micros))
    return max(alone[0], known[0]), max(alone[1], known[1])


def _plus(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _worth(spec: Mapping[str, Any], pod: PodView, held: timedelta) -> tuple[int, int]:
    run_pool = spec.get("pool")
    run_pool = run_pool if isinstance(run_pool, Mapping) else {}
    pool = _own_pool(spec, pod.pool) if pod.pool else run_pool
    found = pod.gpus or pool.get("gpusPerNode")
    gpus = found if isinstance(found, int) else 1
    microseconds, field = max(0, held // _MICROSECOND), "pricePerGpuHour" if gpus else "pricePerNodeHour"
    try:
        price, _ = parse_price(pod.price or f"{pool.get(field)} {run_pool.get('currency', 'USD')}")
    except ValueError:
        price = 0  # hours are bounded all the same
    return microseconds * gpus, cost_micros(microseconds * (gpus or 1), price)


def _own_pool(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Pool of the stage of that name."""
    stages = spec.get("stages")
    named = [
        stage.get("pool")
        for stage in (stages if isinstance(stages, list) else ())
        if isinstance(stage, Mapping) and stage.get("name") == name
    ]
    return named[0] if named and isinstance(named[0], Mapping) else {}


def _is_spent(budget: Budget, gpu_microseconds: int, micros: int) -> bool:
    hours = budget.max_gpu_hours
    if hours is not None and gpu_microseconds >= hours * MICROSECONDS_PER_HOUR:
        return True
    return budget.max_cost is not None and micros >= parse_micros(budget.max_cost)


def _smallest(spec: Mapping[str, Any]) -> int:
    nodes = spec.get("nodes")
    least = nodes.get("min") if isinstance(nodes, Mapping) else None
    return least if isinstance(least, int) else 1
