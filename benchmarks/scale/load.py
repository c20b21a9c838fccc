"""Scenarios without faults: many runs at once, one at a time, whole lives, and nothing at all."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from scale import audit
from scale.bench import Bench
from scale.numbers import per_run, rounded, spread
from scale.usage import Window

Result = dict[str, Any]


async def burst(bench: Bench) -> Result:
    """All runs are sent at once; clocks begin with the first one sent, per run with its own.

    Pods exist, run and have their first roster when the driver's watch and the agents say so. Training can begin when
    all rosters are told; without an operator of ours, when all pods run. CPU is that of every component but driver and
    agents, from the first run sent until all pods run, and until training can begin.
    """
    count = bench.options.runs
    before = await bench.requests()
    until_running, until_begin = bench.window(), bench.window()
    await bench.submit(bench.names(count))
    exist = await bench.reach("exist_at", "pods exist")
    await bench.reach("running_at", "pods run")
    until_running.close()
    await bench.reach(bench.begins, "can begin to train")
    until_begin.close()
    result = _burst_times(bench, until_running, exist)
    begin, run = bench.tracker.last(bench.begins), bench.tracker.last("running_at")
    result["trainingCanBeginSeconds"] = rounded(until_begin.since(begin))
    result["beginAfterLastPodRunsSeconds"] = rounded(begin - run) if begin and run else None
    result["cpuUntilRunning"] = cpu_per_run(until_running, count)
    result["cpuUntilBegin"] = cpu_per_run(until_begin, count)
    if bench.subject.has_operator:
        result["operatorRequestsPerRun"] = per_run(await bench.requests() - before, count)
    writes = await bench.writes(until_begin)
    result["writesPerRunUntilBegin"] = writes_per_run(writes[0], count)
    return result | bench.memory()


def _burst_times(bench: Bench, window: Window, exist: float) -> Result:
    tracker = bench.tracker
    names = {"exist_at": "podsExist", "running_at": "podsRun"}
    names |= {"roster_at": "rosterOut"} if bench.subject.has_operator else {}
    result: Result = {"runsPerSecond": rounded(bench.options.runs / (exist - window.began), 2)}
    for mark, name in names.items():
        result[f"all{name[0].upper()}{name[1:]}Seconds"] = rounded(window.since(tracker.last(mark)))
        result[f"{name}SecondsPerRun"] = spread(tracker.times(mark))
    result["twins"] = sum(run.twins for run in tracker.runs.values())
    return result


async def idle(bench: Bench) -> Result:
    """One run at a time on a cluster where nothing else happens; each is deleted and gone before the next one."""
    trials = bench.options.trials
    found: dict[str, list[float]] = {"exist_at": [], "running_at": [], "roster_at": []}
    for number in range(trials):
        bench.progress.show("one run at a time", number, trials)
        [name] = bench.names(1)
        await bench.submit([name])
        await bench.reach(bench.begins, "one run at a time")
        for mark, times in found.items():
            times += list(bench.tracker.times(mark))
        await bench.settle()
        await bench.clear([name])
        bench.tracker.forget()
        await asyncio.sleep(1.0)
    names = {"podsExistSeconds": "exist_at", "podsRunSeconds": "running_at", "rosterOutSeconds": "roster_at"}
    return {name: spread(found[mark]) for name, mark in names.items() if found[mark]} | bench.memory()


async def life(bench: Bench) -> Result:
    """Writes of whole lives: a burst of runs, all pods run, all workers succeed, all runs complete, all are deleted.

    Writes come from the audit log by user, without leases; `cluster` is without KWOK and driver, who play kubelets and
    users. A Job's pods end by the driver's status writes, a run's because its agents say that they succeeded.
    """
    count = bench.options.runs
    names = bench.names(count)
    running = bench.window()
    await bench.submit(names)
    await bench.reach("running_at", "pods run")
    await bench.settle()
    finish = _next(bench, running)
    await bench.subject.finish(bench.client, bench.agents, bench.tracker.runs.values())
    await bench.poll(lambda: bench.subject.finished(bench.client), count, "complete")
    delete = _next(bench, finish)
    await bench.clear(names)
    delete.close()
    phases = {"untilRunning": running, "finish": finish, "delete": delete}
    tallies = dict(zip(phases, await bench.writes(*phases.values()), strict=True))
    whole: dict[str, Counter[str]] = {
        key: sum((tally[key] for tally in tallies.values()), Counter()) for key in tallies["delete"]
    }
    result: Result = {"seconds": {name: rounded(window.seconds) for name, window in phases.items()}}
    result["writesPerRun"] = {name: writes_per_run(tally, count) for name, tally in tallies.items()}
    result["writesPerRun"]["life"] = writes_per_run(whole, count)
    result["writesPerRunByKind"] = per_run(whole["kinds"], count)
    result["refused"] = whole["refused"]
    result["cpuPerRun"] = {name: cpu_per_run(window, count) for name, window in phases.items()}
    return result | bench.memory()


def _next(bench: Bench, before: Window) -> Window:
    before.close()
    return bench.window()


async def quiet(bench: Bench) -> Result:
    """Live runs whose steps go on while nothing happens: CPU over a minute, writes and questions to agents in it."""
    await bench.submit(bench.names(bench.options.runs))
    await bench.reach("roster_at", "rosters are out")
    await bench.settle()
    await asyncio.sleep(15.0)  # what follows a start, such as events and caches, has passed
    before = await bench.agents.questions() if bench.agents else 0
    window = bench.window()
    bench.progress.show("nothing happens", 0, 1)
    await asyncio.sleep(bench.options.quiet_seconds)
    window.close()
    questions = (await bench.agents.questions() if bench.agents else 0) - before
    [writes] = await bench.writes(window)
    return {
        "seconds": rounded(window.seconds, 1),
        "operatorCpuPercentOfCore": rounded(100 * window.cpu["operator"] / window.seconds, 2),
        "clusterCpuPercentOfCore": rounded(100 * _cluster(window) / window.seconds, 1),
        "writes": writes["byWho"],
        "writesByKind": writes["kinds"],
        "leaseWrites": writes["leases"],
        "questionsToAgents": questions,
    } | bench.memory()


def cpu_per_run(window: Window, count: int) -> Result:
    """CPU seconds per run: of the whole cluster, of each component, and of the driver beside it."""
    parts = {name: rounded(used / count, 4) for name, used in window.cpu.items()}
    driver = parts.pop("driver")
    return {"cluster": rounded(_cluster(window) / count, 4)} | parts | {"driverNotCounted": driver}


def writes_per_run(tally: Result, count: int) -> Result:
    """Writes per run: of the cluster, and of everybody."""
    return {"cluster": round(audit.cluster_total(tally["byWho"]) / count, 2)} | per_run(tally["byWho"], count)


def _cluster(window: Window) -> float:
    return sum(used for name, used in window.cpu.items() if name != "driver")
