"""Two engines as one: the autoencoder and its discriminator, each with its own optimizer, in one checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from videotrain_api.resource.stages import AdversarialPhase, LearningRatePiece
from videotrain_trainer.parallel.build import shard_model
from videotrain_trainer.parallel.engine import Engine, EngineOptions
from videotrain_trainer.parallel.shards import Shards
from videotrain_trainer.reconstruction.adaptive_weight import AdversarialLoss
from videotrain_trainer.sharded_state import Piece, Quantity, pack, packed_length
from videotrain_trainer.worker.stage_context import World

PREFIX = "discriminator."
"""Of the discriminator's parameters in a checkpoint."""


@runtime_checkable
class HasDiscriminator(Protocol):
    """An objective that may train a discriminator beside its model."""

    @property
    def discriminator(self) -> nn.Module | None:
        """float32, on the CPU; None if there is none."""

    @property
    def adversarial(self) -> AdversarialPhase | None:
        """When and how it is trained."""


def build_engine(objective: Any, options: EngineOptions, world: World) -> Engine | AdversarialEngine:
    """The engine of an objective: of its model alone, or of its model and discriminator. Collective.

    Raises:
        ConfigError: the options exclude each other.
    """
    joint = isinstance(objective, HasDiscriminator)
    discriminator, phase = (objective.discriminator, objective.adversarial) if joint else (None, None)
    if discriminator is None or phase is None:
        return shard_model(objective.module, options, world)
    engine = shard_model(objective.module, options, world)
    rate = [LearningRatePiece(value=phase.learning_rate)]
    critic = replace(
        options,
        optimizer=options.optimizer.model_copy(update={"learning_rate": rate, "warmup_steps": 0}),
        keep_average=False,
    )
    return AdversarialEngine(engine, shard_model(discriminator, critic, world), phase)


class AdversarialEngine:
    """An autoencoder's engine that also trains a discriminator; see `Engine` for the methods.

    Args:
        model: engine of the autoencoder.
        critic: engine of the discriminator.
        phase: when and how fast the discriminator learns.
    """

    def __init__(self, model: Engine, critic: Engine, phase: AdversarialPhase) -> None:
        self._model, self.critic, self._phase = model, critic, phase
        self.dtype, self.in_step = model.dtype, model.in_step
        self.critic_norm = critic.critic_norm
        """Global gradient norm of the discriminator in the last step; 0 before its phase."""
        self.shards = JointShards(model.shards, critic.shards, phase.start_step)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The autoencoder's forward pass."""
        return self._model(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The autoencoder, whose parameters the checkpoint holds."""
        return self._model.module

    @property
    def active(self) -> bool:
        """Whether the discriminator takes part in the step that comes next."""
        return self.shards.step >= self._phase.start_step

    def backward(self, loss: Tensor | AdversarialLoss, last: bool = True) -> None:
        """Add the gradients of a weighed micro-batch loss to both models."""
        if isinstance(loss, AdversarialLoss):
            self._model.backward(loss.autoencoder, last)
            self.critic.backward(loss.discriminator, last)
        else:
            self._model.backward(loss, last)

    def step(self, learning_rate: float) -> Tensor:
        """Update both models; the discriminator only once its phase has begun.

        Returns:
            Global gradient norm of the autoencoder before clipping.
        """
        active = self.active
        norm = self._model.step(learning_rate)
        if active:
            self.critic_norm = self.critic.step(self._phase.learning_rate)
        self.shards.step += 1
        return norm

    def around_update(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call these when the optimizer begins and ends to update the autoencoder's weights."""
        self._model.around_update(before, after)

    def refresh(self) -> None:
        """Make the weights that the models compute with follow the master weights; after loading."""
        self._model.refresh()
        self.critic.refresh()


class JointShards:
    """The state of both models on one rank, for one checkpoint.

    The discriminator has no moving average; where a checkpoint wants one, its weights stand in, so that every quantity
    is packed alike.

    Args:
        model: of the autoencoder.
        critic: of the discriminator.
        start_step: steps that the discriminator's optimizer lags behind.
    """

    def __init__(self, model: Shards, critic: Shards, start_step: int) -> None:
        self._model, self._critic, self._start = model, critic, start_step
        self.step = 0
        """Optimizer steps that are done."""
        self.shapes = {**model.shapes, **{PREFIX + name: shape for name, shape in critic.shapes.items()}}
        self.device, self.quantities = model.device, model.quantities
        self.masters, self.averages = model.masters, model.averages
        self.saved, self.held = _joined(model.saved, critic.saved), _joined(model.held, critic.held)

    def read(self, quantity: Quantity, out: Tensor) -> None:
        """Copy the `saved` elements into a float32 vector on the host."""
        split = packed_length(self._model.saved)
        self._model.read(quantity, out[:split])
        self._critic.read("master" if quantity == "ema" else quantity, out[split:])

    def write(self, quantity: Quantity, values: Tensor, start: int = 0) -> None:
        """Take `held` elements, from `start` of the packed vector on, from a vector on the host."""
        split = packed_length(self._model.held)
        own = max(0, split - start)
        self._model.write(quantity, values[:own], start)
        if quantity != "ema":
            self._critic.write(quantity, values[own:], max(0, start - split))

    def set_optimizer_step(self, step: int) -> None:
        """Tell both optimizers how many steps their moments have seen."""
        self.step = step
        self._model.set_optimizer_step(step)
        self._critic.set_optimizer_step(max(0, step - self._start))


def _joined(model: Sequence[Piece], critic: Sequence[Piece]) -> list[Piece]:
    own = [(piece.parameter, piece.start, piece.length) for piece in model]
    return pack(own + [(PREFIX + piece.parameter, piece.start, piece.length) for piece in critic])


def without_discriminator(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The parameters of a checkpoint that belong to the model."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(PREFIX)}


def seeded_on(device: torch.device, seed: int) -> torch.Generator:
    """A generator on a device."""
    return torch.Generator(device).manual_seed(seed)
