"""The roster file: replaced by the kubelet at any moment, obeyed only if it is newer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.agent.roster import RosterError, RosterFile


def roster_text(generation, **changes):
    return json.dumps(
        {
            "runUid": "uid",
            "generation": generation,
            "action": "run",
            "stage": "one",
            "configHash": "0" * 16,
            "reason": "Started",
            "members": [{"pod": "w0", "address": "127.0.0.2"}],
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
    file = RosterFile(tmp_path / "roster")
    assert file.newer() is None
    replace(tmp_path / "roster", "")
    assert file.newer() is None
    assert file.generation is None


def test_a_roster_is_news_once(tmp_path):
    file = RosterFile(tmp_path / "roster")
    replace(tmp_path / "roster", roster_text(4))
    assert file.newer().generation == 4
    assert file.newer() is None
    replace(tmp_path / "roster", roster_text(4, reason="Grow"))
    assert file.newer() is None


@given(st.lists(st.integers(1, 20), max_size=12))
def test_rosters_are_obeyed_in_strictly_increasing_order(tmp_path_factory, generations):
    path = tmp_path_factory.mktemp("pod") / "roster"
    file = RosterFile(path)
    obeyed = []
    for generation in generations:
        replace(path, roster_text(generation))
        roster = file.newer()
        if roster is not None:
            obeyed.append(roster.generation)
    assert obeyed == sorted(set(obeyed))
    assert obeyed == [n for i, n in enumerate(generations) if n > max(generations[:i], default=0)]


def test_a_file_that_is_no_roster_is_an_error_once_and_the_next_roster_counts(tmp_path):
    file = RosterFile(tmp_path / "roster")
    replace(tmp_path / "roster", roster_text(1, members="all"))
    with pytest.raises(RosterError, match="members"):
        file.newer()
    assert file.newer() is None
    replace(tmp_path / "roster", roster_text(2))
    assert file.newer().generation == 2
