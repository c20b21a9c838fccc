"""Rosters: in a file that the kubelet replaces at any moment, or sent; obeyed only if they are newer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.records import Roster
from videotrain_trainer.agent.roster import RosterError, Rosters


def roster_text(generation, **changes):
    return json.dumps(
        {
            "runUid": "uid",
            "generation": generation,
            "action": "run",
            "stage": "one",
            "configHash": "0" * 16,
            "reason": "Started",
            "members": [{"pod": "w0", "address": "127.0.0.2", "uid": "uid-0"}],
            "port": 29401,
            "processesPerNode": 2,
        }
        | changes
    )


def replace(path, text):
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def test_a_pod_may_be_older_than_its_first_roster(tmp_path):
    file = Rosters(tmp_path / "roster")
    assert file.newer() is None
    replace(tmp_path / "roster", "")
    assert file.newer() is None
    assert file.generation is None


def test_a_roster_is_news_once(tmp_path):
    file = Rosters(tmp_path / "roster")
    replace(tmp_path / "roster", roster_text(4))
    assert file.newer().generation == 4
    assert file.newer() is None
    replace(tmp_path / "roster", roster_text(4, reason="Grow"))
    assert file.newer() is None


ORDERS = st.tuples(st.integers(1, 9), st.sampled_from(["run", "stop", "leave"]), st.booleans())


@given(st.lists(ORDERS, max_size=12))
def test_rosters_are_obeyed_in_strictly_increasing_order_whichever_way_they_come(tmp_path_factory, orders):
    path = tmp_path_factory.mktemp("pod") / "roster"
    rosters = Rosters(path)
    obeyed = []
    for generation, action, sent in orders:
        text = roster_text(generation, action=action)
        if sent:
            rosters.offer(Roster.model_validate_json(text))
        else:
            replace(path, text)
        roster = rosters.newer()
        if roster is not None:
            obeyed.append(roster.order())
    keys = [(generation, ("run", "stop", "leave").index(action), 0) for generation, action, _ in orders]
    assert obeyed == [key for i, key in enumerate(keys) if key > max(keys[:i], default=(0, False, 0))]


def test_a_roster_that_was_sent_is_obeyed_though_the_file_is_spoiled(tmp_path):
    rosters = Rosters(tmp_path / "roster")
    rosters.offer(Roster.model_validate_json(roster_text(3)))
    replace(tmp_path / "roster", "{")
    with pytest.raises(RosterError):
        rosters.newer()
    assert rosters.newer().generation == 3


def test_a_file_that_is_no_roster_is_an_error_once_and_the_next_roster_counts(tmp_path):
    file = Rosters(tmp_path / "roster")
    replace(tmp_path / "roster", roster_text(1, members="all"))
    with pytest.raises(RosterError, match="members"):
        file.newer()
    assert file.newer() is None
    replace(tmp_path / "roster", roster_text(2))
    assert file.newer().generation == 2
