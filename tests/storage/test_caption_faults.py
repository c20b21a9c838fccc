"""Tables of captions in the storage fault table: every form of one meets every fault while whole runs curate.

`VIDEOTRAIN_WRITE_DOCS=1` writes the outcomes to docs/reference/storage-faults.md, if all faults are met; `-k` chooses.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.caption_runs import CAPTION, FORMS, CaptionTable, caption_run, kept_captions, put_tables
from support.storage_cells import CAPTIONS
from support.storage_proxy import FAULTS
from support.storage_runs import object_server

AT_ONCE = 2
"""Runs beside each other; half of a run is waiting."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with object_server(tmp_path_factory.mktemp("captions")) as server:
        put_tables(server)
        yield server


@pytest.fixture(scope="module")
def references(server):
    """The undisturbed run of each form, and the requests that it sends for its table."""
    runs = {form: caption_run(server, form, f"whole-{form}", {}) for form in FORMS}
    for form, (told, cells) in runs.items():
        assert told.succeeded and not cells, told.events
        assert kept_captions(server, told.name) == [CAPTION], form
    return {form: told for form, (told, _) in runs.items()}


@pytest.fixture(scope="module")
def table(references):
    places = {form: {place for place in told.seen if place.what == CAPTIONS} for form, told in references.items()}
    assert {place.kind for place in places["folder"]} >= {"LIST", "ranged GET"}
    assert {place.kind for found in places.values() for place in found} == {"LIST", "HEAD", "GET", "ranged GET"}
    table = CaptionTable(places)
    yield table
    table.publish()


@pytest.fixture(scope="module")
def outcomes(request, server, references, table):
    """Futures by form and fault; the runs go on while the first are looked at."""
    params = [item.callspec.params for item in request.session.items if item.path == request.path]
    chosen = {(one["form"], one["fault"]) for one in params}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            (form, fault): pool.submit(
                caption_run, server, form, f"{form}-{number}", dict.fromkeys(table.wanted(form, fault), fault),
                references[form],
            )
            for number, fault in enumerate(FAULTS)
            for form in FORMS
            if (form, fault) in chosen and table.wanted(form, fault)
        }  # fmt: skip


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("409", "412")])
@pytest.mark.parametrize("form", FORMS)
def test_a_fault_at_every_request_for_a_table(outcomes, table, form, fault):
    if not table.wanted(form, fault):
        pytest.skip(f"a table as {FORMS[form]} is read without a request that could meet it")
    _, cells = outcomes[form, fault].result()
    table.add(form, fault, cells)
    assert table.wrong(form, fault) == []
