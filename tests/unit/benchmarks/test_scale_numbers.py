"""Arithmetic of the scale benchmark: percentiles, shares, /proc, the audit log and the operator's metrics."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from scale import audit, load, outages, usage
from scale.numbers import per_run, percentile, spread
from scale.replicas import parse_requests

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def line(
    user="system:serviceaccount:kube-system:job-controller",
    verb="create",
    resource="pods",
    name="",
    code=201,
    at=NOON,
    **target,
):
    event = {
        "requestReceivedTimestamp": at.isoformat().replace("+00:00", "Z"),
        "user": {"username": user},
        "verb": verb,
        "objectRef": {"resource": resource, "namespace": "scale", "name": name} | target,
        "responseStatus": {"code": code},
    }
    return json.dumps(event)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3, 1, 2], 50, 2), ([1, 2, 3, 4], 50, 2), (range(1, 101), 99, 99), (range(1, 201), 99, 198), ([7], 99, 7)],
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values, percent, expected):
    assert percentile(list(values), percent) == expected


def test_a_spread_leaves_out_what_never_came():
    assert spread([2.0, None, 1.0]) == {"n": 2, "p50": 1.0, "p99": 2.0, "min": 1.0, "max": 2.0}
    assert spread([None]) == {"n": 0, "p50": None, "p99": None, "min": None, "max": None}


def test_shares_are_per_run_and_the_largest_comes_first():
    assert list(per_run({"a": 10, "b": 30, "c": 0.001}, 10).items()) == [("b", 3.0), ("a", 1.0)]


def test_cpu_is_user_and_system_time_whatever_the_process_is_called():
    ticks = os.sysconf("SC_CLK_TCK")
    stat = f"7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 {3 * ticks} {2 * ticks} 999 999 20 0 1 0 1 1 1"
    assert usage.parse_cpu(stat) == 5
    assert usage.cpu_seconds(os.getpid()) > 0


def test_memory_is_the_resident_set_and_its_peak():
    assert usage.parse_memory("VmPeak:\t 9 kB\nVmHWM:\t  4096 kB\nVmRSS:\t  2048 kB\n") == {
        "rssMiB": 2,
        "peakRssMiB": 4,
    }
    assert usage.memory_mib(os.getpid())["peakRssMiB"] >= usage.memory_mib(os.getpid())["rssMiB"] > 0


def test_a_window_counts_only_what_was_used_in_it():
    used = {"etcd": 5.0}
    window = usage.Window(lambda: dict(used))
    used |= {"etcd": 7.0, "operator": 1.0}
    assert window.close().cpu == {"etcd": 2.0, "operator": 1.0}
    assert window.ended_at > window.began_at


def test_cpu_per_run_keeps_the_driver_apart():
    window = usage.Window(dict)
    window.cpu = {"etcd": 1.0, "operator": 3.0, "driver": 50.0}
    assert load.cpu_per_run(window, 2) == {"cluster": 2.0, "etcd": 0.5, "operator": 1.5, "driverNotCounted": 25.0}


@pytest.mark.parametrize(
    ("user", "who"),
    [
        ("system:serviceaccount:kube-system:job-controller", "job-controller"),
        ("system:serviceaccount:videotrain-system:videotrain-operator", "videotrain-operator"),
        ("system:kube-scheduler", "scheduler"),
        ("driver", "driver"),
    ],
)
def test_components_have_the_short_names_of_their_users(user, who):
    assert audit.component(user) == who


def test_a_write_is_told_with_its_subresource():
    write = audit.parse(line(resource="pods", subresource="binding", name="a-w0"))
    assert (write.resource, write.name, write.namespace, write.code) == ("pods/binding", "a-w0", "scale", 201)


def test_only_complete_lines_of_the_window_are_read(tmp_path):
    log = tmp_path / "audit.jsonl"
    moments = [NOON - timedelta(seconds=1), NOON, NOON + timedelta(seconds=9), NOON + timedelta(seconds=10)]
    log.write_text("".join(line(at=at, name=str(at.second)) + "\n" for at in moments) + line()[:20])
    assert [w.name for w in audit.read(log, NOON, NOON + timedelta(seconds=10))] == ["0", "9"]


def test_a_tally_keeps_leases_apart_and_names_refusals():
    lines = [line(), line(code=409), line(user="kwok", verb="patch"), line(user="driver"), line(resource="leases")]
    tally = audit.tally(audit.parse(text) for text in lines)
    assert tally["byWho"] == {"job-controller": 2, "kwok": 1, "driver": 1}
    assert tally["leases"] == {"job-controller": 1}
    assert tally["refused"] == {"job-controller create pods 409": 1}
    assert audit.cluster_total(tally["byWho"]) == 2, "KWOK and the driver are not the cluster"
    assert load.writes_per_run(tally, 2)["cluster"] == 1.0


def test_an_object_belongs_to_the_run_whose_whole_name_it_begins_with():
    assert all(outages.belongs(name, "run-1") for name in ("run-1", "run-1-w0", "run-1.17f3"))
    assert not any(outages.belongs(name, "run-1") for name in ("run-12", "run-12-w0", "run"))


def test_requests_are_summed_over_their_status_codes():
    text = """# TYPE videotrain_api_requests_total counter
videotrain_api_requests_total{code="200",kind="Pod",verb="create"} 3
videotrain_api_requests_total{code="409",kind="Pod",verb="create"} 1
videotrain_api_requests_total{code="200",kind="Pod",verb="list"} 2
"""
    assert parse_requests(text) == {"create Pod": 4, "list Pod": 2}
