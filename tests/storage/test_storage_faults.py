"""The storage fault table: every kind of request meets every fault in every phase, in whole runs.

`VIDEOTRAIN_WRITE_DOCS=1` writes the outcomes to docs/reference/storage-faults.md, if all faults are met; `-k` chooses.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.storage_cells import PHASES
from support.storage_proxy import FAULTS
from support.storage_runs import contradictions, failed_generations, met, object_server, one_run
from support.storage_table import Table

AT_ONCE = 2
"""Runs beside each other; half of a run is waiting."""
SILENT = (("curate", "encode"), ("start", "running"), ("checkpoint",), ("resume", "stage end"))
"""Phases whose silences are waited for in runs of their own: each takes as long as the client is patient."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with object_server(tmp_path_factory.mktemp("storage")) as server:
        yield server


@pytest.fixture(scope="module")
def reference(server):
    """Summary of the run as it goes when nothing happens."""
    told = one_run(server, "undisturbed", killed=False)
    assert told.succeeded, told.events
    assert failed_generations(told.summary) == []
    return told.summary


@pytest.fixture(scope="module")
def table(server, reference):
    """A run whose worker is killed once, and all places that it has."""
    told = one_run(server, "census")
    assert told.succeeded, told.events
    assert list(contradictions(told, reference)) == []
    assert {place.phase for place in told.seen} == set(PHASES)
    table = Table(told.seen)
    yield table
    table.publish()


@pytest.fixture(scope="module")
def outcomes(request, server, reference, table):
    """Futures by fault; the runs go on while the first are looked at."""
    chosen = {item.callspec.params["fault"] for item in request.session.items if item.path == request.path}
    with ThreadPoolExecutor(AT_ONCE) as pool, ThreadPoolExecutor(len(SILENT)) as patient:
        groups = {fault: SILENT if fault == "silence" else (PHASES,) for fault in FAULTS}
        yield {
            fault: [
                (patient if len(parts) > 1 else pool).submit(
                    met, server, {place: fault for place in table.wanted(fault) if place.phase in phases}, reference,
                    f"f{number}p{part}",
                )
                for part, phases in enumerate(parts)
            ]
            for number, (fault, parts) in enumerate(groups.items())
            if fault in chosen
        }  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_request(outcomes, table, fault):
    cells = {place: cell for part in outcomes[fault] for place, cell in part.result().items()}
    table.add(fault, cells)
    assert table.wrong(fault) == []
