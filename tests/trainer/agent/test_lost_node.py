"""A real training stage under agents: a node dies, the rest goes on from the checkpoint, a new node joins."""

import contextlib

import psutil
from support.agent_pods import Worlds
from support.training_worlds import make_latents, train_config

from videotrain_api.records import GenerationProgress
from videotrain_api.resource.trainrun import CheckpointPolicy, PeerCopies
from videotrain_api.vocabulary import ExitCode


def saved_steps(progress: GenerationProgress):
    return [point.step for point in progress.saved]


def test_training_goes_on_without_a_lost_node_and_with_its_replacement(tmp_path):
    config = train_config(tmp_path, make_latents(tmp_path), steps=4000)
    with contextlib.closing(Worlds(tmp_path / "pods", injected=None)) as worlds:
        first, second = worlds.pods
        generation = worlds.start(first, second, config=config)
        first.until(lambda seen: seen.current is not None and seen.current.saved)
        below = psutil.Process(second.process.pid).children(recursive=True)
        second.process.kill()
        _, alive = psutil.wait_procs(below, timeout=30)
        assert not alive
        lost = first.until_state(generation, "failed")
        assert lost.exit.code == ExitCode.PEER_LOST

        generation = worlds.start(first, config=config, to=[first], reason="NodeLost", drain=False)
        shrunk = first.until_step(generation, lost.step + 4)
        assert shrunk.world_size == 2
        assert shrunk.resumed_step in saved_steps(lost)

        third = worlds.replace(second)
        generation = worlds.start(first, third, config=config, reason="Grow")
        grown = first.until(lambda seen: seen.current.generation == generation and seen.current.first_step_at).current
        drained = first.progress().previous
        assert drained.state == "drained"
        assert grown.world_size == 4
        assert grown.resumed_step == drained.step
        assert third.until_state(generation, "running").resumed_step == drained.step


def test_with_copies_in_memory_a_lost_node_costs_no_more_steps_than_lie_between_two_of_them(tmp_path):
    policy = CheckpointPolicy(every_steps=1_000_000, peer_copies=PeerCopies(every_steps=2))
    config = train_config(tmp_path, make_latents(tmp_path), steps=4000, checkpoint=policy)
    with contextlib.closing(Worlds(tmp_path / "pods", injected=None)) as worlds:
        first, second = worlds.pods
        generation = worlds.start(first, second, config=config)
        first.until_step(generation, 5)
        below = psutil.Process(second.process.pid).children(recursive=True)
        second.process.kill()
        _, alive = psutil.wait_procs(below, timeout=30)
        assert not alive
        lost = first.until_state(generation, "failed")
        assert lost.saved == []

        generation = worlds.start(first, config=config, to=[first], reason="NodeLost", drain=False)
        resumed = first.until(lambda seen: seen.current.generation == generation and seen.current.saved).current
        assert lost.step - 2 <= resumed.resumed_step <= lost.step + 1
        assert saved_steps(resumed)[0] == resumed.resumed_step  # what came from memory is stored at once
