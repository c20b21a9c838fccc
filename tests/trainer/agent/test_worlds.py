"""Agents with real worlds: generations come and go without a restart of the agent."""

import contextlib
import json
import math
import os
import signal
import urllib.error
import urllib.request

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.agent_pods import Worlds, stage_config

from videotrain_api.metrics import CATALOGUE
from videotrain_api.vocabulary import ENV_REPLACEABLE, PATH_ROSTER, PORT_AGENT, ExitCode

IDLE = ["vt-forkserver"]


def wait_for_death(pids, seconds=30):
    _gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=seconds)
    assert not alive


def test_a_generation_runs_to_its_end_on_two_nodes(worlds, make_config):
    first, second = worlds.pods
    generation = worlds.start(first, second, config=make_config(steps=30))
    ended = [pod.until_ended(generation) for pod in (first, second)]
    for progress in ended:
        assert progress.state == "succeeded"
        assert progress.exit.outcome == "completed"
        assert progress.step == progress.total_steps == 30
        assert progress.world_size == 4
        assert progress.data_stall_us == 300
        assert progress.launched_at < progress.started_at < progress.first_step_at < progress.last_step_at
        assert progress.samples_per_second > 0
    assert first.descendants() == second.descendants() == IDLE


def test_an_idle_agent_is_ready_and_a_lost_fork_server_is_replaced(worlds, make_config):
    first, _ = worlds.pods
    generation = worlds.start(action="stop")
    first.until(lambda progress: progress.ready and progress.roster_generation == generation)
    psutil.Process(first.process.pid).children()[0].kill()
    first.until(lambda progress: not progress.ready)
    first.until(lambda progress: progress.ready)
    generation = worlds.start(first, config=make_config(steps=3))
    assert first.until_ended(generation).state == "succeeded"
    assert first.progress().ready


def test_a_newer_roster_drains_the_workers_and_starts_the_next_generation(worlds):
    first, second = worlds.pods
    agent = psutil.Process(first.process.pid).create_time()
    before = worlds.start(first, second)
    first.until_step(before, 3)
    after = worlds.start(first, second, reason="Grow")
    first.until_step(after, 1)
    previous = first.progress().previous
    assert previous.generation == before
    assert previous.state == "drained"
    assert previous.exit.code == ExitCode.OK
    assert [point.step for point in previous.saved] == [previous.step]
    assert previous.saved[0].data_stall_us == 10 * previous.step
    assert psutil.Process(first.process.pid).create_time() == agent


def test_a_pod_that_is_no_longer_a_member_drains_and_stays_idle(worlds, make_config):
    first, second = worlds.pods
    before = worlds.start(first, second)
    second.until_step(before, 1)
    after = worlds.start(first, reason="Shrink", config=make_config(steps=10))
    assert first.until_ended(after).world_size == 2
    left = second.until_ended(before)
    assert left.state == "drained"
    assert second.progress().roster_generation == after
    assert second.descendants() == IDLE


def test_a_world_starts_and_stops_by_what_is_sent_while_the_files_are_late(worlds):
    first, second = worlds.pods
    roster = worlds.roster(first, second)
    for pod in worlds.pods:
        pod.until(lambda seen: seen.ready)
    assert sorted(first.tell(roster, second)) == sorted([first.address, second.address])
    for pod in worlds.pods:
        pod.until_step(roster.generation, 2)
    stop = roster.model_copy(update={"action": "stop", "members": []})
    assert sorted(second.tell(stop, first)) == sorted([first.address, second.address])
    for pod in worlds.pods:
        pod.until_ended(roster.generation)
        pod.give(roster)  # the file comes at last, with what is over
    following = worlds.start(first, second)
    assert first.until_step(following, 1).generation == roster.generation + 1


def test_an_agent_that_is_away_is_left_to_the_operator_with_its_branch(worlds):
    first, second = worlds.pods
    first.until(lambda seen: seen.ready)
    second.close()
    assert first.tell(worlds.roster(action="stop"), second) == [first.address]
    worlds.replace(second)


def test_a_roster_that_is_not_signed_with_the_runs_key_is_not_taken(worlds):
    first, _ = worlds.pods
    roster = worlds.roster(first)
    first.until(lambda seen: seen.ready)
    body = json.dumps({"roster": roster.to_wire(), "to": [], "seconds": 1}).encode()
    request = urllib.request.Request(f"http://{first.address}:{PORT_AGENT}{PATH_ROSTER}", body)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)
    assert first.progress().roster_generation != roster.generation


def test_a_roster_to_stop_drains_the_workers(worlds):
    first, second = worlds.pods
    generation = worlds.start(first, second)
    first.until_step(generation, 1)
    worlds.start(action="stop", reason="Suspended")
    assert first.until_ended(generation).state == second.until_ended(generation).state == "drained"
    assert first.descendants() == second.descendants() == IDLE


