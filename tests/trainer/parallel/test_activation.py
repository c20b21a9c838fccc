from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import Bucket, ParallelLayout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import build_transformer, initialize
from videotrain_trainer.parallel.activation import transformer_blocks

pytestmark = pytest.mark.numeric

MODEL, AUTOENCODER = TRANSFORMERS["mmdit-tiny-dcae"], AUTOENCODERS["dc-ae-tiny"]
TEXT = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=32)
ALL = ParallelLayout()
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def layout(double: int, single: int) -> ParallelLayout:
    return ParallelLayout(recompute="full", checkpoint_double_blocks=double, checkpoint_single_blocks=single)


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


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function.overloadpacket).removeprefix("aten.")] += 1
        return function(*args, **(kwargs or {}))

    @property
    def products(self):
        return self.counts["mm"] + self.counts["addmm"]


def gradients(model, inputs):
    model.zero_grad()
    model(*inputs).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def backward_operations(model, inputs):
    model.zero_grad()
    loss = model(*inputs).square().mean()
    with Operations() as found:
        loss.backward()
    return found


@pytest.mark.parametrize(("double", "single"), [(1, 0), (0, 2), (2, 2), (None, None)])
def test_recomputed_blocks_have_the_same_gradients_and_names(model, inputs, double, single):
    plain, names = gradients(model, inputs), list(model.state_dict())
    transformer_blocks(model, layout(double, single)).recompute("full")
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model, inputs), strict=True))
    assert list(model.state_dict()) == names


def test_selective_recompute_has_the_same_gradients_and_repeats_nothing_dear(model, inputs):
    plain, without = gradients(model, inputs), backward_operations(model, inputs)
    transformer_blocks(model, ALL).recompute("selective")
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model, inputs), strict=True))
    again = backward_operations(model, inputs)
    assert (again.products, again.counts[ATTENTION]) == (without.products, 0)
    # What is cheap does run again.
    assert again.counts["native_layer_norm"] == 2 * 4 + 2 and without.counts["native_layer_norm"] == 0


def test_full_recompute_runs_products_and_attention_again(model, inputs):
    without = backward_operations(model, inputs)
    transformer_blocks(model, ALL).recompute("full")
    again = backward_operations(model, inputs)
    assert again.products > without.products
    assert again.counts[ATTENTION] == 4


def test_only_the_first_blocks_asked_for_run_twice(model, inputs):
    transformer_blocks(model, layout(1, 2)).recompute("full")
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


def test_a_policy_replaces_the_one_before_it(model, inputs):
    blocks, plain = transformer_blocks(model, ALL), backward_operations(model, inputs)
    for policy in ("full", "selective", "full", "none"):
        blocks.recompute(policy)
    assert backward_operations(model, inputs).counts == plain.counts


def test_a_row_of_the_bucket_table_overrides_the_layout():
    row = Bucket(resolution="64px", frames=8, batch_size=1)
    own = row.model_copy(update={"recompute": "none"})
    selective = ParallelLayout(recompute="selective")
    assert [selective.recompute_of(r) for r in (row, own)] == ["selective", "none"]


@pytest.mark.parametrize(("double", "single", "field"), [(3, 0, "Double"), (0, 9, "Single")])
def test_more_blocks_than_the_model_has_are_refused(model, double, single, field):
    with pytest.raises(ConfigError, match=rf"checkpoint{field}Blocks: {max(double, single)}, .*allowed: 0 to 2"):
        transformer_blocks(model, layout(double, single))
