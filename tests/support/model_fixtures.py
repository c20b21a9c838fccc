"""Published numeric fixtures of the models: JSON facts and float32 tensors."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.numerics import apart, in_float64
from support.threads import set_threads

from videotrain_trainer.networks.common import sinusoid
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
        # The bound lies beside the value: several times what float64, and another order of the sinusoid, move it by.
        worst = apart(value, expected)
        assert worst <= self.facts["tolerance"][name], f"{name} differs by {worst}"


def transformer(found, **changes):
    """The transformer of a fixture with its weights, float32; `changes` go into its configuration."""
    model = MMDiT(replace(MMDiTConfig.from_published(found.facts["config"]), **changes))
    load_weights(model, found.weights, found.weights.name)
    return model


INPUTS = {
    "img_BNI": "img",
    "img_ids_BN3": "img_ids",
    "txt_BLD": "txt",
    "txt_ids_BL3": "txt_ids",
    "timesteps_B": "timesteps",
    "pooled_BP": "y_vec",
    "cond_BNE": "cond",
    "guidance_B": "guidance",
}
"""Our names of a transformer's inputs to those in the fixtures."""


def inputs_of(found):
    """What the fixture gives its model."""
    return {ours: found[f"in.{theirs}"] for ours, theirs in INPUTS.items() if f"in.{theirs}" in found.tensors}


def forward(model, found):
    """The model's output for the fixture's inputs."""
    return model(**inputs_of(found))


def forward_in_float64(model, found):
    """The same in float64. The sinusoid stays in float32: its angles of up to 4000 round by more than all the rest."""
    copy, inputs = deepcopy(model), inputs_of(found)
    for part, name in ((copy.time_in, "timesteps_B"), (copy.guidance_in, "guidance_B")):
        if part is not None:
            waves = sinusoid(inputs[name]).double()
            part.register_forward_pre_hook(lambda _module, _args, waves=waves: (waves,))
    return in_float64(copy, **inputs)


@pytest.fixture(scope="session")
def fixture():
    loaded = {}
    return lambda name: loaded.setdefault(name, Fixture(name))


@pytest.fixture(scope="session")
def mmdit(fixture):
    """Builds the model of a fixture with its weights, float32."""
    return lambda name, **changes: transformer(fixture(name), **changes)


@pytest.fixture(autouse=True)
def threads():
    set_threads()
