import pytest
import torch

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import build_transformer, initialize
from videotrain_trainer.parallel.activation import recompute_blocks

pytestmark = pytest.mark.numeric

MODEL, AUTOENCODER = TRANSFORMERS["mmdit-tiny-dcae"], AUTOENCODERS["dc-ae-tiny"]
TEXT = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=32)


def layout(double: int, single: int) -> ParallelLayout:
    return ParallelLayout(checkpoint_double_blocks=double, checkpoint_single_blocks=single)


@pytest.fixture
def model():
    built = build_transformer(MODEL, AUTOENCODER, TEXT)
    initialize(built, 1)
    return built


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    args = (torch.randn(1, 8, 64), torch.zeros(1, 8, 3), torch.randn(1, 4, 32), torch.zeros(1, 4, 3))
    return (*args, torch.tensor([0.5]), torch.randn(1, 16), torch.randn(1, 8, 65))


def gradients(model, inputs):
    model.zero_grad()
    model(*inputs).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("double", "single"), [(1, 0), (0, 2), (2, 2)])
def test_recomputed_blocks_have_the_same_gradients_and_names(model, inputs, double, single):
    plain, names = gradients(model, inputs), list(model.state_dict())
    recompute_blocks(model, layout(double, single))
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model, inputs), strict=True))
    assert list(model.state_dict()) == names


def test_only_the_first_blocks_asked_for_run_twice(model, inputs):
    recompute_blocks(model, layout(1, 2))
    blocks, runs = [*model.double_blocks, *model.single_blocks], [0] * 4

    def count(index):
        def hook(*_):
            runs[index] += 1

        return hook

    for index, block in enumerate(blocks):
        inner = block.img_mod if index < 2 else block.modulation
        inner.register_forward_hook(count(index))
    gradients(model, inputs)
    assert runs == [2, 1, 2, 2]


@pytest.mark.parametrize(("double", "single", "field"), [(3, 0, "Double"), (0, 9, "Single")])
def test_more_blocks_than_the_model_has_are_refused(model, double, single, field):
    with pytest.raises(ConfigError, match=rf"checkpoint{field}Blocks: {max(double, single)}, .*allowed: 0 to 2"):
        recompute_blocks(model, layout(double, single))
