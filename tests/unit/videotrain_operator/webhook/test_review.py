"""What the webhook answers: every problem of a new manifest, and nothing that traps an object that exists."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from support.manifests_strategy import manifests, training_run

from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run
from videotrain_operator.webhook import review as review_module
from videotrain_operator.webhook.review import MOST_PROBLEMS, BadReview, answer

Json = dict[str, Any]


def review(operation: str, new: Any = None, old: Any = None, **more: Any) -> Json:
    request = {"uid": "u-1", "operation": operation, "object": new, "oldObject": old, **more}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def reviewed(operation: str, new: Any = None, old: Any = None, **more: Any) -> tuple[str, Json]:
    outcome, answered = answer(json.dumps(review(operation, new, old, **more)).encode())
    assert (answered["apiVersion"], answered["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert answered["response"]["uid"] == "u-1"
    return outcome, answered["response"]


@pytest.fixture
def run() -> Json:
    found = training_run()
    found["spec"]["checkpoint"] = {"everySteps": 20}  # or nothing is saved before its end
    return found


def costly(run: Json) -> None:
    train = run["spec"]["stages"][0]["train"]
    train["steps"], train["parallel"] = 10**9, train.get("parallel", {}) | {"microBatchesPerStep": 10**4}


@pytest.fixture
def broken(run: Json) -> Json:
    """Taken by the CRD, refused by the models: two rows of the bucket table take the same clips."""
    train = run["spec"]["stages"][0]["train"]
    train["buckets"] = [train["buckets"][0], train["buckets"][0]]
    return run


def test_a_sound_manifest_is_allowed_without_a_word(run: Json) -> None:
    assert reviewed("CREATE", run) == ("allowed", {"uid": "u-1", "allowed": True})


def test_a_refusal_names_every_field_its_value_and_what_is_allowed(broken: Json) -> None:
    broken["spec"]["nodes"] = {"min": 3, "max": 2}
    outcome, response = reviewed("CREATE", broken)
    status = response["status"]
    assert (outcome, response["allowed"], status["code"]) == ("denied", False, 422)
    assert "spec.nodes.min: 3: must be at most max (2)" in status["message"]
    assert "spec.stages[0].train.buckets[1]" in status["message"]
    assert {"spec.nodes.min"} < {cause["field"] for cause in status["details"]["causes"]}


def test_a_refusal_is_cut_to_a_sane_size(run: Json) -> None:
    run["spec"] |= {f"{'x' * 3000}{number}": "y" * 3000 for number in range(500)}
    _, response = reviewed("CREATE", run)
    assert len(response["status"]["message"]) < 25_000
    assert response["status"]["message"].endswith(f"and {500 - MOST_PROBLEMS} more")
    assert len(response["status"]["details"]["causes"]) == MOST_PROBLEMS


def test_a_name_that_is_still_to_be_made_is_checked_by_its_form(run: Json) -> None:
    run["metadata"] = {"generateName": "run-"}
    assert reviewed("CREATE", run)[0] == "allowed"
    run["metadata"] = {"generateName": "Run-"}
    assert "metadata.name: 'Run-xxxxx'" in reviewed("CREATE", run)[1]["status"]["message"]


@pytest.mark.parametrize("operation", ["DELETE", "CONNECT"])
def test_nothing_else_than_create_and_update_is_checked(operation: str, broken: Json) -> None:
    assert reviewed(operation, None, broken) == ("skipped", {"uid": "u-1", "allowed": True})


def test_a_subresource_is_not_checked(broken: Json) -> None:
    assert reviewed("UPDATE", broken, training_run(), subResource="status")[0] == "skipped"


def test_an_object_under_deletion_may_do_anything(broken: Json) -> None:
    broken["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert reviewed("UPDATE", broken, training_run())[0] == "skipped"


def test_metadata_of_a_refused_run_may_change(broken: Json) -> None:
    changed = copy.deepcopy(broken)
    changed["metadata"]["finalizers"] = []
    assert reviewed("UPDATE", changed, broken)[0] == "skipped"


def test_a_change_that_breaks_a_rule_is_refused(broken: Json) -> None:
    assert reviewed("UPDATE", broken, training_run())[0] == "denied"


def test_what_was_wrong_before_is_only_warned_about(broken: Json) -> None:
    suspended = copy.deepcopy(broken)
    suspended["spec"]["suspend"] = True
    outcome, response = reviewed("UPDATE", suspended, broken)
    assert (outcome, response["allowed"]) == ("allowed", True)
    assert "was wrong before this change: spec.stages[0].train.buckets[1]" in response["warnings"][0]
    suspended["spec"]["nodes"] = {"min": 3, "max": 2}
    outcome, response = reviewed("UPDATE", suspended, broken)
    assert outcome == "denied" and "buckets" not in response["status"]["message"]


def test_the_pod_template_is_fixed_although_the_crd_cannot_see_it(run: Json) -> None:
    changed = copy.deepcopy(run)
    changed["spec"]["podTemplate"] = {"metadata": {"labels": {"a": "b"}}}
    outcome, response = reviewed("UPDATE", changed, run)
    assert outcome == "denied" and "spec.podTemplate: '(changed)': cannot change" in response["status"]["message"]
    changed["spec"] |= {"suspend": True}
    assert reviewed("UPDATE", changed, changed | {"spec": changed["spec"] | {"suspend": False}})[0] == "allowed"


def test_a_refused_pod_template_may_be_mended(run: Json) -> None:
    refused = copy.deepcopy(run)
    refused["spec"]["podTemplate"] = {"spec": {"restartPolicy": "Always"}}
    assert reviewed("UPDATE", run, refused)[0] == "allowed"


def test_a_run_that_saves_nothing_before_its_end_is_warned_about_and_taken(run: Json) -> None:
    run["spec"]["checkpoint"] = {"everySteps": 1_000_000}
    outcome, response = reviewed("CREATE", run)
    assert outcome == "allowed"
    assert [text.partition(":")[0] for text in response["warnings"]] == ["spec.checkpoint.everySteps"]
    assert all(len(text) <= review_module.LONGEST_WARNING for text in response["warnings"])


def test_a_large_run_without_a_budget_is_warned_about(run: Json) -> None:
    costly(run)
    _, response = reviewed("CREATE", run)
    assert response["allowed"] and "spec.budget is not set and the run needs about" in response["warnings"][0]


def test_a_budget_below_the_forecast_is_warned_about(run: Json) -> None:
    costly(run)
    run["spec"]["budget"] = {"maxCost": "5.00", "maxGpuHours": 3}
    warnings = reviewed("CREATE", run)[1]["warnings"]
    assert [text.partition(":")[0] for text in warnings] == ["spec.budget.maxCost", "spec.budget.maxGpuHours"]
    assert all(len(text) <= review_module.LONGEST_WARNING and "CheckpointAndSuspend" in text for text in warnings)


def privileged(run: Json) -> Json:
    template = {"spec": {"containers": [{"name": "worker", "securityContext": {"privileged": True}}]}}
    return run | {"spec": run["spec"] | {"podTemplate": template}}


def test_a_pod_that_the_policy_does_not_allow_is_refused_with_its_field_and_the_value_to_change(run: Json) -> None:
    outcome, response = reviewed("CREATE", privileged(run))
    field = "spec.podTemplate.spec.containers[0].securityContext.privileged"
    assert outcome == "denied"
    assert f"{field}: True: " in response["status"]["message"]
    assert "podTemplate.policy: any" in response["status"]["message"]
    assert field in {cause["field"] for cause in response["status"]["details"]["causes"]}
    body = json.dumps(review("CREATE", privileged(run))).encode()
    assert answer(body, "baseline")[0] == "denied"
    assert answer(body, "any")[0] == "allowed"


def test_a_run_of_a_looser_time_can_still_be_edited_and_its_template_mended(run: Json) -> None:
    suspended = copy.deepcopy(privileged(run))
    suspended["spec"]["suspend"] = True
    outcome, response = reviewed("UPDATE", suspended, privileged(run))
    assert outcome == "allowed" and "was wrong before this change" in response["warnings"][0]
    assert reviewed("UPDATE", run, privileged(run))[0] == "allowed"
    assert reviewed("UPDATE", privileged(run), run)[0] == "denied"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"request": {}}', b'{"request": {"uid": 5}}', b"\xff"])
def test_a_body_that_is_no_review_is_told_so(body: bytes) -> None:
    with pytest.raises(BadReview):
        answer(body)


def test_a_fault_of_the_checks_refuses_and_is_logged(
    run: Json, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(_manifest: Any) -> None:
        raise ZeroDivisionError("grid")

    monkeypatch.setattr(review_module, "parse_run", fault)
    outcome, response = reviewed("CREATE", run, namespace="team", name="run")
    assert (outcome, response["allowed"], response["status"]["code"]) == ("failed", False, 422)
    assert "ZeroDivisionError" in response["status"]["message"]
    assert "run=team/run review=failed" in caplog.text and "ZeroDivisionError" in caplog.text


@given(manifests())
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_the_webhook_agrees_with_the_models_on_any_manifest(manifest: Any) -> None:
    try:
        parse_run(manifest)
        expected = "allowed"
    except ManifestError:
        expected = "denied"
    assert reviewed("CREATE", manifest)[0] == expected


def test_a_manifest_of_a_hundred_thousand_levels_is_refused_like_any_that_is_too_deep() -> None:
    manifest = training_run("deep")
    manifest["spec"]["podTemplate"] = {"spec": "DEEP"}
    review = {"request": {"uid": "u", "operation": "CREATE", "object": manifest}}
    body = json.dumps(review).replace('"DEEP"', '{"a":' * 100_000 + "1" + "}" * 100_000).encode()
    outcome, answered = answer(body)
    assert outcome == "denied"
    assert "is nested deeper than" in answered["response"]["status"]["message"]
