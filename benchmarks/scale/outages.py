"""Scenarios in which the operator itself goes away."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime

from scale import audit
from scale.bench import Bench
from scale.load import Result
from scale.numbers import rounded, spread
from scale.plane import OPERATOR
from scale.replicas import Replica
from scale.tracker import RunSeen

WATCHED_SECONDS = 60.0
LOAD_SECONDS = 1.0
"""Between new runs while leaders are killed."""
LOST_SECONDS = 60.0
"""A run that has no roster so long after the last takeover was forgotten."""


async def restart(bench: Bench) -> Result:
    """The only replica is ended and started again beside live runs: by SIGTERM, then by SIGKILL.

    Time zero is the signal. One new run is sent as soon as the new process is started. Writes are the operator's in
    the 60 s after the signal, without leases and without those that name the new run.
    """
    await bench.submit(bench.names(bench.options.runs))
    await bench.reach("roster_at", "rosters are out")
    await bench.settle()
    await asyncio.sleep(15.0)
    kinds = (signal.SIGTERM, signal.SIGKILL)
    return {kind.name: await _restart(bench, kind) for kind in kinds} | bench.memory()


async def _restart(bench: Bench, number: signal.Signals) -> Result:
    [replica] = bench.replicas
    window = bench.window()
    ended = await replica.end(number)
    replica.start()
    [name] = bench.names(1)
    [run] = await bench.submit([name])
    await bench.tracker.until(lambda: run.exist_at is not None, bench.options.timeout, f"{name} has no pods")
    ready = await replica.ready()
    await bench.tracker.until(lambda: run.roster_at is not None, bench.options.timeout, f"{name} has no roster")
    bench.progress.show(f"after {number.name}", 0, 1)
    await asyncio.sleep(max(0.0, WATCHED_SECONDS - (time.monotonic() - window.began)))
    window.close()
    await bench.settle()
    await asyncio.sleep(audit.SETTLE_SECONDS)
    live, own = await _operator_writes(bench, window.began_at, window.ended_at, name)
    return {
        "endedSeconds": rounded(ended),
        "readySeconds": rounded(window.since(ready)),
        "newRunHasPodsSeconds": rounded(window.since(run.exist_at)),
        "newRunSentSeconds": rounded(window.since(run.sent)),
        "newRunRosterSeconds": rounded(window.since(run.roster_at)),
        "writesOnLiveRuns": sum(live.values()),
        "writesOnLiveRunsByKind": live,
        "writesForNewRun": own,
        "operatorCpuSeconds": rounded(window.cpu["operator"], 2),
    } | bench.memory()


async def _operator_writes(bench: Bench, begin: datetime, end: datetime, new: str) -> tuple[Counter[str], int]:
    """The operator's writes by kind without those for the new run, and the number of those."""
    live: Counter[str] = Counter()
    own = 0
    for write in audit.read(bench.plane.audit_log, begin, end):
        if write.who != OPERATOR or write.resource == "leases":
            continue
        if belongs(write.name, new):
            own += 1
        else:
            live[f"{write.verb} {write.resource}"] += 1
    return live, own


def belongs(name: str, run: str) -> bool:
    """Whether an object's name is that of a run or begins with it, as those of its pods and events do."""
    return name == run or name.startswith((f"{run}-", f"{run}."))


async def failover(bench: Bench) -> Result:
    """Two replicas, and a new run every second; the leader is killed by SIGKILL again and again.

    A takeover lasts from the kill until the Lease names another replica, and service is back when a run that was sent
    right after the kill has its pods. The killed replica is started again as the follower before the next kill. No
    fault hits a pod, so a second pod of an index is a duplicate, a second generation an unneeded restart, and a run
    without a roster a minute after the last takeover a lost wake-up.
    """
    stop = asyncio.Event()
    load = asyncio.create_task(_load(bench, stop))
    trials: list[Result] = []
    await asyncio.sleep(5.0)
    for number in range(bench.options.kills):
        bench.progress.show("leaders killed", number, bench.options.kills)
        trials.append(await _kill_leader(bench))
    stop.set()
    await load
    lost = await _lost(bench)
    runs = bench.tracker.runs.values()
    return {
        "takeoverSeconds": spread(trial["takeoverSeconds"] for trial in trials),
        "servedAgainSeconds": spread(trial["servedAgainSeconds"] for trial in trials),
        "runs": len(runs),
        "duplicatePods": sum(_duplicates(run) for run in runs),
        "twins": sum(run.twins for run in runs),
        "unneededGenerations": sum(max((p.order[0] for p in run.pods.values()), default=1) - 1 for run in runs),
        "lostWakeUps": lost,
        "trials": trials,
    } | bench.memory()


async def _load(bench: Bench, stop: asyncio.Event) -> None:
    """New runs until told to stop; beyond the number asked for, the oldest one that was served is deleted for each."""
    alive: list[RunSeen] = []
    while not stop.is_set():
        alive += await bench.submit(bench.names(1))
        served = [run for run in alive if run.roster_at is not None]
        if len(alive) > bench.options.runs and served:
            alive.remove(served[0])
            await bench.subject.delete(bench.client, served[0].name)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOAD_SECONDS):
                await stop.wait()


async def _kill_leader(bench: Bench) -> Result:
    victim = await bench.leader()
    began = time.monotonic()
    await victim.end(signal.SIGKILL)
    [run] = await bench.submit(bench.names(1))
    taken = await _taken_over(bench, victim)
    await bench.tracker.until(lambda: run.exist_at is not None, bench.options.timeout, f"{run.name} has no pods")
    victim.start()
    await victim.ready()
    await asyncio.sleep(2.0)
    assert run.exist_at is not None
    return {"takeoverSeconds": rounded(taken - began), "servedAgainSeconds": rounded(run.exist_at - began)}


async def _taken_over(bench: Bench, victim: Replica) -> float:
    while await bench.leader() is victim:
        await asyncio.sleep(0.05)
    return time.monotonic()


async def _lost(bench: Bench) -> int:
    wanted = len(bench.tracker.runs)
    with suppress(TimeoutError):  # counted
        await bench.tracker.until(lambda: bench.tracker.reached["roster_at"] >= wanted, LOST_SECONDS, "rosters")
    return wanted - bench.tracker.reached["roster_at"]


def _duplicates(run: RunSeen) -> int:
    """Pods beyond the first of each index."""
    return len(run.pods) - len({pod.index for pod in run.pods.values()})
