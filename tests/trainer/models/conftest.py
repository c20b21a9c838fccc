import pytest
import torch
from support.model_fixtures import Fixture, transformer


@pytest.fixture(scope="session")
def fixture():
    loaded = {}
    return lambda name: loaded.setdefault(name, Fixture(name))


@pytest.fixture(scope="session")
def mmdit(fixture):
    """Builds the model of a fixture with its weights, float32."""
    return lambda name, **changes: transformer(fixture(name), **changes)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
