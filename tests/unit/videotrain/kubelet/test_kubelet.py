"""Parts of the process nodes that need no API server."""

import asyncio
import ipaddress
import os
import subprocess

import pytest
from support.process_nodes import OrderError, give_order

from videotrain.kubelet.address_pool import AddressPool, address_pool
from videotrain.kubelet.orders import obey
from videotrain.kubelet.probes import Probes
from videotrain.kubelet.site import can_be_pulled
from videotrain.kubelet.status import PodReport, Record, contains
from videotrain.processes.addresses import NoAddressError, port_is_free
from videotrain.processes.podfiles import ContainerConfigError, field_value
from videotrain.processes.process import Ending
from videotrain.tasks import end


def ending(code, reason="Error"):
    return Ending(code, "2026-11-23T06:00:00.900000Z", "2026-11-23T06:00:01.100000Z", reason)


def report(inits=0):
    records = [Record({"name": f"init-{n}", "image": "i"}) for n in range(inits)]
    return PodReport(records, Record({"name": "main", "image": "i"}), address="10.64.0.1")


def test_a_pod_is_pending_until_its_main_container_has_run_and_ready_only_while_it_is():
    pod = report(inits=1)
    assert pod.to_status(1)["phase"] == "Pending"
    conditions = {item["type"]: item["status"] for item in pod.to_status(1)["conditions"]}
    assert conditions["Initialized"] == conditions["Ready"] == "False"
    pod.inits[0].run("2026-11-23T06:00:00Z", started=True, ready=True)
    pod.inits[0].end(ending(0, "Completed"), "")
    pod.main.run("2026-11-23T06:00:00Z", started=True, ready=True)
    conditions = {item["type"]: item["status"] for item in pod.to_status(1)["conditions"]}
    assert pod.phase == "Running" and set(conditions.values()) == {"True"}


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (3, "Failed")])
def test_a_pod_that_is_over_ends_by_its_exit_codes(code, phase):
    pod = report()
    pod.main.run("2026-11-23T06:00:00Z", started=True, ready=True)
    pod.main.end(ending(code), "")
    assert pod.phase == "Running"
    pod.over = True
    assert pod.phase == phase


def test_a_restart_counts_and_keeps_the_last_end_readable():
    record = Record({"name": "main"})
    record.run("2026-11-23T06:00:00Z", started=True, ready=True)
    record.end(ending(9), "why")
    record.wait("CrashLoopBackOff")
    assert record.to_status()["lastState"]["terminated"]["exitCode"] == 9
    record.run("2026-11-23T06:00:05Z", started=True, ready=False)
    assert (record.to_status()["restartCount"], record.to_status()["ready"]) == (1, False)


def test_what_an_earlier_life_reported_is_taken_over_unchanged():
    before = report(inits=1)
    before.start_time = "2026-11-23T05:59:00Z"
    before.inits[0].run("2026-11-23T06:00:00Z", started=True, ready=True)
    before.inits[0].end(ending(0, "Completed"), "")
    before.main.run("2026-11-23T06:00:00Z", started=True, ready=True)
    before.main.end(ending(137), "")
    before.main.run("2026-11-23T06:00:09Z", started=True, ready=True)
    told = before.to_status(1)
    after = report(inits=1)
    after.adopt(told)
    assert after.to_status(1) == told


def test_a_status_is_written_again_only_if_the_server_holds_something_else():
    wanted = report().to_status(1)
    others = [{"type": "PodScheduled", "status": "True"}]
    held = {**wanted, "conditions": others + [dict(item) for item in wanted["conditions"]], "qosClass": "BestEffort"}
    for item in held["conditions"]:
        item.pop("reason", None) if not item.get("reason") else None
    assert contains(held, wanted)
    held["conditions"][-1]["status"] = "Unknown"
    assert not contains(held, wanted)


@pytest.mark.parametrize(
    ("image", "there"),
    [
        ("invalid/whatever:1", False), ("registry.invalid:5000/a", False), ("repo/does-not-exist:2", False),
        ("videotrain/trainer:1", True), ("repo/invalid:1", True), ("invalid", True), ("", True),
    ],
)  # fmt: skip
def test_only_names_that_nobody_can_mean_are_not_pulled(image, there):
    assert can_be_pulled(image) is there


def test_addresses_are_kept_where_possible_and_reused_last():
    pool = AddressPool(ipaddress.IPv4Network("10.64.3.0/29"))
    first, second = pool.take(), pool.take("10.64.3.4")
    assert (first, second) == ("10.64.3.1", "10.64.3.4")
    pool.give_back(first)
    others = [pool.take() for _ in range(5)]
    assert others[-1] == first and len({*others, second}) == 6
    with pytest.raises(NoAddressError, match="all 6 addresses"):
        pool.take()


def test_without_a_block_addresses_are_loopback_ones():
    pool = AddressPool(None)
    address = pool.take()
    assert address.startswith("127.") and pool.take(address) != address
    pool.give_back(address)
    assert pool.take(address) == address


def routes():
    return subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="routes can be changed by root only")
async def test_routed_addresses_can_be_bound_and_the_route_goes_with_the_pool():
    async with address_pool() as pool:
        if pool.block is None:
            pytest.skip("the kernel allows no routes here")
        assert str(pool.block) in routes()
        assert port_is_free(pool.take(), 9410)
    assert str(pool.block) not in routes()


async def test_orders_are_carried_out_in_turn_also_those_given_before_and_refusals_say_why(tmp_path):
    done = []

    async def note(order):
        done.append(order["word"])
        return {"said": order["word"]}

    early = asyncio.create_task(asyncio.to_thread(give_order, tmp_path, "note", word="early"))
    obeying = asyncio.create_task(obey(tmp_path, {"note": note}))
    assert await early == {"said": "early"}
    assert await asyncio.to_thread(give_order, tmp_path, "note", word="late") == {"said": "late"}
    with pytest.raises(OrderError, match="order 'dance': allowed are note"):
        await asyncio.to_thread(give_order, tmp_path, "dance")
    with pytest.raises(OrderError, match="missing field or unknown name: word"):
        await asyncio.to_thread(give_order, tmp_path, "note")
    await end(obeying)
    assert done == ["early", "late"]
    assert list((tmp_path / "control").iterdir()) == []


def test_probes_that_are_not_supported_are_refused_by_name():
    container = {"name": "main", "livenessProbe": {"exec": {"command": ["true"]}}}
    with pytest.raises(ContainerConfigError, match="livenessProbe: exec: process nodes support httpGet"):
        Probes(container, "127.0.0.1", lambda *_: None)


def test_all_labels_as_one_field_are_a_line_each():
    pod = {"metadata": {"labels": {"b": "2", "a": 'x"y'}}}
    assert field_value(pod, "metadata.labels") == 'a="x\\"y"\nb="2"'


async def test_ending_a_task_raises_what_it_ended_with():
    async def fail():
        raise ValueError("bug")

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    with pytest.raises(ValueError, match="bug"):
        await end(task)
