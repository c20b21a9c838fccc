import asyncio

import pytest

from videotrain_operator.manager import node_trust
from videotrain_operator.manager.node_trust import NodeTrust


def node(ready):
    return {"spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]}}


def nodes(lost, of):
    return [node(index >= lost) for index in range(of)]


@pytest.mark.parametrize(
    ("lost", "of", "believed"),
    [(1, 1, True), (3, 3, True), (3, 4, True), (4, 4, False), (4, 8, True), (5, 9, False), (50, 1000, True)],
)
def test_few_lost_nodes_are_believed_and_most_of_many_are_not(lost, of, believed):
    assert bool(NodeTrust(55, lambda: 0.0).assess(nodes(lost, of), heard_at=0.0)) != believed


def test_a_loss_that_goes_on_is_believed_in_the_end():
    now = [0.0]
    view = NodeTrust(55, lambda: now[0])
    assert view.assess(nodes(9, 10), heard_at=0.0)
    now[0] = node_trust.LONGEST_SECONDS + 1
    assert not view.assess(nodes(9, 10), heard_at=now[0])


def test_a_server_that_tells_nothing_about_nodes_is_not_believed():
    assert NodeTrust(55, lambda: 1000.0).assess(nodes(0, 3), heard_at=1000.0 - node_trust.STALE_SECONDS - 1)


def test_after_an_outage_of_the_server_nodes_have_time_to_report():
    """Its node controller declares those lost that could not reach it, some of them before they can."""
    now = [1000.0]
    view = NodeTrust(55, lambda: now[0])
    assert not view.assess(nodes(0, 8), heard_at=now[0], returned_at=now[0]), "all of them are there"
    assert not view.assess([node(True), None], heard_at=now[0], returned_at=now[0]), "somebody deleted it"
    now[0] += node_trust.RETURN_SECONDS - 1
    assert "was away" in view.assess(nodes(1, 8), heard_at=now[0], returned_at=1000.0)
    now[0] += 1
    assert not view.assess(nodes(1, 8), heard_at=now[0], returned_at=1000.0)


async def test_the_first_silent_node_holds_all_passes_until_it_is_clear_how_many(monkeypatch):
    monkeypatch.setattr(node_trust, "SETTLE_SECONDS", 0.2)
    view = NodeTrust(55)
    await view.settled()
    assert view.notice("a", node(ready=False))
    assert not view.notice("a", node(ready=False)), "a heartbeat is no news"
    waiting = asyncio.create_task(view.settled())
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    await waiting


async def test_a_deleted_node_holds_nothing():
    view = NodeTrust(55)
    view.notice("a", node(ready=True))
    assert view.notice("a", None)
    async with asyncio.timeout(1):
        await view.settled()
