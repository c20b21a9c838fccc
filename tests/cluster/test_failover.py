"""One operator leads after another while requests are slow: what the former one sent late changes nothing.

VIDEOTRAIN_SEEDS says how many random weathers are tried (1 if unset).
"""

import json
import os
import random
from collections import Counter

import pytest
from support.audit import in_words, writes
from support.chaos_rig import until
from support.controlplane import OPERATOR
from support.fault_proxy import USER_AGENT, clear
from support.operator_bench import LEASE_SECONDS, PODS
from support.rights import LEASE

LIVE = [f"live{number}" for number in range(4)]
MADE = [f"made{number}" for number in range(2)]
SEEDS = int(os.environ.get("VIDEOTRAIN_SEEDS", "1"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def pods_wait(asked):
    """What is asked of pods arrives when another operator leads."""
    return "held" if asked.method in ("POST", "DELETE") and "/pods" in asked.path else None


def all_wait(asked):
    """So does every other write, but for the Lease's."""
    return None if asked.method == "GET" or asked.path.endswith(f"/leases/{LEASE}") else "held"


def cut_off(asked):
    """And the Lease cannot be reached."""
    return "drop" if asked.path.endswith(f"/leases/{LEASE}") else all_wait(asked)


def worlds(bench):
    """Which pods there are, and which rosters they obey."""
    return {pod["metadata"]["uid"]: json.dumps(bench.roster(name)) for name in LIVE + MADE for pod in bench.pods(name)}


async def test_what_a_former_leader_sent_arrives_late_and_changes_nothing(bench, control_plane, proxy):
    """It loses the Lease in the middle of creates, deletes, patches and status writes, which go on their way alone."""
    await bench.start(kubeconfig=proxy.kubeconfig(), replicas=1)
    await bench.create(*LIVE)
    await bench.rosters(LIVE)
    await bench.settled(LIVE)
    former = await bench.leads()
    bench.operators.start(replicas=2, kubeconfig=control_plane.kubeconfig(OPERATOR, ()))
    await until(bench.operators.ready, "the second replica is ready", bench.operators.tail)
    proxy.weather = pods_wait
    await bench.create(MADE[0])
    for name in LIVE[:2]:
        await bench.edit(name, suspend=True)
    asked = proxy.suffered
    for verb in ("POST", "DELETE"):
        await until(lambda v=verb: asked[f"{v} held"] >= PODS, f"{verb}s are on their way", bench.operators.tail)
    proxy.weather = all_wait
    await bench.create(*MADE[1:])
    await bench.edit(LIVE[2], activeDeadlineSeconds=86_400)
    await until(lambda: asked["PUT held"], "a status is on its way", bench.operators.tail)
    proxy.weather = cut_off
    await until(lambda: bench.operators.leader() not in (None, former), "the other leads", bench.operators.tail)
    point = bench.now()
    await until(lambda: not any(map(bench.pods, LIVE[:2])), "the next leader stops runs", bench.operators.tail)
    for name in LIVE[:2]:
        await bench.edit(name, suspend=False)
    await bench.rosters(LIVE[:2], least=2)
    await bench.rosters(MADE)
    before = worlds(bench)
    proxy.released.set()
    await until(lambda: proxy.held == 0, "all that was late has arrived", bench.operators.tail)
    late = [entry for entry in writes(bench.requests(point)) if entry["userAgent"] == USER_AGENT]
    arrived = Counter(f"{entry['verb']} {entry['objectRef']['resource']}" for entry in late)
    print(f"arrived late: {dict(arrived)}")
    assert arrived.keys() >= {"delete pods", "create pods", "update videotrainingruns"}, arrived
    told = [in_words(entry) for entry in late if entry["objectRef"]["resource"] != "events"]
    assert [line for line in told if not line.endswith(("-> 404", "-> 409"))] == []
    assert worlds(bench) == before
    assert {name: bench.generations[name] for name in MADE} == {name: {1} for name in MADE}
    assert not [line for line in bench.operators.metrics(former).splitlines() if f'"{LIVE[3]}"' in line]
    proxy.weather = clear
    await bench.all_ready()
    assert bench.nobody_ended(), bench.operators.tail()


def slow(seed):
    """Every request takes its time; some are refused for a while, some are applied and not answered."""
    dice = random.Random(seed)

    def weather(asked):
        if asked.watch:
            return dice.choice([None, None, "cut", "silence"])
        fault = dice.choices(["", "429", "503", "lose", "late"], [40, 5, 5, 5, 45])[0]
        return f"late-{dice.uniform(0.1, 3.0):.2f}" if fault == "late" else fault or None

    return weather


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_slow_server_and_stolen_leases_make_no_pod_twice_and_no_generation_too_many(bench, proxy, seed):
    await bench.start("--resync-seconds", "10", kubeconfig=proxy.kubeconfig())
    await bench.create(*LIVE)
    await bench.rosters(LIVE)
    proxy.weather = slow(seed)
    thief = {"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": int(LEASE_SECONDS)}}
    for number, name in enumerate(MADE):
        await bench.create(name)
        await bench.edit(LIVE[number], suspend=True)
        await until(lambda: proxy.held > 0, "writes are on their way", bench.operators.tail)
        await bench.client.patch("Lease", bench.namespace, LEASE, thief, manager="test")
        await until(lambda n=LIVE[number]: not bench.pods(n), "the run is stopped", bench.operators.tail)
        await bench.edit(LIVE[number], suspend=False)
        await bench.rosters([name])
    proxy.weather = clear
    proxy.cut_streams()
    await bench.rosters(LIVE[:2], least=2)
    await bench.rosters(LIVE[2:])
    lives = {name: 2 if name in LIVE[:2] else 1 for name in (*LIVE, *MADE)}
    assert {place: len(uids) for place, uids in bench.lives.items()} == {
        (name, str(index)): count for name, count in lives.items() for index in range(PODS)
    }
    assert {name: bench.generations[name] for name in (*LIVE[2:], *MADE)} == {n: {1} for n in (*LIVE[2:], *MADE)}
    restarts = {name: sum(bench.status(name)["restarts"].values()) for name in lives}
    assert restarts == dict.fromkeys(lives, 0)
    print(dict(proxy.suffered))
    assert bench.nobody_ended(), bench.operators.tail()
