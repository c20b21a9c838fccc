"""The ledger as it is stored: the largest run fits into a config map, and what cannot be read is none."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from support.ledgers import SECOND, bill, generation, holding
from support.planner_builders import at, progress

from videotrain_api.resource.stored_status import LARGEST_GROUP
from videotrain_operator.accounting.entries import ENTRIES_LISTED
from videotrain_operator.accounting.stored_ledger import (
    Awaited,
    Kind,
    awaited_in,
    name_parts,
    read_ledger,
    records_in,
    with_awaited,
)

CONFIG_MAP_BYTES = 1_048_576
"""What the API server takes as the data of one config map."""
NAME = "n" * 40


def node_name(index: int) -> str:
    return f"ip-10-0-{index // 256}-{index % 256}.us-west-2.compute.internal"


def stored(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def test_the_ledger_of_the_largest_run_fits_with_a_quarter_to_spare() -> None:
    names = [f"{NAME}-w{index}" for index in range(LARGEST_GROUP)]
    pods = [
        holding(
            index,
            4,
            pod=name,
            uid=str(uuid.UUID(int=2**127 + index)),
            gpus=8,
            finished_at=at(3000),
            node=node_name(index),
        )
        for index, name in enumerate(names)
    ]
    facts = progress(1, 30, started_at=at(20), last_step_at=at(50), resumed_step=0, data_stall_us=SECOND)
    worlds = [
        generation(number, 10.0 * number, [0], progress=facts).model_copy(update={"members": names})
        for number in (1, 2, 3)
    ]
    one = bill(4000, pods, worlds)
    assert len(one.document["pods"]) == LARGEST_GROUP and len(one.document["entries"]) == ENTRIES_LISTED
    awaited = dict.fromkeys(range(LARGEST_GROUP), Awaited(Kind(8, "2.50 USD"), 10**15))
    text = stored(with_awaited(one.document, awaited))
    assert len(text) < CONFIG_MAP_BYTES * 3 // 4
    assert len(stored(one.document["pods"])) / LARGEST_GROUP < 150
    assert read_ledger(text) is not None


def test_what_is_stored_is_what_was_known() -> None:
    pods = [
        holding(0, 4, node="node-10"),
        holding(1, 5, pod="a stranger's name", finished_at=at(9)),
        holding(2, 6, gpus=4, node="node-1"),
    ]
    one = bill(20, pods, [generation(1, 10, [0, 2])])
    back = read_ledger(stored(one.document))
    assert back == one.document
    assert [(r.pod, r.kind.gpus) for r in records_in(back).values()] == [(p.pod, p.gpus) for p in pods]
    assert [record.node for record in records_in(back).values()] == [pod.node for pod in pods]


def test_pods_that_are_awaited_are_told_in_spans() -> None:
    pods = {number: Awaited(Kind(8, "2.50 USD"), 7) for number in (0, 1, 2, 5)} | {6: Awaited(Kind(8, "3 USD"), 7)}
    document = with_awaited(bill(20, [], []).document, pods)
    assert document["awaited"] == [[0, 2, 0, 7], [5, 5, 0, 7], [6, 6, 1, 7]]
    assert awaited_in(document) == pods


@pytest.mark.parametrize("name", ["demo-w07", "demo-w-1", "-w3", "demo", "demo-w\u0663", "demo-w", ""])
def test_a_name_that_no_run_gives_has_no_number(name: str) -> None:
    assert name_parts(name) == (name, None)


VERSION_1: dict[str, Any] = {
    "version": 1,
    "pods": {
        "uid-0": {
            "closedThrough": -1,
            "pod": "demo-w0",
            "gpus": 2,
            "price": "3.60 USD",
            "createdAt": "2026-01-01T11:59:57Z",
            "boundAt": "2026-01-01T11:59:58Z",
            "startedAt": "2026-01-01T12:00:00Z",
        },
    },
    "entries": [],
    "folded": {"entries": 3, "gpuMicroseconds": {"starting": 5}, "micros": {"starting": 1}, "estimated": False},
    "run": {"generation": 4},
}


def test_a_ledger_of_version_1_is_gone_on_with() -> None:
    document = read_ledger(stored(VERSION_1))
    assert document is not None
    assert document["run"] == {"generation": 4}
    one = bill(10, [holding(0, -2, gpus=2)], [], document=document)
    assert one.held == 2 * 12 * SECOND + 5 and not one.estimated


GROUP: dict[str, Any] = {
    "node": "node-0",
    "stage": "train",
    "gpus": 8,
    "price": "3.60 USD",
    "from": "2026-01-01T11:00:00Z",
    "to": "2026-01-01T12:00:00Z",
    "estimated": False,
    "nodeMicroseconds": 5,
    "gpuMicroseconds": {"starting": 40},
    "micros": {"starting": 1},
    "waste": {"start": 1},
}


def test_groups_of_older_windows_are_settled() -> None:
    document = json.loads(stored(bill(10, [holding(0, 4)], []).document))
    document["folded"]["groups"] = [GROUP]
    assert read_ledger(stored(document)) == document


@pytest.mark.parametrize(
    "path, value",
    [
        (("version",), 3.5),
        (("pods",), 5),
        (("pods", "uid-0"), [0, 0, 1, 1]),
        (("pods", "uid-0", 1), 7),
        (("pods", "uid-0", 3), -1),
        (("pods", "uid-0", 3), 10**30),
        (("kinds", 0, 1), "free"),
        (("kinds", 0, 0), -1),
        (("kinds", 0, 0), 1.0),
        (("pods", "uid-0", 1), 0.0),
        (("folded", "gpuMicroseconds"), {"starting": 5.0}),
        (("awaited",), [[0, 10**9, 0, 0]]),
        (("awaited",), [[0, 1, 4, 0]]),
        (("folded", "estimated"), "who knows"),
        (("folded", "waste"), None),
        (("folded", "waste"), {"hang/many": 1}),
        (("folded", "generations"), {"first": 1}),
        (("folded", "stages"), {"train": [0, 0, 2**70]}),
        (("folded", "until"), "1767268800"),
        (("folded", "groups"), [GROUP | {"to": "2026-01-01T12:00:00"}]),
        (("folded", "groups"), [GROUP | {"from": "1767268800"}]),
        (("folded", "groups"), [GROUP | {"price": "free"}]),
    ],
)
def test_what_cannot_be_settled_is_no_ledger(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(stored(bill(10, [holding(0, 4)], []).document))
    if path == ("version",):
        document = VERSION_1 | {"pods": {"uid-0": {}}}
    else:
        here = document
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = value
    assert read_ledger(stored(document)) is None


@pytest.mark.parametrize("amount", [5.0, "5", True])
def test_an_amount_of_version_1_that_is_no_whole_number_makes_it_none(amount: Any) -> None:
    document = VERSION_1 | {"folded": VERSION_1["folded"] | {"gpuMicroseconds": {"starting": amount}}}
    assert read_ledger(stored(document)) is None
