"""What TorchX is told of a run and its pods."""

from __future__ import annotations

import pytest
from support.planner_builders import manifest
from torchx.specs import AppState

from videotrain.torchx.states import app_state, by_index, described, pod_index
from videotrain_api.vocabulary import LABEL_INDEX, Phase

AT = "2026-11-29T10:00:00Z"


def run(phase, *, suspend=False, conditions=(), **status):
    body = manifest()
    body["spec"]["suspend"] = suspend
    told = [{"lastTransitionTime": AT, "message": "", **condition} for condition in conditions]
    return {**body, "status": {"phase": phase, "conditions": told, **status}}


def pod(index, created, phase="Running", **labels):
    head = {"labels": {LABEL_INDEX: str(index), **labels}, "creationTimestamp": created, "uid": created}
    return {"metadata": head, "spec": {"nodeName": f"node-{created[-3:-1]}"}, "status": {"phase": phase}}


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_has_a_state(phase):
    assert app_state(run(phase)) is not AppState.UNKNOWN


def test_only_a_run_that_goes_on_no_more_is_at_an_end():
    ended = {phase for phase in Phase if app_state(run(phase)) in (AppState.SUCCEEDED, AppState.FAILED)}
    assert ended == {Phase.SUCCEEDED, Phase.FAILED, Phase.INVALID}


def test_a_run_without_a_status_is_submitted_and_one_of_a_later_version_unknown():
    assert app_state({"spec": {}}) is AppState.SUBMITTED
    assert app_state(run("Hibernating")) is AppState.UNKNOWN


def test_a_run_is_cancelled_if_its_user_suspended_it_and_pending_if_its_budget_did():
    assert app_state(run(Phase.SUSPENDED, suspend=True)) is AppState.CANCELLED
    assert app_state(run(Phase.SUSPENDED)) is AppState.PENDING
    assert app_state(run(Phase.SUSPENDING, suspend=True)) is AppState.RUNNING, "it saves its state"


def test_a_description_has_restarts_progress_and_the_reason():
    failed = {"type": "Failed", "status": "True", "reason": "NoProgress", "message": "died three times at step 7"}
    found = described(
        "default:demo",
        run(Phase.FAILED, conditions=[failed], progress="train 7/100", restarts={"application": 2, "hang": 1}),
        [pod(0, "2026-11-29T10:00:01Z")],
    )
    assert found.app_id == "default:demo"
    assert found.num_restarts == 3
    assert found.msg == "Failed; train 7/100; died three times at step 7"
    assert [role.name for role in found.roles] == ["worker"]
    (replica,) = found.roles_statuses[0].replicas
    assert (replica.id, str(replica.state), replica.hostname) == (0, "RUNNING", "node-01")


def test_what_was_refused_says_why():
    refused = {"type": "Accepted", "status": "False", "reason": "Invalid", "message": "spec.stages: is empty"}
    assert described("default:demo", run(Phase.INVALID, conditions=[refused]), []).msg.endswith("spec.stages: is empty")


def test_a_run_by_the_rules_of_another_version_is_described_without_roles():
    later = run(Phase.RUNNING)
    later["spec"]["quantumSlices"] = 3
    found = described("default:demo", later, [])
    assert (found.state, found.roles) == (AppState.RUNNING, [])


def test_a_replica_is_its_newest_pod():
    old, new, other = pod(1, "2026-11-29T10:00:01Z", "Failed"), pod(1, "2026-11-29T10:00:02Z"), pod(0, AT)
    assert by_index([new, other, old]) == [other, new]


def test_a_pod_whose_label_is_gone_has_no_index():
    assert pod_index({"metadata": {"labels": {LABEL_INDEX: "x"}}}) == pod_index({"metadata": {}}) == -1
