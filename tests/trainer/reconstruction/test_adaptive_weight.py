"""The adaptive weight against numbers computed by hand, and the cut graph against torch's own gradients."""

import pytest
import torch
import torch.nn.functional as F
from support.numerics import assert_near
from support.perceptual_weights import small_lpips

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.resource.stages import AdversarialPhase, PerceptualLoss
from videotrain_trainer.networks.build import build_autoencoder, initialize
from videotrain_trainer.networks.losses.discriminator import generator_loss
from videotrain_trainer.networks.losses.perceptual import frames_of
from videotrain_trainer.reconstruction.adaptive_weight import adaptive_weight, last_layer_norm
from videotrain_trainer.reconstruction.losses import (
    LAST_LAYER,
    AdversarialLosses,
    ReconstructionLoss,
    build_discriminator,
)

pytestmark = pytest.mark.numeric

EPS = torch.finfo(torch.float32).eps


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_the_weight_is_the_published_one_brought_to_the_scale_of_a_mean():
    # Published: norms 12 (a sum over 6 values) and 3 give 12 / 3.0001 = 3.99987; a mean has a sixth of both.
    assert adaptive_weight(scalar(2.0), scalar(3.0), 6).item() == pytest.approx(12 / 3.0001 / 6)


def test_the_weight_is_bounded_as_published():
    # 196,608 values per frame of 256 x 256: a norm of 1 is 196,608 there, over 1 + 1e-4 it passes the bound of 1e4.
    assert adaptive_weight(scalar(1.0), scalar(1.0), 196_608).item() == pytest.approx(1e4 / 196_608)
    assert adaptive_weight(scalar(0.0), scalar(0.0), 6).item() == 0.0
    assert adaptive_weight(scalar(1e-6), scalar(0.0), 10).item() == pytest.approx(1e-5 / 1e-4 / 10)


def test_the_norm_at_the_last_layer_is_the_one_computed_by_hand():
    # One output channel, kernel of 1: the gradient of weight c is the sum over positions of input c times gradient.
    inputs = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(1, 2, 1, 1, 2)
    gradient = torch.tensor([2.0, 1.0]).view(1, 1, 1, 1, 2)
    norm = last_layer_norm(inputs, torch.Size((1, 2, 1, 1, 1)), gradient)
    assert norm.item() == pytest.approx((4.0**2 + 5.0**2) ** 0.5)


class Critic:
    """A discriminator in the place of its engine."""

    dtype = torch.float32

    def __init__(self, module):
        self.module = module

    def __call__(self, *clips, generator):
        return self.module(*clips, generator=generator)


class Pair:
    """Both models without engines."""

    dtype = torch.float32

    def __init__(self, critic):
        self.critic = Critic(critic)


@pytest.fixture
def world():
    phase = AdversarialPhase(weight=0.05, filters=4, layers=2, dropout=0.0)
    model = build_autoencoder(AUTOENCODERS["dc-ae-tiny"])
    initialize(model, 3)
    critic = build_discriminator(phase)
    critic.initialize(4)
    perceptual = PerceptualLoss(weights="file:///w", weight=0.5)
    distance = small_lpips()
    losses = AdversarialLosses(model, ReconstructionLoss(perceptual, distance), phase, seed=1)
    video = torch.rand(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return model, critic, distance, losses, video


def expected_losses(model, critic, distance, video):
    """Both losses as one would write them without cutting the graph."""
    out = model(video)
    reconstruction = (out - video).abs().mean() + 0.5 * distance(frames_of(video), frames_of(out)).mean()
    (fake,) = critic(out, generator=torch.Generator())
    return out, reconstruction, generator_loss("hinge", fake)


def test_the_gradients_are_those_of_the_losses_written_out(world):
    model, critic, distance, losses, video = world
    _, reconstruction, adversarial = expected_losses(model, critic, distance, video)
    last = model.get_parameter(f"{LAST_LAYER}.conv.weight")
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    pixels = 3 * 32 * 32
    weight = 0.05 * min(float(pixels * norms[0] / (norms[1] + 1e-4)), 1e4) / pixels
    parameters = list(model.parameters())
    expected = torch.autograd.grad(reconstruction + weight * adversarial, parameters)
    loss = losses(Pair(critic), model(video), video, "micro_batch")
    found = torch.autograd.grad(loss.autoencoder, parameters)
    assert loss.detach().item() == pytest.approx(reconstruction.item(), rel=8 * EPS)  # two means, added
    assert weight > 0
    # The cut graph adds the gradients in another order, through some forty layers whose norms divide by small numbers.
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, 1000)


def test_the_autoencoder_learns_nothing_from_the_loss_of_the_critic_and_the_critic_nothing_from_being_fooled(world):
    model, critic, _, losses, video = world
    loss = losses(Pair(critic), model(video), video, "micro_batch")
    loss.autoencoder.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in critic.parameters())
    model.zero_grad()
    loss.discriminator.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_weighing_a_loss_weighs_both_models_and_what_is_reported(world):
    model, critic, _, losses, video = world
    loss = losses(Pair(critic), model(video), video, "micro_batch")
    half = loss * 0.5
    assert half.discriminator.item() == pytest.approx(loss.discriminator.item() / 2)
    assert half.autoencoder.item() == pytest.approx(loss.autoencoder.item() / 2)
    assert half.detach().item() == pytest.approx(loss.detach().item() / 2)


def test_dropout_of_a_micro_batch_depends_on_its_name_alone(world):
    model, *_, video = world
    phase = AdversarialPhase(filters=4, layers=2, dropout=0.5)
    critic = build_discriminator(phase)
    critic.initialize(4)
    losses = AdversarialLosses(model, ReconstructionLoss(None, None), phase, seed=1)
    found = [losses(Pair(critic), model(video), video, name).discriminator.item() for name in ("a", "b", "a")]
    assert found[0] == found[2] != found[1]


def test_without_a_perceptual_loss_the_reconstruction_is_the_absolute_error(world):
    *_, video = world
    out = video * 0.5
    assert ReconstructionLoss(None, None)(out, video).item() == pytest.approx(F.l1_loss(out, video).item())
