"""What is checked at the end of the chaos table: the bill, the order of the samples, and the end of everything."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from support.chaos_cells import Cell, enter
from support.chaos_lane import Lane, manifest
from support.chaos_rig import until
from support.processes import processes_below

from videotrain.objectstore.s3_client import s3_client
from videotrain.report.order_check import check_order, order_digest
from videotrain.report.workdir import S3Objects
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine
from videotrain_api.vocabulary import KIND

REBUILT_MICROSECONDS = 5_000_000
"""By how much a bill may be off after its ledger was destroyed while pods were about to end."""


async def suspend_all(lanes: list[Lane]) -> None:
    """Bring every lane to rest, with at least one pod whose account is closed.

    The ledger keeps the window of a generation open until a later one has resumed. A lane whose pods outlived every
    fault, or that was renewed after the last, has no closed account yet: it goes on once more.
    """
    await _rest(lanes)
    young = [lane for lane in lanes if not any(_is_complete(lane, *account) for account in _accounts(lane).items())]
    for lane in young:
        await lane.suspend(False)
    await _rest(young)


async def _rest(lanes: list[Lane]) -> None:
    await asyncio.gather(*(lane.whole() for lane in lanes))
    for lane in lanes:
        await lane.suspend(True)
    for lane in lanes:
        await lane.wait(lambda lane=lane: lane.status.get("phase") == "Suspended" and not lane.present(), "it rests")
    for lane in lanes:
        # By a pass after the last pod went, 2 s later at the earliest.
        await lane.wait(
            lambda lane=lane: not lane.open_accounts and not lane.status.get("activeSince"), "its bill is closed"
        )


def check_bill(lane: Lane) -> None:
    """The ledger's entries of a pod are its held time, from binding to end, without gaps and overlaps.

    Only of pods that told of their end: that of the others is an estimate, and says so. Where the ledger was made
    again, the time before is in its totals.
    """
    complete = 0
    for uid, entries in _accounts(lane).items():
        joined = [a["to"] == b["from"] or b["from"] in lane.rebuilt for a, b in pairwise(entries)]
        assert all(joined), (uid, lane.rebuilt, entries)
        for entry in entries:
            held = _microseconds(entry["from"], entry["to"]) * entry["gpus"]
            assert sum(entry["gpuMicroseconds"].values()) == held, entry
        complete += _is_complete(lane, uid, entries)
    assert complete, f"no pod of {lane.name} has a complete account\n{lane.explain()}"
    _check_total(lane)


def _accounts(lane: Lane) -> dict[str, list[dict[str, Any]]]:
    """The closed entries of each pod by its UID, oldest first."""
    by_pod: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (uid, _, _), entry in lane.entries.items():
        by_pod[uid].append(entry)
    return {uid: sorted(entries, key=lambda entry: _time(entry["from"])) for uid, entries in by_pod.items()}


def _is_complete(lane: Lane, uid: str, entries: list[dict[str, Any]]) -> bool:
    """Whether the account of a pod begins with its binding and ends with its end."""
    bound, ended = _held(lane.pods[uid])
    told = ended is not None and not any(entry["estimated"] for entry in entries)
    if not told or _time(entries[-1]["to"]) != _time(ended) or entries[0]["from"] in lane.rebuilt:
        return False
    assert _time(entries[0]["from"]) == _time(bound), (uid, bound, entries[0])
    return True


def _check_total(lane: Lane) -> None:
    """The total of the bill is the time of all pods that ever were; longer for those that told nothing of their end."""
    held = [_held(pod) for pod in lane.pods.values() if "nodeName" in pod["spec"]]
    known = sum(_microseconds(bound, ended) for bound, ended in held if ended)
    billed = lane.status["cost"]["heldGpuMicroseconds"]
    slack = REBUILT_MICROSECONDS if lane.rebuilt else 0
    seen = f"{len(held)} pods of {lane.name} held nodes for {known} us, billed are {billed} us"
    assert billed >= known - slack, seen
    if all(ended for _, ended in held):
        assert billed <= known + slack, seen


def _held(pod: dict[str, Any]) -> tuple[str, str | None]:
    conditions = {c["type"]: c for c in pod["status"].get("conditions") or []}
    containers = pod["status"].get("containerStatuses") or [{}]
    ended = (containers[0].get("state") or {}).get("terminated") or {}
    return conditions["PodScheduled"]["lastTransitionTime"], ended.get("finishedAt")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _microseconds(start: str, end: str) -> int:
    return round((_time(end) - _time(start)).total_seconds() * 1_000_000)


async def check_orders(lanes: list[Lane]) -> None:
    """Every lane's checkpoint holds the samples of an undisturbed run of as many steps."""
    rig = lanes[0].rig
    client = s3_client(rig.store.endpoint_url, rig.store.credentials, "us-east-1", timeout_seconds=60)
    objects = S3Objects(client)
    found = {}
    for lane in lanes:
        prefix = layout.stage_prefix("s3://chaos/runs", lane.name, "train")
        check = found[lane.name] = check_order(objects, layout.checkpoint_commit(prefix, lane.saved))
        assert (check.lost, check.repeated, check.problems) == (0, 0, []), (lane.name, check)
    undisturbed = await _undisturbed(lanes[0], objects, max(check.step for check in found.values()))
    for name, check in found.items():
        expected = order_digest(undisturbed[: check.step])
        assert check.order_sha256 == expected, f"{name} was trained on other samples than an undisturbed run"


