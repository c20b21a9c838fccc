from videotrain_operator.cluster.status_writes import COST_SECONDS, PROGRESS_SECONDS, WORDS_SECONDS, Memory

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