def test_an_incomplete_world_is_drained_at_once(worlds):
    first, second = worlds.pods
    # The second member never gets its roster, so the first one waits for it.
    worlds.start(action="stop")
    generation = worlds.start(first, second, to=[first])
    first.until(lambda progress: progress.current.generation == generation and "vt-launcher" in first.descendants())
    worlds.start(action="stop")
    ended = first.until_ended(generation)
    assert ended.state == "drained"
    assert ended.exit.message == "asked to stop before the workers were started"


def test_a_killed_worker_fails_its_pod_with_137_and_the_other_pod_with_peer_lost(worlds):
    first, second = worlds.pods
    generation = worlds.start(first, second)
    first.until_step(generation, 1)
    second.until_step(generation, 1)
    first.worker(generation, 1).kill()
    failed = first.until_ended(generation)
    assert (failed.state, failed.exit.code, failed.exit.local_rank) == ("failed", ExitCode.KILLED, 1)
    assert "SIGKILL" in failed.exit.message
    lost = second.until_ended(generation)
    assert (lost.state, lost.exit.code) == ("failed", ExitCode.PEER_LOST)
    assert first.descendants() == second.descendants() == IDLE


def test_a_fault_of_a_worker_is_told_with_its_own_code_and_message(worlds):
    first, second = worlds.pods
    for behaviour, code, message in [
        ("data error", ExitCode.DATA, "clip 7 is damaged: crc32c 0x1 instead of 0x2"),
        ("bug", ExitCode.INTERNAL, "ValueError: an application error"),
        ("disk full", ExitCode.DISK_FULL, "OSError: [Errno 28] No space left on device"),
        ("segmentation fault", 128 + signal.SIGSEGV, "killed by signal 11"),
    ]:
        generation = worlds.start(first, second, drain=False)
        second.until_step(generation, 2)
        second.behave(behaviour, 1)
        failed = second.until_ended(generation)
        assert (failed.state, failed.exit.code, failed.exit.message) == ("failed", code, message)
        assert failed.exit.step == failed.step
        assert first.until_ended(generation).exit.code == ExitCode.PEER_LOST


def test_the_death_of_the_fork_server_ends_the_generation_and_the_next_one_runs(worlds, make_config):
    first, second = worlds.pods
    generation = worlds.start(first, second)
    first.until_step(generation, 1)
    fork_server, *_ = psutil.Process(first.process.pid).children()
    fork_server.kill()
    ended = first.until_ended(generation)
    assert (ended.state, ended.exit.code) == ("failed", ExitCode.KILLED)
    assert second.until_ended(generation).exit.code == ExitCode.PEER_LOST
    generation = worlds.start(first, second, config=make_config(steps=3))
    assert first.until_ended(generation).state == "succeeded"


def test_a_hung_generation_is_killed_with_its_stacks_captured(worlds, make_config):
    first, second = worlds.pods
    generation = worlds.start(first, second)
    first.until_step(generation, 1)
    first.behave("stand still", 0)
    first.until(lambda progress: (first.root / "standing-still").exists())
    second.worker(generation, 1).suspend()
    hung = [pod.worker(generation, local_rank).pid for pod in (first, second) for local_rank in (0, 1)]
    after = worlds.start(first, second, reason="Hang", drain=False, config=make_config(steps=5))
    wait_for_death(hung)
    for pod in (first, second):
        assert pod.until_ended(after).state == "succeeded"
        previous = pod.progress().previous
        assert (previous.state, previous.exit.code) == ("failed", ExitCode.HANG)
        assert "no progress since" in previous.exit.message
        assert "stepping.py" in previous.stacks
        assert "stepping.py" in "".join(file.read_text() for file in pod.file("").glob(f"stacks-{generation}-*.txt"))
        assert not list(pod.file("").glob("scratch-*"))
        assert pod.descendants() == IDLE


def test_a_worker_that_does_not_drain_is_killed_after_the_grace_period(worlds, make_config):
    first, _second = worlds.pods
    generation = worlds.start(first, config=make_config(grace_seconds=1))
    first.until_step(generation, 1)
    first.worker(generation, 0).suspend()
    worlds.start(action="stop")
    ended = first.until_ended(generation)
    assert (ended.state, ended.exit.code) == ("failed", ExitCode.KILLED)
    assert "graceSeconds=1" in ended.exit.message
    assert first.descendants() == IDLE


def test_a_stop_without_a_drain_kills_at_once_and_is_no_failure_of_the_workers(worlds):
    first, _second = worlds.pods
    generation = worlds.start(first)  # one pod: with two, the slower one may rightly see its peers go first
    first.until_step(generation, 1)
    worlds.start(action="stop", drain=False, reason="NodeLost")
    ended = first.until_ended(generation)
    assert (ended.state, ended.exit.code) == ("failed", ExitCode.FENCED)


def test_agents_of_a_run_that_is_over_stop_their_workers_and_end(tmp_path):
    with contextlib.closing(Worlds(tmp_path)) as worlds:
        first, second = worlds.pods
        generation = worlds.start(first)  # the second is a spare
        first.until_step(generation, 1)
        worlds.start(action="leave", reason="Failed", drain=False)
        assert (first.process.wait(60), second.process.wait(60)) == (ExitCode.TERMINATED, ExitCode.OK)
        assert "killing generation" in first.log.read_text(), "its log is there to be read"


