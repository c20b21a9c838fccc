"""Two agents that live through all tests of the folder."""

import pytest
from support.agent_pods import INJECTED, Worlds, stage_config


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """Two agents that live through all tests of the session."""
    started = Worlds(tmp_path_factory.mktemp("worlds"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def injected():
    """Folder for PYTHONPATH with the task of small steps."""
    return INJECTED


@pytest.fixture(scope="session")
def make_config():
    return stage_config
