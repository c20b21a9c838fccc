"""`videotrain logs`, `events` and `describe` of a working directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.planner_builders import at, manifest, progress
from support.small_api import SmallApi

from videotrain.cli import main
from videotrain.embedded.database import DATABASE_FILE, Database, Key, Row, read_objects
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.vocabulary import KIND, PLURAL


def event(uid: str, reason: str, when: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{uid}.{reason}", "namespace": "default"},
        "involvedObject": {"uid": uid},
        "type": "Normal",
        "reason": reason,
        "message": f"about {uid}",
        "count": 2,
        "lastTimestamp": when,
    }


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    run = manifest()
    run["metadata"] |= {"namespace": "default", "uid": "u1"}
    name = run["metadata"]["name"]
    members = [f"{name}-w1", f"{name}-w0"]
    stacks = "local rank 0\n  in all_reduce"
    generation = GenerationStatus(
        number=1, stage="train", reason="Started", members=members, world_size=2, gpus=2, created_at=at(1),
        progress=progress(1, 40).model_copy(update={"stacks": stacks}),
    )  # fmt: skip
    run |= {"status": RunStatus(phase="Running", stage="train", generations=[generation]).to_wire()}
    events = [event("u1", "Later", "2026-11-02T00:00:00Z"), event("u1", "Earlier", "2026-11-01T00:00:00Z")]
    events.append(event("other", "Foreign", "2026-11-01T00:00:00Z"))
    rows = {Key(KIND, "default", name): Row(1, run)}
    rows |= {Key("Event", "default", each["metadata"]["name"]): Row(2 + n, each) for n, each in enumerate(events)}
    pod = {"metadata": {"name": f"{name}-w0"}, "spec": {"nodeName": "node-7"}, "status": {"phase": "Running"}}
    rows[Key("Pod", "default", f"{name}-w0")] = Row(9, pod)
    database = Database(tmp_path / DATABASE_FILE)
    database.commit(rows, 9)
    database.close()
    (tmp_path / "logs").mkdir()
    for pod_name, text in ((f"{name}-w0", "of rank 1\nlast of rank 1\n"), (f"{name}-w1", "of rank 0\n")):
        (tmp_path / f"logs/{pod_name}-12345678.log").write_text(text)
    return tmp_path


def out(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out


def test_the_log_of_the_pod_with_rank_0_is_printed(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    assert out(capsys, "logs", "--workdir", workdir) == "of rank 0\n"


def test_another_pod_and_all_pods_can_be_asked_for(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    name = manifest()["metadata"]["name"]
    assert out(capsys, "logs", "--workdir", workdir, "--pod", f"{name}-w0", "--tail", 1) == "last of rank 1\n"
    assert out(capsys, "logs", "--workdir", workdir, "--tail", 0) == ""
    assert out(capsys, "logs", "--workdir", workdir, "--tail", 5000) == "of rank 0\n"
    lines = out(capsys, "logs", "--workdir", workdir, "--all", "--follow").splitlines()
    assert lines == [f"[{name}-w0] of rank 1", f"[{name}-w0] last of rank 1", f"[{name}-w1] of rank 0"]


def test_a_pod_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    assert main(["logs", "--workdir", str(workdir), "--pod", "demo-w9"]) == 2
    name = manifest()["metadata"]["name"]
    assert f"allowed: {name}-w0, {name}-w1" in capsys.readouterr().err


def test_events_of_the_run_are_told_in_order(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    told = out(capsys, "events", "--workdir", workdir)
    assert told.index("Earlier") < told.index("Later") and "Foreign" not in told


def test_a_description_has_pods_and_events(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    told = out(capsys, "describe", "--workdir", workdir)
    assert all(word in told for word in ("node-7", "Earlier", "Running", "Stacks of generation 1", "in all_reduce"))


@pytest.mark.parametrize("command", ["logs", "events", "describe", "suspend"])
def test_a_run_is_named_in_one_way(capsys: pytest.CaptureFixture[str], workdir: Path, command: str) -> None:
    assert main([command]) == 2
    assert main([command, "demo", "--workdir", str(workdir)]) == 2
    assert "name one run" in capsys.readouterr().err


async def test_logs_of_a_cluster_are_those_of_its_pods(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workdir: Path
) -> None:
    run = read_objects(workdir / DATABASE_FILE, KIND)[0]
    name = run["metadata"]["name"]
    async with SmallApi() as api:
        api.objects[PLURAL] = [run]
        api.objects["pods"] = [{"metadata": {"name": f"{name}-w{n}"}, "spec": {}} for n in range(3)]
        api.logs = {f"{name}-w0": "zero\n", f"{name}-w1": "one\ntwo\n"}
        where = ["--kubeconfig", str(api.kubeconfig(tmp_path))]
        assert await asyncio.to_thread(main, ["logs", name, *where]) == 0
        assert capsys.readouterr().out == "one\ntwo\n", "the pod with rank 0"
        assert await asyncio.to_thread(main, ["logs", name, "--all", *where]) == 0
        told = capsys.readouterr()
        lines = {f"[{name}-w0] zero", f"[{name}-w1] one", f"[{name}-w1] two"}
        assert set(told.out.splitlines()) == lines and f"{name}-w2 waits" in told.err
        assert await asyncio.to_thread(main, ["logs", name, "--pod", f"{name}-w2", *where]) == 2
        assert f"{name}-w2 waits" in capsys.readouterr().err


async def test_events_of_a_cluster_are_those_of_all_pages(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workdir: Path
) -> None:
    run = read_objects(workdir / DATABASE_FILE, KIND)[0]
    async with SmallApi() as api:
        api.objects[PLURAL], api.page = [run], 2
        api.objects["events"] = [event("u1", f"Reason{n}", f"2026-11-0{n + 1}T00:00:00Z") for n in range(5)]
        where = ["--kubeconfig", str(api.kubeconfig(tmp_path))]
        assert await asyncio.to_thread(main, ["events", run["metadata"]["name"], *where]) == 0
        pages = [path for path in api.asked if "/events?" in path]
    told = capsys.readouterr().out
    assert all(f"Reason{n}" in told for n in range(5))
    assert len(pages) == 3 and all("fieldSelector=involvedObject.uid%3Du1" in path for path in pages)
