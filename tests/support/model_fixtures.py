"""Published numeric fixtures of the models: JSON facts and float32 tensors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import load_weights

FOLDER = Path(__file__).parents[1] / "fixtures"


class Fixture:
    """A published numeric fixture."""

    def __init__(self, name):
        self.facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.weights = FOLDER / f"{name}.weights.safetensors"
        path = FOLDER / f"{name}.safetensors"
        tensors = load_file(path) if path.exists() else {}
        self.tensors = {key: tensor.float() for key, tensor in tensors.items()}

    def __getitem__(self, name):
        return self.tensors[name]

    def check(self, name, value):
        expected = self.tensors[name]
        assert value.shape == expected.shape, f"{name}: {tuple(value.shape)} instead of {tuple(expected.shape)}"
        worst = (value - expected).abs().max().item()
        assert worst <= self.facts["tolerance"][name], f"{name} differs by {worst}"


def transformer(found, **changes):
    """The transformer of a fixture with its weights, float32; `changes` go into its configuration."""
    model = MMDiT(replace(MMDiTConfig.from_published(found.facts["config"]), **changes))
    load_weights(model, found.weights, found.weights.name)
    return model


def forward(model, found):
    """The model's output for the fixture's inputs."""
    given = {
        "img_BNI": "img",
        "img_ids_BN3": "img_ids",
        "txt_BLD": "txt",
        "txt_ids_BL3": "txt_ids",
        "timesteps_B": "timesteps",
        "pooled_BP": "y_vec",
        "cond_BNE": "cond",
        "guidance_B": "guidance",
    }
    return model(**{ours: found[f"in.{theirs}"] for ours, theirs in given.items() if f"in.{theirs}" in found.tensors})


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
