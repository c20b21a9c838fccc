"""The worst faults of the object store in one run; all of them are in docs/reference/storage-faults.md."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from support.storage_cells import PLANNED, Course, Fired, Place
from support.storage_proxy import StorageRequest
from support.storage_runs import Told, cells_of, object_server, one_run

WORST = {
    Place("curate", "GET"): "403",
    Place("start", "LIST"): "403",
    Place("start", "conditional PUT"): "409",
    Place("running", "ranged GET"): "flipped bit",
    Place("checkpoint", "conditional PUT"): "lost answer",
    Place("checkpoint", "GET"): "cut",
    Place("checkpoint", "DELETE"): "403",
    Place("resume", "LIST"): "stale list",
    Place("resume", "GET"): "cut",
    Place("resume", "ranged GET"): "flipped bit",
    Place("stage end", "GET"): "404",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("form", ["records/{uid}/g2-0001.jsonl", "failures/{uid}/g1-{run}-w0.txt.gz"])
def test_an_object_is_of_the_same_kind_in_every_run(form):
    names = ["census", "f0p0-12", "a"]
    keys = [f"bucket/runs/default/{run}/{form.format(uid=uuid4(), run=run)}" for run in names]
    assert len({Course(run).what(StorageRequest("PUT", key)) for run, key in zip(names, keys, strict=True)}) == 1


def test_the_planned_restart_is_put_to_no_fault():
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    places = [Place(PLANNED, "PUT"), Place("resume", "GET", "failures/*"), Place("resume", "LIST", "checkpoints")]
    fired = [Fired(place, "reset", "key", begin + timedelta(seconds=number)) for number, place in enumerate(places)]
    generations = [
        {"number": 1, "created_at": begin.isoformat(), "first_step": 1, "lost_steps": 10, "end_cause": "infrastructure"}
        | {"ended_at": (begin + timedelta(seconds=1.5)).isoformat()}
    ]
    summary = {
        "phase": "Succeeded",
        "stages": [{"name": "train", "steps": 50, "final_loss": 1.0, "generations": generations}],
        "samples": dict.fromkeys(("order_sha256", "consumed", "repeated", "lost", "problems"), 0),
        "drops": None,
        "gpu_microseconds": {"held": 1, "useful": 1},
        "cost": {"by_bucket": {"useful": 1}, "total_micros": 1, "estimated": False},
    }
    cells = cells_of(Told("a", 0, "", summary, fired, set(places), [], [], []), summary)
    assert {place.what: str(cell) for place, cell in cells.items()} == dict.fromkeys(
        ("failures/*", "checkpoints"), "goes on, 0, exact, same"
    )


def test_no_single_answer_ends_a_run_or_costs_a_checkpoint(tmp_path):
    with object_server(tmp_path) as server:
        undisturbed = one_run(server, "undisturbed", killed=False)
        assert undisturbed.succeeded, undisturbed.events
        told = one_run(server, "worst", WORST)
        cells = cells_of(told, undisturbed.summary)
        assert told.succeeded, told.events
        assert {place: cell.problem for place, cell in cells.items() if cell.problem} == {}
        assert cells.keys() == WORST.keys()
