"""Which worker is to blame, and how a generation ended."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.records import WorkerExit
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.agent.exits import death_message, end_state, root_cause, status_code
from videotrain_trainer.agent.messages import WorkerDeath

START = datetime(2026, 1, 1, tzinfo=UTC)


def end(code, seconds=0.0, local_rank=0, outcome=None):
    outcome = outcome or ("failed" if code else "completed")
    at = START + timedelta(seconds=seconds)
    return WorkerExit(
        generation=1, stage="one", local_rank=local_rank, at=at, code=code, outcome=outcome, step=5, message=""
    )


def test_the_cause_is_the_first_fault_even_if_a_lost_peer_was_noticed_before():
    lost, killed, later = end(ExitCode.PEER_LOST, 0.0), end(ExitCode.KILLED, 0.1, 1), end(ExitCode.DATA, 0.2, 2)
    assert root_cause([later, lost, killed]) == killed


def test_a_lost_peer_is_the_cause_where_nothing_else_happened():
    assert root_cause([end(ExitCode.TERMINATED, 0, 1), end(ExitCode.PEER_LOST, 1)]).code == ExitCode.PEER_LOST


def test_a_regular_end_is_told_when_nothing_failed():
    assert root_cause([end(0, 1), end(0, 2, 1)]).local_rank == 1
    assert root_cause([]) is None


def test_one_missing_worker_makes_the_end_a_failure():
    assert end_state([end(0)], 2) == "failed"
    assert end_state([end(0), end(0, outcome="drained")], 2) == "drained"
    assert end_state([end(0), end(0)], 2) == "succeeded"


@given(st.lists(st.tuples(st.sampled_from([0, 1, 65, 81, 82, 137, 143]), st.floats(0, 10)), min_size=1, max_size=8))
def test_the_cause_is_a_failure_if_and_only_if_the_generation_failed(found):
    ends = [end(code, seconds, rank) for rank, (code, seconds) in enumerate(found)]
    assert (root_cause(ends).outcome == "failed") == (end_state(ends, len(ends)) == "failed")


def test_signals_become_shell_statuses():
    assert (status_code(-9), status_code(-11), status_code(65)) == (137, 139, 65)
    assert "SIGKILL" in death_message(WorkerDeath(local_rank=0, exit_code=-9, at=START))
    assert "signal 11" in death_message(WorkerDeath(local_rank=0, exit_code=-11, at=START))
