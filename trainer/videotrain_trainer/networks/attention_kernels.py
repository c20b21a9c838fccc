"""The kernel of attention: chosen once for a process, before its first step, and proven by a call.

torch's scaled_dot_product_attention has several, and FlashAttention 3 and 4 take the place of its own FlashAttention
where torch activates them. FlashAttention 2 as a package is called by its own function. Which of them runs must not
depend on what happens to be installed: on Hopper, cuDNN is nearly twice as fast as FlashAttention 2.

Shape letters: see `attention`.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.attention import (
    SDPBackend,
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
    sdpa_kernel,
)

from videotrain_api.resource.architecture import TransformerSpec
from videotrain_api.resource.stages import AttentionKernel
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks import attention as calls

log = logging.getLogger(__name__)

ERROR_BOUND: Final = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 1e-4}
"""Largest error of a probe's output beside attention in float32, relative to the largest value: some roundings."""
PROBE_TOKENS: Final = 256
TIMED_TOKENS: Final = 8192
"""On a GPU candidates are compared at this length; a 256px clip of 33 frames has 2,304 and a 768px one 20,736."""
FASTER: Final = 0.97
"""A package takes cuDNN's place if it needs at most this share of its time."""


@dataclass(frozen=True)
class Kernel:
    """One implementation.

    Attributes:
        name: as in `train.attention`, or `efficient`, which is only fallen back to.
        order: what scaled_dot_product_attention tries, in this order; the first must be what runs.
        activates: FlashAttention that takes the place of torch's own, by torch's name.
        module: of a package that it needs.
        on_cpu: exists there.
    """

    name: str
    order: tuple[SDPBackend, ...]
    activates: str | None = None
    module: str | None = None
    on_cpu: bool = False


