import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from videotrain_trainer.model.mmdit import MMDiT, MMDiTConfig
from videotrain_trainer.model.weights import load_weights

FOLDER = Path(__file__).parents[2] / "fixtures"


class Fixture:
    """A published numeric fixture: JSON facts and float32 tensors."""

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


@pytest.fixture(scope="session")
def fixture():
    loaded = {}
    return lambda name: loaded.setdefault(name, Fixture(name))


def mmdit_config(facts):
    return MMDiTConfig(
        in_channels=facts["in_channels"],
        context_dim=facts["context_in_dim"],
        pooled_dim=facts["vec_in_dim"],
        hidden_size=facts["hidden_size"],
        num_heads=facts["num_heads"],
        double_blocks=facts["depth"],
        single_blocks=facts["depth_single_blocks"],
        mlp_ratio=facts["mlp_ratio"],
        rope_axes=tuple(facts["axes_dim"]),
        patch_size=facts["patch_size"],
        cond_embed=facts["cond_embed"],
        guidance_embed=facts["guidance_embed"],
    )


@pytest.fixture(scope="session")
def mmdit(fixture):
    """Builds the model of a fixture with its weights, float32."""

    def build(name):
        found = fixture(name)
        model = MMDiT(mmdit_config(found.facts["config"]))
        load_weights(model, found.weights, name)
        return model

    return build


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
