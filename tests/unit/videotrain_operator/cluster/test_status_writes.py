import pytest

from videotrain_api.resource.status import RunStatus
from videotrain_operator.cluster.status_writes import (
    BEGIN_SECONDS,
    COST_SECONDS,
    CROWDED_BEGIN_SECONDS,
    PROGRESS_SECONDS,
    WORDS_SECONDS,
    Memory,
)

RUN = {"metadata": {"uid": "u", "name": "tiny", "resourceVersion": "5"}}


def status(step=1, total=10, phase="Running", state="running"):
    generation = {"number": 1, "progress": {"generation": 1, "state": state, "step": step, "lastStepAt": str(step)}}
    return {
        "phase": phase,
        "step": step,
        "observedAt": f"t{total}",
        "cost": {"totalMicros": total},
        "nodes": {"current": 2, "ready": step},
        "stages": [{"name": "train", "step": step, "savedStep": 0}],
        "generations": [generation],
    }


def memory(now):
    return Memory(lambda: now[0])


def test_a_fact_is_written_at_once_and_a_number_now_and_then():
    now = [0.0]
    pace = memory(now)
    assert pace.due(status(), status() | {"generation": 2})
    assert pace.due(status(), status(state="failed"))
    assert not pace.due(status(), status(step=2, total=20))
    now[0] = PROGRESS_SECONDS
    assert pace.due(status(), status(step=2, total=20))
    assert not pace.due(status(), status(total=20)), "only the bill has grown"
    now[0] = COST_SECONDS
    assert pace.due(status(), status(total=20))
    assert not pace.due(status(), status())


def test_a_write_starts_the_wait_again():
    now = [PROGRESS_SECONDS]
    pace = memory(now)
    pace.keep(RUN, status(step=2), written=True)
    assert not pace.due(status(step=2), status(step=3))


def test_the_next_pass_goes_on_from_what_was_not_written():
    pace = memory([0.0])
    pace.keep(RUN, status(step=9), written=False)
    assert pace.with_unwritten_status(RUN | {"status": status(step=1)})["status"] == status(step=9)
    edited = {"metadata": RUN["metadata"] | {"resourceVersion": "6"}, "status": status(step=1)}
    assert pace.with_unwritten_status(edited)["status"] == status(step=1), "somebody else wrote since"


def test_a_server_that_drops_unknown_fields_is_not_written_to_for_ever():
    pace = memory([0.0])
    wanted = status() | {"newField": 1}
    pace.keep(RUN, wanted, written=True)
    pace.with_unwritten_status(RUN | {"status": status()})
    assert not pace.due(status(), wanted)
    assert pace.due(status(), wanted | {"generation": 2})


def waiting(ready, status="False", reason="WaitingForPods"):
    message = f"{ready} pods are ready, at least 8 are needed"
    return {"conditions": [{"type": "Scheduled", "status": status, "reason": reason, "message": message}]}


def test_words_that_change_one_after_another_make_one_write_and_are_not_forgotten():
    now = [0.0]
    pace = memory(now)
    now[0] = 2.0
    assert not pace.due(waiting(0), waiting(3))
    assert pace.look_seconds == WORDS_SECONDS - 2.0
    assert pace.due(waiting(0), waiting(8, "True", "PodsReady")), "a fact waits for nothing"
    assert pace.look_seconds is None
    assert not pace.due(waiting(0) | {"phase": "Pending"}, waiting(0) | {"phase": "Starting"})
    assert pace.look_seconds == WORDS_SECONDS - 2.0
    now[0] = WORDS_SECONDS
    assert pace.due(waiting(0), waiting(4))


def test_a_world_that_starts_is_news_with_its_first_step_or_when_that_takes_long():
    now = [0.0]
    pace = memory(now)

    def starting(**progress):
        found = status() | {"conditions": [{"type": "ProgressObserved", "status": "Unknown", "reason": "Starting"}]}
        return found | {"generations": [{"number": 1, "progress": {"generation": 1, "state": "starting"} | progress}]}

    before = status() | {"generations": [{"number": 1}]}
    assert not pace.due(before, starting())
    assert not pace.due(before, starting(state="running"))
    assert pace.due(before, starting(state="running", firstStepAt="t"))
    assert pace.due(before, starting(state="failed"))
    now[0] = WORDS_SECONDS
    assert pace.due(before, starting())


def condition(kind, reason, status="True", **more):
    return {"type": kind, "status": status, "reason": reason} | more


WAITING = (
    condition("Accepted", "Accepted"),
    condition("Scheduled", "WaitingForPods", "False"),
    condition("Running", "NoWorld", "False"),
    condition("BudgetOK", "NoLimit"),
)


