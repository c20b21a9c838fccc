"""What the command says in the end."""

from videotrain.local.ending import outcome_of

NOW = "2026-01-01T00:00:00Z"


def run(phase, type_="Failed", reason="", message="", suspend=False):
    condition = {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}
    generation = {
        "number": 1, "stage": "train", "reason": "Started", "members": ["r-w0", "r-w1"], "worldSize": 2, "gpus": 2,
        "createdAt": NOW,
    }  # fmt: skip
    status = {"phase": phase, "conditions": [condition], "generations": [generation]}
    return {"metadata": {"name": "r"}, "spec": {"suspend": suspend}, "status": status}


def test_success_is_zero(tmp_path):
    assert outcome_of(run("Succeeded"), tmp_path, interrupted=False).exit_code == 0


def test_what_was_measured_is_told_at_the_end(tmp_path):
    succeeded = run("Succeeded")
    measured = {"clips": 2, "psnr": 30.25, "lossByTime": {"0.5": 0.125}}
    succeeded["status"]["stages"] = [
        {"name": "train", "task": "train", "state": "Succeeded", "configHash": "a"},
        {"name": "measure", "task": "evaluate", "state": "Succeeded", "configHash": "b", "evaluation": measured},
    ]
    outcome = outcome_of(succeeded, tmp_path, interrupted=False)
    assert outcome.details == ["measure measured psnr 30.25, loss at 0.5 0.125"]


def test_a_failure_shows_its_reason_and_the_end_of_the_named_pods_log(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "r-w0-12345678.log").write_text("\n".join(f"line {n}" for n in range(40)))
    (tmp_path / "logs" / "r-w1-12345678.log").write_text("of another pod")
    outcome = outcome_of(run("Failed", reason="DATA", message="worker of pod r-w0 failed"), tmp_path, interrupted=False)
    assert outcome.exit_code == 1
    assert outcome.message == "run r failed: DATA: worker of pod r-w0 failed"
    assert outcome.details[-1] == "  | line 39"
    assert len(outcome.details) == 26


def test_an_interrupt_is_told_from_a_budget_and_from_the_users_own_suspension(tmp_path):
    suspended = run("Suspended", "Suspended", "BudgetExhausted", "5.00 USD are spent")
    assert outcome_of(suspended, tmp_path, interrupted=True).exit_code == 130
    budget = outcome_of(suspended, tmp_path, interrupted=False)
    assert (budget.exit_code, "BudgetExhausted: 5.00 USD" in budget.message) == (1, True)
    assert outcome_of(run("Suspended", suspend=True), tmp_path, interrupted=False).exit_code == 0
