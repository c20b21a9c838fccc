"""Clips encoded by actors of a Ray cluster, of which a node is killed and one joins: the set of the local engine."""

from __future__ import annotations

import pytest
import torch
from support.noise_clips import curate_noise, encode_config, encode_rank, encoded_objects, first_autoencoder
from support.ray_nodes import disturbed

from videotrain_trainer.engines.ray_run import RayRun
from videotrain_trainer.engines.tables import TableBoard
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.encode_merge import Merge
from videotrain_trainer.tasks.encode_work import EncodeWork, find_ranges

pytestmark = pytest.mark.timeout(1800)
CLIPS = 60


def test_ray_makes_the_set_of_the_local_engine_with_a_node_killed_and_one_joined(make_member, nodes, tmp_path):
    place = (tmp_path / "store").as_uri()
    local, by_ray = encode_config(place, "local"), encode_config(place, "ray", "ray")
    store = ObjectStore.for_storage(local.storage)
    curate_noise(store, f"{place}/clips", tmp_path, CLIPS)
    first_autoencoder(store, local)
    encode_rank(local, tmp_path / "scratch", 0, 1, 1, 60.0)
    nodes.start()
    nodes.start()
    work, member = EncodeWork(by_ray, tmp_path / "cache", torch.device("cpu")), make_member(tmp_path / "store" / "ray")
    units = work.units()
    board = TableBoard(store, member, work.tables)
    engine = RayRun(member, store, work, find_ranges(units), nodes.cluster, board)
    deeds = [(CLIPS // 6, lambda: nodes.start(wait=False)), (CLIPS // 3, lambda: nodes.kill(1))]
    with disturbed(member, *deeds) as done:
        assert engine.run()
    assert done == [at for at, _ in deeds]
    assert member.reporter.sink.steps()[-1] == CLIPS
    assert Merge(member, work, units).run()
    assert encoded_objects(store, by_ray) == encoded_objects(store, local)
    nodes.close()
    assert nodes.left() == []