def begun(*, conditions=WAITING, generations=(), state="Pending", **more):
    """A run's first status: accepted, perhaps with its first world."""
    status = RunStatus().to_wire() | {"observedGeneration": 1, "configMap": "c", "conditions": list(conditions)}
    stages = [{"name": "train", "task": "train", "state": state, "configHash": "0", "step": 0, "savedStep": 0}]
    return status | {"stages": stages, "generations": list(generations), "generation": len(generations)} | more


def world(**more):
    return {"number": 1, "stage": "train", "reason": "Started", "members": ["a"], "worldSize": 1, "gpus": 1} | more


def test_acceptance_and_the_first_world_make_one_write() -> None:
    now = [100.0]
    pace = memory(now)
    assert not pace.due({}, begun())
    assert pace.look_seconds == BEGIN_SECONDS
    pace.keep(RUN, begun(), written=False)
    now[0] += 1.0
    running = begun(generations=[world()], state="Running")
    assert not pace.due({}, running)
    assert pace.look_seconds == BEGIN_SECONDS - 1.0, "it counts from the first fact that waits"
    now[0] += 2.0
    assert pace.due({}, running)
    pace.keep(RUN, running, written=True)
    assert not pace.due(begun(), running)
    assert pace.look_seconds == BEGIN_SECONDS, "what comes after a write waits anew"


def test_while_other_runs_wait_for_a_pass_the_news_of_a_beginning_waits_longer() -> None:
    now, crowded = [100.0], [True]
    pace = Memory(lambda: now[0], lambda: crowded[0])
    assert not pace.due({}, begun())
    assert pace.look_seconds == CROWDED_BEGIN_SECONDS
    now[0] += BEGIN_SECONDS
    assert not pace.due({}, begun())
    crowded[0] = False
    assert pace.due({}, begun())
    crowded[0] = True
    now[0] += CROWDED_BEGIN_SECONDS
    assert pace.due({}, begun()), "not for ever"


STEPPED = (
    *WAITING[:1],
    condition("Scheduled", "PodsReady"),
    condition("Running", "StepsAdvance"),
    condition("ProgressObserved", "StepsAdvance"),
    WAITING[3],
)


def test_while_other_runs_wait_for_a_pass_a_first_step_waits_with_its_beginning() -> None:
    now, crowded = [100.0], [True]
    pace = Memory(lambda: now[0], lambda: crowded[0])
    stepped = begun(conditions=STEPPED, generations=[world(progress={"state": "running", "firstStepAt": "t"})])
    assert not pace.due({}, stepped)
    failed = begun(conditions=STEPPED, generations=[world(progress={"state": "failed", "firstStepAt": "t"})])
    assert pace.due({}, failed)
    assert pace.due(begun(generations=[world()]), stepped), "the world is stored, so its first step is news"
    crowded[0] = False
    assert pace.due({}, stepped)
    crowded[0] = True
    now[0] += CROWDED_BEGIN_SECONDS
    assert pace.due({}, stepped), "not for ever"


@pytest.mark.parametrize(
    "news",
    [
        begun(conditions=[condition("Accepted", "Invalid", "False")]),
        begun(conditions=[*WAITING, condition("Suspended", "User")]),
        begun(conditions=[WAITING[0], condition("Scheduled", "Unschedulable", "False")]),
        begun(conditions=[*WAITING[:3], condition("BudgetOK", "BudgetExceeded", "False")]),
        begun(failedPods=["u"]),
        begun(generations=[world(endCause="application")]),
        begun(generations=[world(progress={"state": "running", "firstStepAt": "t"})]),
        begun(generations=[world(), world(number=2)]),
        begun(unconfirmed={"Deadline": "2026-01-01T00:00:00Z"}),
        begun(state="Succeeded"),
    ],
)
def test_what_no_successor_would_find_by_itself_is_written_at_once(news) -> None:
    assert memory([0.0]).due(begun(), news)


def test_an_edit_is_answered_at_once() -> None:
    assert memory([0.0]).due(begun(), begun(observedGeneration=2))


def test_an_edit_of_the_spec_does_not_lose_what_was_not_written() -> None:
    """Pods mount what was frozen: another reading of the spec must not take its place."""
    pace = memory([0.0])
    pace.keep(RUN, begun(), written=False)
    edited = {"metadata": RUN["metadata"] | {"resourceVersion": "6"}, "spec": {"suspend": True}}
    assert pace.with_unwritten_status(edited)["status"] == begun()
    other = {"metadata": RUN["metadata"] | {"resourceVersion": "7", "uid": "v"}}
    assert "status" not in pace.with_unwritten_status(other), "another run of this name"