_CUDNN, _FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
_EFFICIENT, _MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
# Others of the process, such as text encoders with masks, need what a kernel of the transformer does not do.
_AFTER_CUDNN, _AFTER_FLASH = (_FLASH, _EFFICIENT, _MATH), (_CUDNN, _EFFICIENT, _MATH)
KERNELS: Final = {
    kernel.name: kernel
    for kernel in (
        Kernel("cudnn", (_CUDNN, *_AFTER_CUDNN)),
        Kernel("flash", (_FLASH, *_AFTER_FLASH), on_cpu=True),
        Kernel("flash2", (_CUDNN, *_AFTER_CUDNN), module="flash_attn"),
        Kernel("flash3", (_FLASH, *_AFTER_FLASH), activates="FA3", module="flash_attn_interface"),
        Kernel("flash4", (_FLASH, *_AFTER_FLASH), activates="FA4", module="flash_attn.cute.interface"),
        Kernel("efficient", (_EFFICIENT, _FLASH, _CUDNN, _MATH)),
        Kernel("math", (_MATH,), on_cpu=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """What attention is asked for."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    head_dim: int

    def tensors(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (1, heads, tokens, head_dim), the same on every rank."""
        generator = torch.Generator().manual_seed(0)
        shape = (3, 1, self.heads, tokens, self.head_dim)
        drawn = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        q, k, v = (part.requires_grad_() for part in drawn.unbind())
        return q, k, v


def attention_case(model: TransformerSpec, device: torch.device, dtype: torch.dtype) -> AttentionCase:
    """What a transformer asks attention for."""
    heads, width = model.num_heads, model.hidden_size
    if heads is None or width is None:
        raise ConfigError("spec.model: numHeads and hiddenSize are not set in the stage configuration")
    return AttentionCase(device=device, dtype=dtype, heads=heads, head_dim=width // heads)


def _alone(name: str) -> str:
    return name


@contextmanager
def attention_kernel(
    wanted: AttentionKernel, case: AttentionCase, agree: Callable[[str], str] = _alone
) -> Iterator[str]:
    """Have attention run on one kernel for the block; the name of the kernel.

    Args:
        wanted: a name, or `auto`: the fastest on a GPU, the first that works elsewhere.
        case: of the model.
        agree: rank 0's choice on all ranks, since clocks differ; collective.

    Raises:
        ConfigError: the kernel that was asked for does not run here.
    """
    name = agree(_choice(wanted, case))
    with _set(KERNELS[name]):
        _prove(KERNELS[name], case)
        log.info("attention runs on %s", name)
        yield name


def _choice(wanted: AttentionKernel, case: AttentionCase) -> str:
    if wanted != "auto":
        try:
            _try(KERNELS[wanted], case)
        except _Unusable as error:
            raise ConfigError(
                f"train.attention: {wanted!r} does not run here: {error}; allowed: auto, or a kernel of this machine"
            ) from error
        return wanted
    usable = []
    for name in candidates(case):
        try:
            _try(KERNELS[name], case)
        except _Unusable as error:
            log.info("attention cannot run on %s: %s", name, error)
            continue
        usable.append(name)
        if case.device.type == "cpu":
            break
    return usable[0] if len(usable) == 1 else _fastest(usable, case)


def candidates(case: AttentionCase) -> list[str]:
    """Kernels for `auto`, the one that is usually best first."""
    if case.device.type == "cpu":
        return ["flash", "math"]
    if case.dtype not in (torch.bfloat16, torch.float16):
        return ["efficient", "math"]
    first = ["cudnn", "flash"] if torch.cuda.get_device_capability(case.device) >= (9, 0) else ["flash", "cudnn"]
    return [*first, "flash2", "flash3", "flash4", "efficient", "math"]


class _Unusable(Exception):
    """Why a kernel does not run here."""


def _try(kernel: Kernel, case: AttentionCase) -> None:
    if case.device.type == "cpu" and not kernel.on_cpu:
        raise _Unusable("it needs a GPU")
    with _set(kernel):
        _prove(kernel, case)


@contextmanager
def _set(kernel: Kernel) -> Iterator[None]:
    package = _load(kernel)
    before = current_flash_attention_impl()
    try:
        if kernel.activates is not None:
            _activate(kernel.activates)
        calls.set_package(package)
        with sdpa_kernel(list(kernel.order), set_priority=True):
            yield
    finally:
        calls.set_package(None)
        if kernel.activates is not None:
            restore_flash_attention_impl()
            if before is not None:
                activate_flash_attention_impl(before)


def _load(kernel: Kernel) -> Callable[..., Any] | None:
    """The package of a kernel must be there, and be the one: FlashAttention 4 also installs a `flash_attn`."""
    if kernel.module is None:
        return None
    try:
        module = importlib.import_module(kernel.module)
    except ImportError as error:
        raise _Unusable(f"{kernel.module} cannot be imported: {error}") from error
    if kernel.name != "flash2":
        return None
    function: Callable[..., Any] | None = getattr(module, "flash_attn_func", None)
    if function is None:
        raise _Unusable("the flash_attn that is installed has no flash_attn_func; it is not FlashAttention 2")
    return function


def _activate(implementation: str) -> None:
    try:
        activate_flash_attention_impl(implementation)
    except (ImportError, RuntimeError, ValueError) as error:
        raise _Unusable(f"torch cannot activate {implementation}: {error}") from error


def _prove(kernel: Kernel, case: AttentionCase) -> None:
    """Call it forward and backward: it must be what runs, and right."""
    q, k, v = case.tensors(PROBE_TOKENS)
    if kernel.module != "flash_attn":
        chosen = SDPBackend(torch._fused_sdp_choice(q, k, v))
        if chosen != kernel.order[0]:
            raise _Unusable(f"torch would take {chosen.name} for heads of {case.head_dim} in {case.dtype}")
    try:
        out = calls.attention(q, k, v)
        torch.autograd.backward(out.square().sum())
    except RuntimeError as error:
        raise _Unusable(str(error)) from error
    with torch.no_grad():
        weights = (q.float() @ k.float().transpose(-1, -2) * case.head_dim**-0.5).softmax(dim=-1)
        exact = weights @ v.float()
        error_share = float((out.float() - exact).abs().max() / exact.abs().max())
    finite = all(bool(x.grad.isfinite().all()) for x in (q, k, v) if x.grad is not None)
    if not (error_share <= ERROR_BOUND[case.dtype] and finite):
        raise _Unusable(f"its results are wrong: an error of {error_share:.1e}, finite gradients: {finite}")


def _fastest(names: Sequence[str], case: AttentionCase) -> str:
    best, least = names[0], _seconds(names[0], case)
    for name in names[1:]:
        if name in ("efficient", "math"):
            continue  # never faster than the others, and math has no memory for the length
        seconds = _seconds(name, case)
        log.info("attention on %s: %.2f ms, on %s: %.2f ms", name, 1e3 * seconds, best, 1e3 * least)
        if seconds <= FASTER * least:
            best, least = name, seconds
    return best


def _seconds(name: str, case: AttentionCase) -> float:
    """Of one call forward and backward on a GPU, the least of five."""
    q, k, v = case.tensors(TIMED_TOKENS)
    least = float("inf")
    with _set(KERNELS[name]):
        for _ in range(6):  # the first one is warm-up
            torch.cuda.synchronize(case.device)
            began = time.perf_counter()
            torch.autograd.backward(calls.attention(q, k, v).sum())
            torch.cuda.synchronize(case.device)
            least = min(least, time.perf_counter() - began)
    return least
