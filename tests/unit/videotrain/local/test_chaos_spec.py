"""Faults on request."""

import pytest

from videotrain.local.chaos_spec import ChaosError, Fault, FiredFaults, parse_faults

STAGES = {"curate": None, "train": 60}


def test_every_option_is_understood():
    texts = [
        "kill-node@stage=train,step=20",
        "kill-worker@step=5,stage=train,leader=true",
        "hang@stage=curate,step=900",
    ]
    assert parse_faults(texts, STAGES) == [
        Fault(texts[0], "kill-node", "train", 20),
        Fault(texts[1], "kill-worker", "train", 5, None, True),
        Fault(texts[2], "hang", "curate", 900),
    ]
    assert parse_faults(["kill-node@stage=train,step=1,restore=2.5"], STAGES)[0].restore_seconds == 2.5


def test_the_same_fault_twice_happens_twice():
    faults = parse_faults(["hang@stage=train,step=1"] * 3, STAGES)
    assert len({fault.text for fault in faults}) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("explode@stage=train,step=1", "action 'explode': allowed are kill-node, kill-worker, hang"),
        ("kill-node", "kill-node takes each of leader, restore, stage, step once"),
        ("kill-node@stage=train", "step is missing"),
        ("kill-node@step=3", "stage is missing"),
        ("kill-node@stage=train,step=zero", "step 'zero': a whole number from 1"),
        ("kill-node@stage=train,step=0", "step '0'"),
        ("kill-node@stage=train,step=1,step=2", "'step=2'"),
        ("kill-worker@stage=train,step=1,restore=3", "'restore=3'"),
        ("kill-node@stage=train,step=1,restore=soon", "restore 'soon': seconds"),
        ("kill-node@stage=train,step=1,leader=yes", "leader 'yes': allowed are true and false"),
        ("hang@stage=trian,step=1", "stage 'trian': the stages of this run are curate, train"),
        ("hang@stage=train,step=60", "the stage ends with step 60; allowed: 1 to 59"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_what_is_allowed(text, told):
    with pytest.raises(ChaosError) as refused:
        parse_faults([text], STAGES)
    assert told in str(refused.value)
    assert text in str(refused.value)


def test_what_has_fired_is_remembered_by_the_next_process(tmp_path):
    first, second = parse_faults(["hang@stage=train,step=1"] * 2, STAGES)
    FiredFaults(tmp_path / "chaos.json").add(first, "p")
    again = FiredFaults(tmp_path / "chaos.json")
    assert first in again
    assert second not in again
