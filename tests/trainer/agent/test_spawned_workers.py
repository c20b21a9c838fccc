"""Where forking would not be sound, workers are started the slow way."""

import contextlib

from support.agent_pods import AgentPod, Worlds, stage_config


def test_a_fork_server_with_a_second_thread_spawns_its_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:true")  # Arrow's allocator starts a thread
    with contextlib.closing(Worlds(tmp_path, pods=1)) as worlds:
        first: AgentPod = worlds.pods[0]
        generation = worlds.start(first, config=stage_config(steps=3))
        assert first.until_ended(generation).state == "succeeded"
        assert "workers are spawned, not forked: threads" in first.log.read_text()
