"""How long a node of a Ray cluster is waited for."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from videotrain_trainer.engines import ray_node
from videotrain_trainer.engines.ray_node import STARTED_SECONDS, RayNode
from videotrain_trainer.errors import TrainerError


@pytest.fixture
def node(monkeypatch) -> RayNode:
    """One whose process runs and says nothing, on a clock of which each look takes a third of the patience."""
    clock = count(0, STARTED_SECONDS / 3)
    monkeypatch.setattr(ray_node, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    found = RayNode.__new__(RayNode)
    found._process = SimpleNamespace(poll=lambda: None)
    return found


def test_a_node_that_gets_on_is_waited_for_however_long_it_takes(node):
    looks = count()
    node._sign_of_life = lambda: (0, float(next(looks)))
    node.said = lambda: "Ray runtime started" if next(looks) > 60 else ""
    node.wait()


def test_a_node_that_stands_still_is_given_up(node):
    node._sign_of_life, node.said = (lambda: (7, 1.0)), (lambda: "nothing new")
    with pytest.raises(TrainerError, match=r"ray start does not come up:\nnothing new"):
        node.wait()
