"""Rows of numbers in 8 bits, each with a scale of its own, and frozen linear layers that hold their weight so.

Shape letters: M rows (samples times tokens), F features of a layer's input, O of its output, R rows, C columns.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Quantization = Literal["int8", "fp8"]
STORED: Final[dict[Quantization, torch.dtype]] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
FP8 = STORED["fp8"]
LARGEST: Final[dict[torch.dtype, float]] = {torch.int8: torch.iinfo(torch.int8).max, FP8: torch.finfo(FP8).max}
SMALLEST: Final = 1e-12
"""Rows of zeros are divided by it."""
SCALE: Final = "weight_scale"
"""Name of the parameter beside a quantised weight."""


def rowwise(x_RC: Tensor, stored: torch.dtype = FP8, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Each row so that its largest value becomes the largest of a data type.

    Args:
        x_RC: finite.
        stored: int8 or FP8.
        scale_dtype: in which the scale is kept; what rounds it is made up for by the values.

    Returns:
        Values (R, C), row-major, and the scale (R, 1) that each row has to be multiplied with.
    """
    x_float, largest = x_RC.float(), LARGEST[stored]
    scale_R1 = (x_float.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST) / largest).to(scale_dtype)
    values_RC = (x_float / scale_R1.float()).clamp(-largest, largest)
    if stored is torch.int8:
        values_RC = values_RC.round()
    return values_RC.to(stored).contiguous(), scale_R1


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is held in 8 bits and widened for each product, forward and backward.

    The weight is a parameter of int8, whatever it holds: engines cast every parameter of a floating data type, FP8 too.
    """

    quantization: Quantization
    weight_scale: nn.Parameter
    """(O, 1), in the data type of the computation."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) to (..., O)."""
        fp8 = self.quantization == "fp8"
        out: Tensor = quantized_linear(x, self.weight, self.weight_scale, self.bias, fp8)
        return out

    def hold(self, weight_OF: Tensor, dtype: torch.dtype) -> None:
        """Hold this weight from now on, where it is.

        Args:
            weight_OF: any floating data type; on the meta device it has no values.
            dtype: that the layer computes in.
        """
        with torch.no_grad():
            values_OF, scale_O1 = rowwise(weight_OF, STORED[self.quantization], dtype)
        self.weight = nn.Parameter(values_OF.view(torch.int8), requires_grad=False)
        self.weight_scale = nn.Parameter(scale_O1, requires_grad=False)

    def widened(self) -> Tensor:
        """(O, F) in the data type of the computation: the weight that the layer multiplies with."""
        return widened(self.weight, self.weight_scale, self.quantization == "fp8")


def widened(bits_OF: Tensor, scale_O1: Tensor, fp8: bool) -> Tensor:
    """(O, F) in the data type of the scale: the weight that a layer multiplies with."""
    # Both data types have fewer digits than bf16, so only the product is rounded.
    if not fp8:
        return bits_OF * scale_O1
    return bits_OF.view(FP8).to(scale_O1.dtype).mul_(scale_O1)


# Operations of their own, whose insides neither autograd nor a compiler sees: either would keep widened weights from
# the forward to the backward pass, the compiler because both passes make the same ones.


def multiplied(x: Tensor, bits_OF: Tensor, scale_O1: Tensor, bias_O: Tensor | None, fp8: bool) -> Tensor:
    """Input (..., F) times the transposed weight, plus bias: (..., O)."""
    return F.linear(x, widened(bits_OF, scale_O1, fp8), bias_O)


def multiplied_back(gradient: Tensor, bits_OF: Tensor, scale_O1: Tensor, fp8: bool) -> Tensor:
    """Gradient of the output (..., O) to that of the input (..., F)."""
    flat_MF = gradient.reshape(-1, bits_OF.shape[0]) @ widened(bits_OF, scale_O1, fp8)
    return flat_MF.reshape(*gradient.shape[:-1], bits_OF.shape[1])


quantized_linear = torch.library.custom_op("vtr::quantized_linear", multiplied, mutates_args=())
quantized_linear_backward = torch.library.custom_op("vtr::quantized_linear_backward", multiplied_back, mutates_args=())


@quantized_linear.register_fake
def _(x: Tensor, bits_OF: Tensor, _scale_O1: Tensor, _bias_O: Tensor | None, _fp8: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], bits_OF.shape[0]))


@quantized_linear_backward.register_fake
def _(gradient: Tensor, bits_OF: Tensor, _scale_O1: Tensor, _fp8: bool) -> Tensor:
    return gradient.new_empty((*gradient.shape[:-1], bits_OF.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's signature
    _, bits_OF, scale_O1, _, ctx.fp8 = inputs
    ctx.save_for_backward(bits_OF, scale_O1)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
    of_x = quantized_linear_backward(gradient, *ctx.saved_tensors, ctx.fp8) if ctx.needs_input_grad[0] else None
    return of_x, None, None, None, None


quantized_linear.register_autograd(_backward, setup_context=_keep)
