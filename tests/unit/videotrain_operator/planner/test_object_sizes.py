"""Bytes of every object of a run, for every size and name that the schema allows; docs/reference/limits.md has them.

`VIDEOTRAIN_WRITE_DOCS=1` writes the page.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.planner_builders import at, manifest, progress, run_of
from support.run_objects import LONGEST_NAME, RunObjects, numbers_of, told_on_page
from support.stored_sizes import go_json

from videotrain_api.records import AgentProgress, RosterMember, RosterNotice
from videotrain_api.render.key import render_key
from videotrain_api.render.kueue import pod_group
from videotrain_api.render.names import config_map_name, ledger_name, pod_name, roster_name
from videotrain_api.render.pod import render_pod
from videotrain_api.resource.stages import NodeBounds
from videotrain_api.resource.status import ConditionStatus, GenerationStatus, RunStatus, StageStatus
from videotrain_api.resource.stored_size import LARGEST_ANNOTATIONS, LARGEST_CONFIG_MAP, LARGEST_REQUEST
from videotrain_api.rules.sizes import LARGEST_SPEC
from videotrain_api.storage import layout
from videotrain_api.vocabulary import Condition
from videotrain_operator.cluster.answers import read_progress
from videotrain_operator.planner.draft import LONGEST_MESSAGE
from videotrain_operator.planner.generations import GENERATIONS_KEPT
from videotrain_operator.planner.progress import Report, merge

SIZES = [(nodes, name) for nodes in (1, 224, 1024, 4096) for name in ("demo", LONGEST_NAME)]
COLUMNS = ("status", "roster", "ledger", "configuration", "pod", "key", "network policy")
LONGEST_LABEL = 63
LONGEST_NOTICE = 2 * 2**20
"""Of the agent's server."""
CLOSE = 0.1
"""How far a number of the page may be off before the page is to be written anew."""


@pytest.fixture(scope="module")
def measured() -> dict[tuple[int, str], RunObjects]:
    found = {}
    for nodes, name in SIZES:
        found[nodes, name] = run = RunObjects(name, nodes)
        for _ in range(GENERATIONS_KEPT + 1):
            run.next_generation()
    return found


def kilobytes(count: int) -> str:
    return f"{count / 1000:,.0f}" if count >= 10_000 else f"{count / 1000:.1f}"


