import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import assert_as_exact, in_float64
from torch import nn

from videotrain_trainer.networks.losses.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_loss,
    generator_loss,
)

pytestmark = pytest.mark.numeric


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**changes):
    module = Discriminator(DiscriminatorConfig(filters=4, layers=2, **changes))
    module.initialize(7)
    return module


def test_the_published_discriminator_has_the_published_sizes():
    with torch.device("meta"):
        module = Discriminator(DiscriminatorConfig())
        (logits,) = module(torch.empty(1, 3, 32, 256, 256), generator=generator())
    assert logits.shape == (1, 1, 8, 8, 8)
    convs = [layer for layer in module.main if isinstance(layer, nn.Conv3d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 512, 512, 1]
    assert [conv.stride for conv in convs] == [(2, 2, 2), (2, 2, 2)] + [(1, 2, 2)] * 3 + [(1, 1, 1)] * 2
    assert [conv.bias is not None for conv in convs] == [True, False, False, False, False, False, True]
    assert sum(isinstance(layer, nn.BatchNorm3d) for layer in module.main) == 5
    assert sum(parameter.numel() for parameter in module.parameters()) == 18_823_553


def test_the_discriminator_equals_its_layers_in_a_row_by_hand():
    module = small(dropout=0.0)
    clip = torch.randn(2, 3, 4, 16, 16, generator=generator(1))
    x = clip
    convs = [layer for layer in module.main if isinstance(layer, nn.Conv3d)]
    norms = [layer for layer in module.main if isinstance(layer, nn.BatchNorm3d)]
    x = F.leaky_relu(F.conv3d(x, convs[0].weight, convs[0].bias, 2, 1), 0.2)
    for conv, norm, stride in zip(convs[1:3], norms, [2, 1], strict=True):
        x = F.conv3d(x, conv.weight, None, stride, 1)
        mean, spread = x.mean((0, 2, 3, 4), keepdim=True), x.var((0, 2, 3, 4), keepdim=True, unbiased=False)
        x = (x - mean) / (spread + 1e-5).sqrt() * norm.weight.view(1, -1, 1, 1, 1) + norm.bias.view(1, -1, 1, 1, 1)
        x = F.leaky_relu(x, 0.2)
    expected = F.conv3d(x, convs[3].weight, convs[3].bias, 1, 1)
    (logits,) = module(clip, generator=generator())
    assert_as_exact(logits, expected, in_float64(module, clip, generator=generator())[0])


def test_dropout_depends_on_the_generator_alone_and_keeps_the_mean():
    module = small(dropout=0.5)
    clip = torch.randn(1, 3, 4, 32, 32, generator=generator(1))
    torch.manual_seed(1)
    (first,) = module(clip, generator=generator(3))
    torch.manual_seed(2)
    (again,) = module(clip, generator=generator(3))
    (other,) = module(clip, generator=generator(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    draws = torch.stack([module(clip, generator=generator(seed))[0].mean() for seed in range(200)])
    (whole,) = small(dropout=0.0)(clip, generator=generator())
    spread = draws.std().item() / len(draws) ** 0.5
    # One mean in 16,000 is further off than four times its spread.
    assert draws.mean().item() == pytest.approx(whole.mean().item(), abs=4 * spread)


def test_clips_that_are_scored_together_do_not_meet_in_a_norm():
    module = small(dropout=0.0)
    real, fake = torch.randn(1, 3, 4, 16, 16), 5 * torch.randn(1, 3, 4, 16, 16)
    together = module(real, fake, generator=generator())
    assert torch.equal(together[0], module(real, generator=generator())[0])
    assert torch.equal(together[1], module(fake, generator=generator())[0])


def test_a_picture_is_scored_and_nothing_is_remembered_between_batches():
    module = small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    (logits,) = module(torch.randn(1, 3, 1, 16, 16), generator=generator())
    assert logits.shape == (1, 1, 1, 4, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_initial_weights_have_the_published_spread_and_depend_on_the_seed():
    first, again, other = (Discriminator(DiscriminatorConfig(filters=16, layers=3)) for _ in range(3))
    for module, seed in ((first, 1), (again, 1), (other, 2)):
        module.initialize(seed)
    conv = first.main[5].weight
    assert conv.std().item() == pytest.approx(0.02, rel=0.05)
    norm = first.main[3]
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not norm.bias.any()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(conv, other.main[5].weight)


def test_losses_are_those_computed_by_hand():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-0.5, -3.0])
    # hinge: ((1 - 0.5) + 0) / 2 = 0.25 and ((1 - 0.5) + 0) / 2 = 0.25
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx(0.25)
    assert generator_loss("hinge", fake).item() == pytest.approx(1.75)
    soft = [math.log1p(math.exp(-value)) for value in (0.5, 2.0, 0.5, 3.0)]
    assert discriminator_loss("vanilla", real, fake).item() == pytest.approx(sum(soft) / 4)
    fooled = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(3.0))) / 2
    assert generator_loss("vanilla", fake).item() == pytest.approx(fooled)


def test_bfloat16_gradients_on_the_cpu_are_those_of_float32_rounded():
    exact, rounded = small(dropout=0.0), small(dropout=0.0).bfloat16()
    clip = torch.randn(1, 3, 4, 16, 16, generator=generator(2))
    for module, dtype in ((exact, torch.float32), (rounded, torch.bfloat16)):
        module(clip.to(dtype), generator=generator())[0].float().square().mean().backward()
    pairs = zip(exact.parameters(), rounded.parameters(), strict=True)
    errors = sorted(float((a.grad - b.grad.float()).norm() / a.grad.norm()) for a, b in pairs)
    assert errors[len(errors) // 2] < 0.3
    assert errors[-1] < 1.0  # a wrong kernel gives 1e35