def test_a_configuration_that_comes_with_the_roster_goes_before_the_one_that_is_mounted(worlds):
    first, second = worlds.pods
    before = worlds.start(first, second)
    first.until_step(before, 2)
    edited = stage_config(steps=9)
    after = worlds.start(
        first, second, reason="Edited", config_hash=edited.hash(), config=stage_config(), sent=edited.canonical_json()
    )
    ended = first.until_ended(after)
    assert (ended.state, ended.step) == ("succeeded", 9)
    assert first.progress().previous.state == "drained"


def test_a_roster_that_is_not_newer_is_ignored(worlds):
    first, second = worlds.pods
    before = worlds.roster(action="stop")
    generation = worlds.start(first, second)
    pid = first.until_step(generation, 1) and first.worker(generation, 0).pid
    for old in (worlds.roster(generation=generation), before):
        seen = first.file("../../etc/videotrain/roster/roster.json").stat().st_mtime_ns
        for pod in worlds.pods:
            pod.give(old)
        assert first.file("../../etc/videotrain/roster/roster.json").stat().st_mtime_ns != seen
        step = first.progress().current.step
        current = first.until_step(generation, step + 10)
        assert current.state == "running"
    assert first.worker(generation, 0).pid == pid
    assert first.progress().roster_generation == generation


def test_a_configuration_with_another_hash_is_refused(worlds):
    first, _second = worlds.pods
    generation = worlds.start(first, config_hash="0123456789abcdef")
    progress = first.until(lambda seen: seen.current.generation == generation)
    assert (progress.current.state, progress.current.exit.code) == ("failed", ExitCode.CONFIG)
    assert "0123456789abcdef" in progress.error
    assert first.descendants() == IDLE


def test_a_roster_that_cannot_be_read_is_told(worlds):
    first, _second = worlds.pods
    (first.root / "etc/videotrain/roster/roster.json").write_text('{"generation": "many"}')
    assert "generation" in first.until(lambda seen: seen.error is not None and "roster" in seen.error).error
    generation = worlds.start(action="stop")
    assert first.until(lambda seen: seen.roster_generation == generation).error is None


def test_metrics_are_prometheus_text_from_the_catalogue_and_count_over_generations(worlds, make_config):
    first, _second = worlds.pods
    for _ in range(2):
        generation = worlds.start(first, config=make_config(steps=7))
        first.until_ended(generation)
    families = list(text_string_to_metric_families(first.get("/metrics")))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }
    labels = [("namespace", "default"), ("pod", first.name), ("run", "tiny"), ("stage", "walk")]
    known = set(CATALOGUE) | {f"{name}_{part}" for name in CATALOGUE for part in ("bucket", "sum", "count")}
    assert {name for name, *_ in samples} <= known
    assert samples["videotrain_step", *labels] == 7
    assert samples["videotrain_samples_total", *labels] >= 28
    assert samples["videotrain_step_seconds_count", *labels] >= 14
    states = [value for (name, *_), value in samples.items() if name == "videotrain_worker_state"]
    assert sum(states) == 1
    assert not any(math.isnan(value) for value in samples.values())


def test_the_end_of_an_agent_drains_its_workers_also_when_the_whole_group_is_asked(worlds, make_config):
    first, second = worlds.pods
    generation = worlds.start(first, second)
    first.until_step(generation, 1)
    below = [process.pid for process in psutil.Process(second.process.pid).children(recursive=True)]
    os.killpg(second.process.pid, signal.SIGTERM)
    assert second.process.wait(timeout=30) == 0
    wait_for_death(below)
    # The world leaves together: the pod that was not asked has drained as well.
    assert first.until_ended(generation).state == "drained"


@pytest.mark.parametrize(("replaceable", "status"), [("", 0), ("1", ExitCode.TERMINATED)])
def test_an_agent_that_a_queue_may_replace_says_that_its_work_is_not_complete(
    tmp_path, monkeypatch, replaceable, status
):
    monkeypatch.setenv(ENV_REPLACEABLE, replaceable)
    worlds = Worlds(tmp_path, pods=1)
    try:
        (pod,) = worlds.pods
        generation = worlds.start(pod)
        pod.until_step(generation, 1)
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(timeout=60) == status
    finally:
        worlds.close()


def test_an_agent_whose_work_is_complete_says_so_to_a_queue(tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_REPLACEABLE, "1")
    worlds = Worlds(tmp_path, pods=1)
    try:
        (pod,) = worlds.pods
        generation = worlds.start(pod, config=stage_config(steps=2))
        assert pod.until_ended(generation).state == "succeeded"
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(timeout=60) == 0
    finally:
        worlds.close()


def test_the_sudden_death_of_an_agent_leaves_no_process(worlds):
    first, _second = worlds.pods
    generation = worlds.start(first)
    first.until_step(generation, 1)
    below = [process.pid for process in psutil.Process(first.process.pid).children(recursive=True)]
    assert len(below) == 4
    first.process.kill()
    wait_for_death(below)