def rows(measured: dict[tuple[int, str], RunObjects]) -> list[str]:
    head = ["| nodes | letters of the name | " + " | ".join(COLUMNS) + " | written per generation |"]
    head.append("|---:" * (len(COLUMNS) + 3) + "|")
    for (nodes, name), run in measured.items():
        cells = [kilobytes(run.largest[column]) for column in COLUMNS]
        head.append(f"| {nodes:,} | {len(name)} | {' | '.join(cells)} | {kilobytes(sum(run.written[-1].values()))} |")
    return head


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_size_that_is_allowed_fits_and_the_page_tells_how(measured: dict[tuple[int, str], RunObjects]) -> None:
    for run in measured.values():
        for name in ("roster", "ledger", "configuration"):
            assert run.largest[name] < LARGEST_CONFIG_MAP, (name, run.nodes, run.largest)
        assert run.largest["status"] < 64 * 1024
        assert run.largest["pod"] < 8 * 1024
    table = rows(measured)
    for told, here in zip(told_on_page("sizes", table), numbers_of("\n".join(table)), strict=True):
        assert told == pytest.approx(here, rel=CLOSE, abs=0.11), f"the page says {told}, measured {here} kB"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bytes_of_a_generation_grow_with_the_pods_and_no_faster(measured: dict[tuple[int, str], RunObjects]) -> None:
    for name in ("demo", LONGEST_NAME):
        few, many = (measured[nodes, name] for nodes in (1024, 4096))
        assert sum(many.written[-1].values()) < 4.2 * sum(few.written[-1].values())
        assert many.largest["status"] < 1.1 * few.largest["status"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_six_hundred_restarts_leave_nothing_behind() -> None:
    run = RunObjects("demo", 2)
    for _ in range(300):
        run.next_generation()
    early = dict(run.largest)
    for _ in range(300):
        run.next_generation()
    assert run.status.restarts.application == 600
    for name, size in run.largest.items():
        # Counters get longer, by a digit here and there; whatever kept a byte of each restart would add 300 of them.
        assert size < early[name] + 150, (name, early[name], size)


def test_the_longest_names_are_names() -> None:
    body = manifest(nodes={"min": 1, "max": 4096}, queue={"name": "q" * 63})
    body["metadata"] |= {"name": LONGEST_NAME, "uid": "f" * 36}
    run = run_of(body)
    last = 3 * 4096  # of a queue's stand-ins
    names = [pod_name(run.metadata.name, last), pod_group(run, 99_999, 4096).name]
    assert max(map(len, names)) <= LONGEST_LABEL
    pod = render_pod(run, last, config_map_name(run, "0" * 16), group=pod_group(run, 99_999, 4096), key=bytes(32))
    assert all(len(value) <= LONGEST_LABEL for value in pod["metadata"]["labels"].values())
    assert len(pod["spec"].get("hostname", "")) <= LONGEST_LABEL
    others = [ledger_name(LONGEST_NAME), roster_name(LONGEST_NAME), render_key(run, bytes(32))["metadata"]["name"]]
    assert max(map(len, others)) <= 253
    assert max(field.le for field in NodeBounds.model_fields["max"].metadata if hasattr(field, "le")) == 4096


def test_the_first_message_of_the_largest_tree_is_taken() -> None:
    """Each agent sends on to a part of the rest; the operator's sixteen have the longest lists."""
    run = RunObjects(LONGEST_NAME, 4096)
    run.next_generation()
    assert run.seen.roster is not None
    members = [RosterMember(pod=f"{LONGEST_NAME}-w{i}", address="f" * 39, uid="u" * 36) for i in range(4096)]
    roster = run.seen.roster.model_copy(update={"members": members})
    notice = RosterNotice(roster=roster, to=["f" * 39] * 256, seconds=5)
    assert len(json.dumps(notice.to_wire())) < LONGEST_NOTICE


def hostile(letter: str) -> AgentProgress:
    """What an agent may tell at most, in letters that take most room."""
    long = letter * 200
    point = {"capturedAt": "2026-01-01T00:00:00Z", "committedAt": "2026-01-01T00:00:00Z", "uri": letter * 1000}
    facts: dict[str, Any] = progress(1, 5, "failed").to_wire() | {
        "stacks": letter * 4000,
        "skippedCheckpoints": [long * 2] * 20,
        "gpuKinds": [long] * 20,
        "saved": [point | {"step": n, "dataStallUs": 0, "checkpointUs": 0} for n in range(20)],
        "curation": {"clips": 1, "dropped": {f"{n}{long}": 2**53 for n in range(40)}},
        "exit": {
            "generation": 1, "stage": "train", "localRank": 0, "at": "2026-01-01T00:00:00Z", "code": 1,
            "outcome": "failed", "step": 1, "message": letter * 1000,
        },
    }  # fmt: skip
    whole = AgentProgress(pod="p", pod_uid="u", at=at(0)).to_wire() | {"current": facts}
    return read_progress(json.dumps(whole, ensure_ascii=False).encode())


@pytest.mark.parametrize("letter", ["x", "<", "漢"])
def test_whatever_agents_tell_the_status_of_the_largest_run_fits(letter: str) -> None:
    """Beside the largest spec, all annotations that Kubernetes takes, and managed fields as large as the spec."""
    told = hostile(letter).current
    assert told is not None
    facts = merge(None, [Report("p", at(0), told)], 4096)
    message = letter * (LONGEST_MESSAGE // len(go_json(letter)[1:-1]))
    generations = [
        GenerationStatus(
            number=number,
            stage="s" * 40,
            reason="WorkerFailed",
            message=message,
            members=[f"{LONGEST_NAME}-w{2 * i + number % 2}" for i in range(2048)],
            world_size=2**18,
            gpus=2**18,
            created_at=at(0),
            ended_at=at(1),
            end_cause="infrastructure",
            end_reason="WorkerFailed",
            end_message=message,
            progress=facts,
        )
        for number in range(GENERATIONS_KEPT)
    ]
    stage = StageStatus(
        name="s" * 40,
        task="curate",
        state="Succeeded",
        config_hash="0" * 16,
        curation=told.curation,
        step=2**53,
        output=layout.stage_output(layout.stage_prefix(f"s3://{'u' * 1024}", LONGEST_NAME, "s" * 40), "train"),
    )
    conditions = [
        ConditionStatus(type=kind, status="False", reason="R" * 40, message=message, last_transition_time=at(0))
        for kind in Condition
    ]
    status = RunStatus(
        conditions=conditions,
        generations=generations,
        stages=[stage] * 32,
        failed_pods=["f" * 36] * 4096,
    )
    assert len(go_json(status.to_wire())) < LARGEST_REQUEST - LARGEST_ANNOTATIONS - 2 * LARGEST_SPEC