async def _undisturbed(lane: Lane, objects: S3Objects, steps: int) -> list[OrderLine]:
    """The order of a run to which nothing happens, on a node of a lane that rests."""
    rig, name = lane.rig, "undisturbed"
    await rig.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, "chaos")
    run = copy.deepcopy(manifest(name, name, lane.latents, lane.nodes[:1], {}))
    run["spec"]["stages"][0]["train"]["steps"] = steps
    run["spec"]["nodes"] = {"min": 1, "max": 1}
    run["spec"]["checkpoint"] = {"everySteps": max(1, math.ceil(steps / 4)), "keepLast": 1}
    await rig.client.create(run, "chaos")

    def succeeded() -> bool:
        body = rig.views[KIND].objects.get((name, name)) or {}
        return (body.get("status") or {}).get("phase") == "Succeeded"

    await until(succeeded, "the undisturbed run is complete", rig.operators.tail, seconds=600)
    prefix = layout.stage_prefix("s3://chaos/runs", name, "train")
    commit = CheckpointManifest.model_validate_json(objects.get(layout.checkpoint_commit(prefix, steps)))
    lines = [text for segment in commit.order for text in objects.get(segment.uri).splitlines()]
    await rig.client.delete("Namespace", "", name)
    namespaces = rig.views["Namespace"].objects
    await until(lambda: ("", name) not in namespaces, "the undisturbed run is gone", rig.operators.tail)
    return [OrderLine.model_validate_json(line) for line in lines]


async def delete_namespaces(lanes: list[Lane]) -> dict[str, Cell | BaseException]:
    """Delete the namespace of every lane in its phase: nothing of it is left, and nobody is held up."""
    for lane in lanes:
        await lane.suspend(False)
    results = await asyncio.gather(*(_delete_namespace(lane) for lane in lanes), return_exceptions=True)
    return {lane.phase: result for lane, result in zip(lanes, results, strict=True)}


async def _delete_namespace(lane: Lane) -> Cell:
    await enter(lane)
    began = datetime.now(UTC)
    await lane.rig.client.delete("Namespace", "", lane.name)
    lane.open_gates()
    await until(
        lambda: ("", lane.name) not in lane.rig.views["Namespace"].objects,
        f"namespace {lane.name} is gone",
        lane.explain,
    )
    seconds = (datetime.now(UTC) - began).total_seconds()
    left = [kind for kind, view in lane.rig.views.items() for namespace, _ in view.objects if namespace == lane.name]
    assert not left, left
    pods = lane.rig.nodes.workdir / "pods"
    await until(
        lambda: (
            not [p for p in processes_below(pods) if f"/{lane.name}-w" in p.environ().get("VIDEOTRAIN_POD_ROOT", "")]
        ),
        f"no process of {lane.name} is left",
        lane.explain,
    )
    return Cell("gone", "", 0, seconds, "")
