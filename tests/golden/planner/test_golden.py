"""Decisions that a person can read: each folder holds a run, what was seen, and the plan that follows.

`run.yaml`       the run; `spec` is laid over a small default manifest (support.planner_builders.manifest).
`observed.yaml`  the time, pods, agents and objects; a pod needs only what differs from a running one.
`plan.yaml`      what is applied, deleted, told and written. Of the status, only what changed.

After a wanted change: `tox -e golden`, then read the diff.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.golden import REWRITE, written
from support.known_reasons import unknown_in
from support.offline_admission import OfflineAdmission
from support.planner_builders import SIGNING_KEY, manifest, pod, run_of

from videotrain_api.crd.wire import Manifest
from videotrain_api.records import AgentProgress, Roster
from videotrain_api.times import rfc3339
from videotrain_operator.accounting.attribution import EPOCH
from videotrain_operator.accounting.stored_ledger import read_ledger, records_in
from videotrain_operator.planner import forecast
from videotrain_operator.planner.decision import Plan
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.plan import plan

HERE = Path(__file__).parent
CASES = sorted(path.name for path in HERE.iterdir() if (path / "run.yaml").is_file())
TIMES = ("created_at", "bound_at", "started_at", "finished_at")


@pytest.fixture(autouse=True)
def _own_models() -> None:
    """What was planned is remembered by uid, generation and hashes, which runs of all tests share at any price."""
    forecast._models.cache_clear()


@pytest.fixture(scope="module")
def admission() -> OfflineAdmission:
    return OfflineAdmission()


def load(path: Path) -> Any:
    """YAML whose timestamps stay text, as in JSON."""
    return yaml.load(path.read_text(), _Plain)


class _Plain(yaml.SafeLoader):
    """Timestamps stay text."""


_Plain.yaml_implicit_resolvers = {
    key: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_run(case: str) -> dict[str, Any]:
    given = load(HERE / case / "run.yaml")
    body = manifest(**given.get("spec", {}))
    body["metadata"] |= given.get("metadata", {})
    if "status" in given:
        body["status"] = given["status"]
    return body


def read_observed(case: str) -> tuple[Observed, datetime]:
    given = load(HERE / case / "observed.yaml")
    pods = tuple(read_pod(item) for item in given.get("pods", []))
    agents = {name: AgentProgress.from_wire(item) for name, item in given.get("agents", {}).items()}
    observed = Observed(
        pods=pods,
        agents=agents,
        signing_key=SIGNING_KEY,
        config_maps=frozenset(given.get("configMaps", [])),
        roster=Roster.from_wire(given["roster"]) if "roster" in given else None,
        roster_resource_version="7" if given.get("rosterMap", True) else None,
        ledger=read_ledger(json.dumps(given["ledger"])) if "ledger" in given else None,
        nodes_untrusted=given.get("nodesUntrusted", ""),
    )
    return observed, datetime.fromisoformat(given["now"])


def read_pod(item: dict[str, Any]) -> PodView:
    fields = {name: datetime.fromisoformat(v) if name in TIMES and v else v for name, v in item.items()}
    return pod(fields.pop("index"), **fields)


def describe(decided: Plan, before: dict[str, Any]) -> dict[str, Any]:
    """A plan in few words."""
    after = decided.status.to_wire()
    return {
        "apply": [_describe_object(item) for item in decided.apply],
        "delete": [
            f"{d.kind} {d.name} uid={d.uid}" + ("" if d.grace_seconds is None else f" grace={d.grace_seconds}s")
            for d in decided.delete
        ],
        "events": [f"{e.type} {e.reason}: {e.message}" for e in decided.events],
        "requeueSeconds": decided.requeue_seconds,
        "deleteRun": decided.delete_run,
        "status": {key: value for key, value in after.items() if before.get(key) != value},
        "removedFromStatus": sorted(set(before) - set(after)),
    }


def _is_roster(item: Manifest) -> bool:
    return bool(item.get("data", {}).get("roster.json"))


def _describe_object(item: Manifest) -> Any:
    name = f"{item['kind']} {item['metadata']['name']}"
    if _is_roster(item):
        version = item["metadata"].get("resourceVersion", "none")
        return {name: {"onlyOverVersion": version} | json.loads(item["data"]["roster.json"])}
    if "ledger.json" in item.get("data", {}):
        return {name: _describe_ledger(json.loads(item["data"]["ledger.json"]))}
    if item["kind"] == "ConfigMap":
        return {name: sorted(item["data"])}
    return name


def _describe_ledger(document: dict[str, Any]) -> list[str]:
    lines = []
    for uid, record in records_in(document).items():
        known = {"boundAt": record.bound, "startedAt": record.started, "finishedAt": record.ended}
        times = " ".join(
            f"{k}={rfc3339(EPOCH + timedelta(microseconds=us))}" for k, us in known.items() if us is not None
        )
        marks = " ".join(k for k in ("estimated", "gone") if getattr(record, k))
        lines.append(f"{record.pod} {uid} {times} closedThrough={record.closed_through} {marks}".rstrip())
    lines += [f"awaited: {first} to {last}" for first, last, *_ in document["awaited"]]
    for entry in document["entries"]:
        uses = " ".join(f"{k}={v}us/{entry['micros'][k]}micros" for k, v in entry["gpuMicroseconds"].items())
        lines.append(f"{entry['pod']} {entry['uid']} generation {entry['generation']}: {uses}")
    return lines


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_the_one_on_file(case: str) -> None:
    body = read_run(case)
    observed, now = read_observed(case)
    decided = describe(plan(run_of(body), observed, now), body.get("status", {}))
    path = HERE / case / "plan.yaml"
    if REWRITE:
        path.write_text(written(decided))
    assert load(path) == json.loads(json.dumps(decided))


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_the_api_server_takes(case: str, admission: OfflineAdmission) -> None:
    body = read_run(case)
    observed, now = read_observed(case)
    decided = plan(run_of(body), observed, now)
    good = admission.serve(manifest() | {"status": decided.status.to_wire()})
    assert good[1] == []
    assert unknown_in(decided) == [], "reasons and messages are in the vocabulary"
    for item in decided.apply:
        if item["kind"] != "Pod" or "spec" in item:
            assert kubernetes_validate.validate(item, "1.37", strict=True)


def test_there_are_cases() -> None:
    assert len(CASES) >= 15
