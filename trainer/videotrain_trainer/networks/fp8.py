"""Rowwise FP8 products for the large linear layers of an MMDiT's blocks.

Each row of a factor has a scale of its own (its largest value becomes FP8's largest), so one large token costs the
others no precision. The output and the input's gradient are FP8 products; the weight's gradient stays in the layer's
data type, since it is summed over all tokens and goes straight into the optimizer. Weights are kept as they are:
parameter names, checkpoints and master weights do not depend on it.

Shape letters: M rows (samples times tokens), F features of a layer's input, O of its output, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from videotrain_api.capabilities import FP8_MULTIPLE
from videotrain_api.resource.stages import TrainTask
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.lora.base import block_layers
from videotrain_trainer.networks.lora.layers import LoraLinear
from videotrain_trainer.networks.mmdit.model import MMDiT, Modulation
from videotrain_trainer.networks.quantized import rowwise

LEAST_ROWS = 1024
"""Fewer rows are multiplied as they are: scaling and casting take longer than such a product saves."""
LEAST_CAPABILITY = (8, 9)
"""Of a GPU with FP8 tensor cores: Ada, Hopper and newer."""


class Fp8Linear(nn.Linear):
    """A linear layer that multiplies in FP8."""

    least_rows: int

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) to (..., O), in the data type of `x`."""
        if x.numel() < self.least_rows * self.in_features:
            return F.linear(x, self.weight, self.bias)
        out: Tensor = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class Fp8LoraLinear(LoraLinear, Fp8Linear):
    """An adapted layer whose frozen part multiplies in FP8."""


class _Product(torch.autograd.Function):
    """x times the transposed weight. The weight is scaled anew in the backward pass, along its other side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OF: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_OF)
        return rowwise_product(x.flatten(0, -2), weight_OF).reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight_OF = ctx.saved_tensors
        gradient_MO = gradients[0].flatten(0, -2)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = rowwise_product(gradient_MO, weight_OF.t()).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            of_weight = gradient_MO.t() @ x.flatten(0, -2)
        return of_x, of_weight


def rowwise_product(a_MC: Tensor, b_RC: Tensor) -> Tensor:
    """(M, R): `a_MC` times the transposed `b_RC`, each row of both in FP8 with its own scale, summed in float32."""
    a8_MC, a_M1 = rowwise(a_MC)
    b8_RC, b_R1 = rowwise(b_RC)
    return torch._scaled_mm(a8_MC, b8_RC.t(), scale_a=a_M1, scale_b=b_R1.t(), out_dtype=a_MC.dtype)


def use_fp8(model: MMDiT, least_rows: int = LEAST_ROWS) -> list[str]:
    """Let the large linear layers of the blocks multiply in FP8: queries, keys, values, projections and feed-forward.

    What has one row a sample (modulation), the layers at the latents and text features, and an adapter's own small ones
    stay as they are.

    Args:
        model: adapted already, if it is to be; it keeps its parameters and their names.
        least_rows: of samples times tokens; with fewer a layer multiplies as it is.

    Returns:
        Names of those layers.

    Raises:
        ConfigError: a layer's sides are no multiples of 16.
    """
    layers = dict(_large_layers(model))
    for name, layer in layers.items():
        if layer.in_features % FP8_MULTIPLE or layer.out_features % FP8_MULTIPLE:
            raise ConfigError(
                f"train.fp8: true, but layer {name} has {layer.in_features} x {layer.out_features} features; FP8 needs "
                f"multiples of {FP8_MULTIPLE}: see spec.model.hiddenSize and mlpRatio, or set train.fp8: false"
            )
        layer.__class__ = Fp8LoraLinear if isinstance(layer, LoraLinear) else Fp8Linear
        cast("Fp8Linear", layer).least_rows = least_rows
    return list(layers)


def _large_layers(model: MMDiT) -> Iterator[tuple[str, nn.Linear]]:
    for name, layer in block_layers(model):
        if not isinstance(model.get_submodule(name.rpartition(".")[0]), Modulation):
            yield name, layer


def check_task(task: TrainTask, device: torch.device) -> None:
    """Refuse a GPU that lacks what a stage computes with; see `check_device`."""
    if task.fp8:
        check_device(device)
    if task.lora is not None and task.lora.quantize_base == "fp8":
        check_device(device, "train.lora.quantizeBase: fp8", "train.lora.quantizeBase: int8")


def check_device(device: torch.device, asked: str = "train.fp8: true", instead: str = "train.fp8: false") -> None:
    """Refuse a GPU without FP8; the CPU computes the same numbers slowly.

    Args:
        device: of this process.
        asked: what of the stage needs it.
        instead: what the stage could ask for on such a GPU.

    Raises:
        ConfigError: names the GPU and what it lacks.
    """
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise ConfigError(
            f"{asked}, but {torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, capability))} and no FP8; allowed: {'.'.join(map(str, LEAST_CAPABILITY))} or newer "
            f"(L40S, H100, H200, B200), or {instead}"
        )
