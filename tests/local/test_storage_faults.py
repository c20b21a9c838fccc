"""The worst faults of the object store in one run; all of them are in docs/reference/storage-faults.md."""

from uuid import uuid4

import pytest
from support.storage_cells import Course, Place
from support.storage_proxy import StorageRequest
from support.storage_runs import cells_of, object_server, one_run

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


def test_no_single_answer_ends_a_run_or_costs_a_checkpoint(tmp_path):
    with object_server(tmp_path) as server:
        undisturbed = one_run(server, "undisturbed", killed=False)
        assert undisturbed.succeeded, undisturbed.events
        told = one_run(server, "worst", WORST)
        cells = cells_of(told, undisturbed.summary)
        assert told.succeeded, told.events
        assert {place: cell.problem for place, cell in cells.items() if cell.problem} == {}
        assert cells.keys() == WORST.keys()
