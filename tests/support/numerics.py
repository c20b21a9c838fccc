"""How far two computations of the same numbers may lie apart.

Every operation rounds its result, and a sum of n terms depends on the order in which it is added: on the width of the
CPU's vectors, on fused multiply-adds, on the number of threads, on the batch. None of it depends on what the values
mean, all of it grows with their size. So a bound is never an absolute number that one machine happened to meet; it is
a number of roundings of the largest value (`assert_near`), or a multiple of the error that the same computation in
float32 makes anyway (`assert_as_exact`).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

ORDERS = 4
"""The largest of a thousand errors varies by less than this between two orders of the same additions."""


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest absolute difference."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    return float((found.detach().double() - expected.detach().double()).abs().max())


def rounding(expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    """One unit in the last place of the largest value."""
    return torch.finfo(dtype).eps * float(expected.detach().double().abs().max())


def assert_near(found: torch.Tensor, expected: torch.Tensor, roundings: float) -> None:
    """`found` is `expected` but for so many roundings of its largest value."""
    worst, unit = apart(found, expected), rounding(expected)
    assert worst <= roundings * unit, f"{worst / unit:.3g} roundings apart ({worst:.3g}), allowed are {roundings}"


def assert_as_exact(found: torch.Tensor, other: torch.Tensor, exact: torch.Tensor) -> None:
    """`found` is as near to the float64 values as `other`, which computes the same in float32 in another order."""
    worst, allowed = apart(found, exact), ORDERS * max(apart(other, exact), rounding(exact))
    assert worst <= allowed, f"off by {worst:.3g}, but in another order by {apart(other, exact):.3g} only"


class _WithoutFloat32(TorchFunctionMode):
    """Casts to float32 inside a model stay in float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return args[0].double() if function is torch.Tensor.float else function(*args, **kwargs)


def in_float64(module: torch.nn.Module, *args: Any, method: str = "forward", **named: Any) -> Any:
    """What a copy of the module computes in float64 from the same weights and inputs."""
    copy = deepcopy(module).double()
    with torch.no_grad(), _WithoutFloat32():
        return getattr(copy, method)(*map(_exact, args), **{name: _exact(value) for name, value in named.items()})


def _exact(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
