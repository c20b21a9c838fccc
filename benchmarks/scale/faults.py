"""Scenarios with faults of pods and nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from scale import nodes
from scale.bench import Bench
from scale.load import Result
from scale.numbers import rounded, spread
from scale.plane import restore_node
from scale.subjects import end_pod
from scale.tracker import PodSeen, RunSeen

FAULT_SECONDS = 420.0
"""How long a recovery is waited for: longer than Kubernetes takes by itself to give up a silent node."""


@dataclass
class Recovery:
    """What became of a run after a fault."""

    began: float
    survivors: list[PodSeen]
    order: tuple[int, bool]
    """Of the newest roster before the fault."""

    def roster_seconds(self) -> float | None:
        """Until the last survivor carried a newer roster; None as long as one does not."""
        times = [pod.roster_at for pod in self.survivors if pod.order > self.order and pod.roster_at]
        return max(times) - self.began if len(times) == len(self.survivors) else None

    def newcomers(self, run: RunSeen) -> list[PodSeen]:
        """Live pods that came after the fault."""
        return [pod for pod in run.live() if pod.seen > self.began]

    def outcome(self, run: RunSeen) -> Result:
        """Seconds and counts; what did not come is None."""
        new = self.newcomers(run)
        whole = run.whole()
        kept = sum(pod.live for pod in self.survivors)
        roster = self.roster_seconds()
        rosters = {"rosterSeconds": rounded(roster)} if self.order[0] else {}
        return rosters | {
            "replacedSeconds": rounded(max(pod.seen for pod in new) - self.began) if whole and new else None,
            "replacedRunningSeconds": _running(new, self.began) if whole and new else None,
            "newPods": len({pod.uid for pod in run.pods.values() if pod.seen > self.began}),
            "survivors": len(self.survivors),
            "survivorsKept": kept,
        }


def _running(pods: list[PodSeen], began: float) -> float | None:
    times = [pod.running_at for pod in pods if pod.running_at is not None]
    return rounded(max(times) - began) if times else None


async def pod_fail(bench: Bench) -> Result:
    """One worker container of a live run ends with exit code 1, by a write of the pod's status as a kubelet does it.

    `rosterSeconds`: until every survivor finds a roster that ends its generation. `replacedSeconds`: until a new pod
    exists for the failed one. A survivor is kept if its uid still lives when all pods run again.
    """

    async def inject(victim: PodSeen) -> Result:
        await end_pod(bench.client, victim.name, 1)
        return {}

    return await _trials(bench, inject, lambda run: run.live()[1:2])


async def node_delete(bench: Bench) -> Result:
    """The Node object under one worker is deleted, as a cloud provider does with a machine that is gone."""

    async def inject(victim: PodSeen) -> Result:
        assert victim.node is not None
        await nodes.remove_node(bench.client, victim.node)
        return {}

    return await _trials(bench, inject, _same_node, repair=_restore)


async def node_silent(bench: Bench) -> Result:
    """The kubelet under one worker dies: its lease is renewed no more, the Node and the Pod objects stay.

    The stock grace period of 50 s is part of every figure; `notReadySeconds` is when the node was marked.
    """

    async def inject(victim: PodSeen) -> Result:
        assert victim.node is not None
        await nodes.silence(bench.client, victim.node)
        return {"notReadySeconds": asyncio.create_task(_not_ready(bench, victim.node))}

    return await _trials(bench, inject, _same_node, repair=_restore)


async def _not_ready(bench: Bench, node: str) -> float | None:
    began = time.monotonic()
    while await nodes.is_ready(bench.client, node):
        await asyncio.sleep(0.2)
    return rounded(time.monotonic() - began)


def _same_node(run: RunSeen) -> list[PodSeen]:
    """The second worker, and whoever shares its node."""
    second = run.live()[1]
    return [second, *(pod for pod in run.live() if pod.node == second.node and pod is not second)]


async def _restore(bench: Bench, victim: PodSeen) -> None:
    assert victim.node is not None
    await nodes.remove_node(bench.client, victim.node)
    await asyncio.to_thread(restore_node, bench.plane, victim.node)


async def _trials(
    bench: Bench,
    inject: Callable[[PodSeen], Awaitable[Result]],
    victims: Callable[[RunSeen], list[PodSeen]],
    repair: Callable[[Bench, PodSeen], Awaitable[None]] | None = None,
) -> Result:
    """So many times: a run, a fault, its recovery."""
    if bench.options.pods < 3:
        raise ValueError(f"--pods {bench.options.pods}: a fault needs at least 3, so that a world of survivors is left")
    found: list[Result] = []
    for number in range(bench.options.trials):
        bench.progress.show("trials", number, bench.options.trials)
        found.append(await _trial(bench, inject, victims, repair))
    times = ("rosterSeconds", "replacedSeconds", "replacedRunningSeconds", "notReadySeconds")
    result: Result = {name: spread(trial.get(name) for trial in found) for name in times if name in found[0]}
    result["recovered"] = f"{sum(trial['replacedRunningSeconds'] is not None for trial in found)} of {len(found)}"
    return result | {"trials": found} | bench.memory()


async def _trial(
    bench: Bench,
    inject: Callable[[PodSeen], Awaitable[Result]],
    victims: Callable[[RunSeen], list[PodSeen]],
    repair: Callable[[Bench, PodSeen], Awaitable[None]] | None,
) -> Result:
    [name] = bench.names(1)
    [run] = await bench.submit([name], elastic=True)
    await bench.reach(bench.begins, "one run")
    await bench.settle()
    await asyncio.sleep(2.0)  # the last writes of its start have passed
    hit = victims(run)
    survivors = [pod for pod in run.live() if pod not in hit]
    window = bench.window()
    recovery = Recovery(window.began, survivors, max(pod.order for pod in run.live()))
    extra = await inject(hit[0])
    outcome = await _recovered(bench, run, recovery)
    window.close()
    [writes] = await bench.writes(window)
    outcome |= {key: await _value(item) for key, item in extra.items()}
    outcome["writes"] = writes["byWho"]
    if repair is not None:
        await repair(bench, hit[0])
    await bench.clear([name])
    bench.tracker.forget()
    return outcome


async def _value(item: Any) -> Any:
    """A task's result, or None if it is not done when the recovery is."""
    if not isinstance(item, asyncio.Task):
        return item
    if item.done():
        return item.result()
    item.cancel()
    return None


async def _recovered(bench: Bench, run: RunSeen, recovery: Recovery) -> Result:
    """Wait until survivors have a roster and all pods run; what is there after FAULT_SECONDS if they do not."""

    def done() -> bool:
        if bench.subject.has_operator and recovery.roster_seconds() is None:
            return False
        return run.whole() and bool(recovery.newcomers(run))

    with suppress(TimeoutError):  # told by the empty fields of the outcome
        await bench.tracker.until(done, min(FAULT_SECONDS, bench.options.timeout), "recovery")
    return recovery.outcome(run)
