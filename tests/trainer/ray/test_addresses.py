"""Clusters that exist, by either kind of address."""

from __future__ import annotations

import pytest
from support.ray_nodes import HOST, Squares

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.engines.interface import Unit, cut_ranges
from videotrain_trainer.engines.ray_node import Cluster, free_port
from videotrain_trainer.engines.ray_run import RayRun, connected
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.storage import ObjectStore

pytestmark = pytest.mark.timeout(900)
READING = "ReadUnitSource"
"""In the names of processes of tasks that read."""


def squares(member, cluster) -> list[int]:
    store = ObjectStore.for_storage(Storage(uri="s3://unused"))
    units = [Unit(f"u{number:03d}", 1, {"number": number}) for number in range(100)]
    engine = RayRun(member, store, Squares(), cut_ranges(units), cluster)
    assert engine.run()
    return [result["square"] for result in engine.board.results(engine.names())]


def test_a_client_and_a_process_on_a_node_have_the_units_done(make_member, nodes, tmp_path):
    nodes.start()
    for name, cluster in (("node", nodes.cluster), ("client", nodes.client)):
        assert squares(make_member(tmp_path / name), cluster) == [number**2 for number in range(100)]


def test_the_head_drives_so_that_no_other_node_is_waited_for_once_it_is_lost(nodes):
    for _ in range(3):
        nodes.start()
    with connected(nodes.cluster) as start:
        drives = [start(Squares()) for _ in range(3)]
        for drive in drives:
            assert drive.poll(0)["trouble"] == ""
        assert set(nodes.holding("Drive")) == {0}


def test_units_are_read_where_the_drive_is_and_not_on_a_node_that_may_be_lost_without_it(nodes):
    """Ray spreads tasks that read. One that began anew elsewhere would be given other units than the first time."""
    for _ in range(3):
        nodes.start(cpus=2)
    with connected(nodes.cluster) as start:
        drives = [start(Squares()) for _ in range(4)]
        while len(found := nodes.holding(READING)) < len(drives):
            assert [drive.poll(0.2)["trouble"] for drive in drives] == [""] * len(drives)
        assert found == [0] * len(drives)


class Elsewhere:
    """Work that nodes of the cluster cannot read, as that of another version."""

    units_at_once, gpus = 1, 0

    def __reduce__(self):
        return __import__, ("a_module_of_another_version",)


def test_nodes_that_cannot_read_the_work_are_told_of_once(make_member, nodes, tmp_path):
    nodes.start()
    store = ObjectStore.for_storage(Storage(uri="s3://unused"))
    units = cut_ranges([Unit("u", 1, {"number": 1})])
    with pytest.raises(ConfigError, match=r"(?s)need this version of the trainer.*a_module_of_another_version"):
        RayRun(make_member(tmp_path), store, Elsewhere(), units, nodes.cluster).run()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_answers_the_address_is_named(make_member, tmp_path, scheme):
    address = f"{scheme}{HOST}:{free_port(HOST)}"
    with pytest.raises(ConfigError, match=f"no cluster at {address}"):
        squares(make_member(tmp_path), Cluster(address, ""))
