from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.ray_nodes import Nodes, Records

from videotrain_trainer.engines.interface import Member
from videotrain_trainer.worker.stage_reporter import StageReporter


@pytest.fixture(scope="session")
def make_member(tmp_path_factory) -> Callable[..., Member]:
    """Worlds of one process: where their output lies, which generation they are, and when they are to leave."""

    def make(place: Path, generation: int = 1, leave: Callable[[], bool] = lambda: False) -> Member:
        return Member(
            prefix=place.as_uri(),
            generation=generation,
            rank=0,
            size=1,
            saved_step=0,
            grace_seconds=20,
            asked_to_leave=leave,
            reporter=StageReporter(sink=Records(), generation=generation, stage="stage", config_hash=""),
            scratch=tmp_path_factory.mktemp("scratch"),
        )

    return make


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Nodes]:
    """Without any node, before the test starts one; their workers find what tests share."""
    folders = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    found = Nodes()
    yield found
    found.close()
