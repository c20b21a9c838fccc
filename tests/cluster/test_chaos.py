"""The chaos table: every fault in every phase of a run, with real agents and torchrun worlds on process nodes.

`VIDEOTRAIN_WRITE_DOCS=1` writes the outcomes to docs/reference/faults.md. `VIDEOTRAIN_CHAOS_PARTS=rows.json` and `-k`
let several test runs share the table; each needs the accounts, as in `-k "exit or adds_up"`.
"""

import asyncio

import pytest
import pytest_asyncio
from support.chaos_cells import Cell, run_row
from support.chaos_end import check_bill, check_orders, delete_namespaces, suspend_all
from support.chaos_faults import FAULTS
from support.chaos_lane import PHASES, Lane
from support.chaos_records import RecordKeeper
from support.chaos_rig import NODE_GRACE_SECONDS, Rig
from support.chaos_table import Table
from support.training_worlds import make_latents

from videotrain.controlplane.settings import NodeMonitoring, Settings
from videotrain_operator.kube.client import connect

MONITORING = NodeMonitoring(period_seconds=1, grace_seconds=NODE_GRACE_SECONDS, toleration_seconds=30)
SETTINGS = Settings(nodes=MONITORING)
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("control_plane", [SETTINGS], indirect=True, scope="session", ids=["impatient"]),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def table():
    table = Table()
    yield table
    table.publish()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lanes(control_plane, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    latents = make_latents(folder)
    keeper = RecordKeeper(folder / "nodes" / "pods", folder / "records")
    async with connect(str(control_plane.kubeconfig())) as client:
        rig = Rig(control_plane, client, folder)
        lanes = [Lane(rig, keeper, phase, latents) for phase in PHASES]
        try:
            await rig.start("chaos", [node for lane in lanes for node in lane.nodes])
            await asyncio.gather(*(lane.create() for lane in lanes))
            yield lanes
        finally:
            await rig.stop()
            keeper.close()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_in_every_phase(lanes, table, fault):
    outcomes = await run_row(lanes, fault)
    table.add(fault.title, outcomes)
    harmed = [lane for lane in lanes if not isinstance(outcomes[lane.phase], Cell)]
    await asyncio.gather(*(lane.renew() for lane in harmed))
    assert not harmed, table.explain(fault.title)


async def test_the_bill_adds_up_and_no_sample_was_lost_or_repeated(lanes, table):
    await suspend_all(lanes)
    for lane in lanes:
        check_bill(lane)
    await check_orders(lanes)
    table.accounts_checked = True


async def test_a_deleted_namespace_ends_everything_in_every_phase(lanes, table):
    outcomes = await delete_namespaces(lanes)
    table.add("namespace deleted", outcomes)
    assert all(isinstance(outcome, Cell) for outcome in outcomes.values()), table.explain("namespace deleted")
