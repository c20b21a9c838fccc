"""What comes between the operator and the API server: outages, refusals, lost answers, dead watches, a stolen lease."""

import asyncio
import json

import pytest
from support.chaos_rig import until
from support.controlplane import pod_manifest
from support.fault_proxy import FaultProxy, clear, every
from support.operator_bench import LEASE_SECONDS, PODS
from support.rights import LEASE

from videotrain_api.vocabulary import PLURAL
from videotrain_operator.kube import client as kube_client
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.client import connect
from videotrain_operator.kube.informer import Informer

LIVE = [f"live{number}" for number in range(6)]
REFUSED = ("429", "500", "drop", "503", "lose", "504", "lose")
WATCHES = ("cut", "410", "drop", "expire", "503")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def worlds(bench):
    """Which pods of live runs there are, and which rosters they obey."""
    return {pod["metadata"]["uid"]: json.dumps(bench.roster(name)) for name in LIVE for pod in bench.pods(name)}


async def goes_and_comes(plane, way, operators):
    """The API server is away until the operators have noticed."""
    go, come = (plane.kill, plane.start) if way == "killed" else (plane.pause, plane.resume)
    await asyncio.to_thread(go, "kube-apiserver")
    await until(lambda: operators.leader() is None, "nobody is sure to lead", operators.tail)
    await asyncio.to_thread(come, "kube-apiserver")


@pytest.mark.parametrize("way", ["killed", "paused"])
async def test_an_api_server_that_goes_and_comes_restarts_no_run(bench, control_plane, way):
    await bench.start()
    await bench.create(*LIVE)
    await bench.rosters(LIVE)
    await bench.settled(LIVE)
    before, point = worlds(bench), bench.now()
    await goes_and_comes(control_plane, way, bench.operators)
    await bench.leads()
    await bench.create("new")
    await bench.rosters(["new"])
    assert worlds(bench) == before
    assert [line for line in bench.written(point) if f"{bench.namespace}/new" not in line] == []
    assert bench.nobody_ended(), bench.operators.tail()


async def test_refusals_lost_answers_and_dropped_watches_make_no_pod_twice(bench, proxy):
    await bench.start(kubeconfig=proxy.kubeconfig(), replicas=1)
    proxy.weather = every(4, REFUSED, WATCHES)
    await bench.create(*LIVE)
    await bench.rosters(LIVE)
    for name in LIVE[:2]:
        await bench.edit(name, suspend=True)
    proxy.cut_streams()
    await until(lambda: not any(map(bench.pods, LIVE[:2])), "the runs are stopped", bench.operators.tail)
    for name in LIVE[:2]:
        await bench.edit(name, suspend=False)
    await bench.rosters(LIVE[:2], least=2)
    for number in range(6):
        proxy.cut_streams()
        await bench.create(f"more{number}")
        await bench.rosters([f"more{number}"])
    more = [f"more{number}" for number in range(6)]
    proxy.weather = clear
    await bench.rosters([*LIVE[2:], *more])
    lives = {name: 2 if name in LIVE[:2] else 1 for name in (*LIVE, *more)}
    assert dict(bench.pods_made()) == {f"{name}-w{index}": lives[name] for name in lives for index in range(PODS)}
    undisturbed = (*LIVE[2:], *more)
    assert {name: bench.generations[name] for name in undisturbed} == {name: {1} for name in undisturbed}
    assert {name: bench.status(name)["restarts"] for name in lives} == {
        name: {"application": 0, "infrastructure": 0, "preemption": 0, "hang": 0} for name in lives
    }
    happened = {key.split()[1] for key in proxy.suffered}
    assert happened >= {*REFUSED, *WATCHES}, proxy.suffered
    assert bench.nobody_ended(), bench.operators.tail()


async def test_a_watch_of_runs_that_died_without_a_word_is_made_good(bench, proxy):
    await bench.start("--resync-seconds", "10", kubeconfig=proxy.kubeconfig(), replicas=1)
    proxy.weather = lambda asked: "silence" if asked.watch and asked.path.endswith(PLURAL) else None
    proxy.cut_streams()
    await until(lambda: proxy.suffered["WATCH silence"], "the watch is silent", bench.operators.tail)
    await bench.create("unseen")
    await bench.rosters(["unseen"])
    await bench.edit("unseen", suspend=True)
    await until(lambda: not bench.pods("unseen"), "the edit is carried out", bench.operators.tail)


@pytest.mark.parametrize("answer", ["403", "404", "503"])
async def test_runs_that_a_server_refuses_for_long_are_served_as_soon_as_it_does_not(bench, proxy, answer):
    await bench.start(kubeconfig=proxy.kubeconfig(), replicas=1)
    await bench.create(*LIVE)
    await bench.rosters(LIVE)
    before = worlds(bench)
    proxy.weather = lambda asked: answer if PLURAL in asked.path else None
    proxy.cut_streams()
    await until(lambda: "runs are not watched" in bench.operators.tail(10_000), "the watch is lost")
    await bench.create("unseen")
    proxy.weather = clear
    await bench.rosters(["unseen"])
    assert worlds(bench) == before
    assert bench.nobody_ended(), bench.operators.tail()


async def test_a_watch_of_pods_that_died_without_a_word_is_taken_up_again(
    control_plane, admin, namespace, tmp_path, monkeypatch
):
    monkeypatch.setattr(kube_client, "SILENCE_SECONDS", 2.0)
    heard = asyncio.Queue()
    async with FaultProxy(control_plane.kubeconfig(), tmp_path) as proxy, connect(str(proxy.kubeconfig())) as client:
        proxy.weather = lambda asked: "silence" if asked.watch else None
        store = Store()
        informer = Informer(client, "Pod", store, heard.put_nowait, namespace=namespace)
        task = asyncio.create_task(informer.run())
        async with asyncio.timeout(120):
            await informer.synced.wait()
            await until(lambda: proxy.suffered["WATCH silence"], "the watch is silent")
            await admin.create(pod_manifest("unseen", namespace), "test")
            proxy.weather = clear
            event = await heard.get()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert event.object["metadata"]["name"] == "unseen"
    assert store.get(Key(namespace, "unseen"))
    assert informer.restarts >= 1


async def test_a_leader_whose_lease_was_taken_stops_writing_and_comes_back(bench):
    await bench.start(replicas=1)
    await bench.create(*LIVE)
    await bench.rosters(LIVE)
    await bench.settled(LIVE)
    before = worlds(bench)
    thief = {"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 2 * int(LEASE_SECONDS)}}
    await bench.client.patch("Lease", bench.namespace, LEASE, thief, manager="test")
    await until(lambda: bench.operators.leader() is None, "it does not lead", bench.operators.tail)
    point = bench.now()
    await bench.create("late")
    await bench.leads()
    await bench.rosters(["late"])
    assert worlds(bench) == before
    assert [line for line in bench.written(point) if f"{bench.namespace}/late" not in line] == []
    assert bench.nobody_ended(), bench.operators.tail()
