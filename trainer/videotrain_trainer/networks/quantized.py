"""Rows of numbers in 8 bits, each with a scale of its own, and frozen linear layers that hold their weight so.

Shape letters: M rows (samples times tokens), F features of a layer's input, O of its output, R rows, C columns.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        out: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.weight_scale, self.bias, self.quantization
        )
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
        return _widened(self.weight, self.weight_scale, self.quantization)


class _Product(torch.autograd.Function):
    """x times the transposed weight. Autograd alone would keep every widened weight until the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits_OF: Tensor, scale_O1: Tensor, bias_O: Tensor | None, quantization: Quantization
    ) -> Tensor:
        ctx.save_for_backward(bits_OF, scale_O1)
        ctx.quantization = quantization
        return F.linear(x, _widened(bits_OF, scale_O1, quantization), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        of_x = None
        if ctx.needs_input_grad[0]:
            weight_OF = _widened(*ctx.saved_tensors, ctx.quantization)
            gradient_MO = gradients[0].reshape(-1, weight_OF.shape[0])
            of_x = (gradient_MO @ weight_OF).reshape(*gradients[0].shape[:-1], -1)
        return of_x, None, None, None, None


def _widened(bits_OF: Tensor, scale_O1: Tensor, quantization: Quantization) -> Tensor:
    # Both data types have fewer digits than bf16, so only the product is rounded.
    return bits_OF.view(STORED[quantization]).to(scale_O1.dtype) * scale_O1
