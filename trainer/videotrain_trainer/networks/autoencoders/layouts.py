"""Tensor names of published autoencoder files, in both directions.

The contract for a converter:

* `LAYOUTS[name]` is a `Layout`. Its two functions are pure, know no model and touch no tensor.
* `layout.to_ours(file_name)` gives a `Place`: the file's tensor is row block `part` of `parts` equal row blocks
  (dimension 0) of our tensor `place.name`. With `place.matrix` the file stores [out, in] where our kernel has axes of
  size one behind; `Layout.kernel_axes` says how many kernel axes a convolution of the layout has.
* `layout.from_ours(our_name)` gives the file's names of one of our tensors, from the first row block to the last.
* Every name maps; whether a model has such a tensor is for strict loading to say. `from_ours` undoes `to_ours`.
* `to_ours(state, layout)` and `from_ours(state, layout)` below do it for a whole dictionary and move values only, so a
  round trip is bit-equal. A streaming converter reads the parts of one tensor at a time with the same two functions.

| layout | file | model | differs from ours in |
|---|---|---|---|
| `hunyuan-vae` | `hunyuan_vae.safetensors` of Open-Sora 2.0 and HunyuanVideo | `HunyuanVAE` | nothing |
| `open-sora-dc-ae` | `F32T4C128_AE.safetensors` | `DCAE` | nothing |
| `diffusers-hunyuan-vae` | diffusers' `AutoencoderKLHunyuanVideo` | `HunyuanVAE` | nothing (scale in its config) |
| `image-dc-ae` | DC-AE for pictures, names of its authors | start of a `DCAE` | kernels of two axes |
| `diffusers-image-dc-ae` | diffusers' `AutoencoderDC` | start of a `DCAE` | names, split q/k/v, two axes |

The two picture layouts give our names with kernels of rows and columns only: a picture autoencoder has no time axis,
and how its kernels grow one is a choice of training, not of naming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

VIDEO_KERNEL_AXES: Final = 3
PICTURE_KERNEL_AXES: Final = 2


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file belongs."""

    name: str
    """Our tensor."""
    part: int = 0
    """Which of the equal row blocks."""
    parts: int = 1
    """How many row blocks make our tensor."""
    matrix: bool = False
    """The file stores [out, in]; our tensor has kernel axes of size one behind."""


@dataclass(frozen=True)
class Layout:
    """How one kind of file names and cuts the tensors of an autoencoder."""

    kind: str
    """`dc-ae` or `hunyuan-vae`."""
    kernel_axes: int
    """Axes of a convolution's kernel: 3 for video, 2 for pictures."""
    to_ours: Callable[[str], Place]
    """From the file's name."""
    from_ours: Callable[[str], tuple[str, ...]]
    """From our name to the file's names of its row blocks."""


def to_ours(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """A file's tensors under our names.

    Args:
        state: every tensor of the file.
        layout: of the file.

    Raises:
        ValueError: a row block of one of our tensors is missing; names what is there.
    """
    blocks: dict[str, dict[int, Tensor]] = {}
    parts: dict[str, int] = {}
    for name, tensor in state.items():
        place = layout.to_ours(name)
        kernel = tensor.reshape(*tensor.shape, *[1] * layout.kernel_axes) if place.matrix else tensor
        blocks.setdefault(place.name, {})[place.part] = kernel
        parts[place.name] = place.parts
    return {name: _joined(name, found, parts[name], layout) for name, found in blocks.items()}


def from_ours(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Our tensors under a file's names: the inverse of `to_ours`.

    Args:
        state: every tensor of the model; for a picture layout, with kernels of two axes.
        layout: of the file.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = layout.from_ours(name)
        for file_name, block in zip(names, tensor.chunk(len(names)), strict=True):
            out[file_name] = (block.flatten(1) if layout.to_ours(file_name).matrix else block).contiguous()
    return out


def _joined(name: str, blocks: Mapping[int, Tensor], parts: int, layout: Layout) -> Tensor:
    if len(blocks) != parts:
        wanted = ", ".join(layout.from_ours(name))
        raise ValueError(f"{name}: the file has {len(blocks)} of its {parts} row blocks; all are needed: {wanted}")
    return blocks[0] if parts == 1 else torch.cat([blocks[index] for index in range(parts)])


def _same_place(name: str) -> Place:
    return Place(name)


def _same_names(name: str) -> tuple[str, ...]:
    return (name,)


_IMAGE_STAGE: Final = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(\d+)\.(.+)")
_OUR_STAGE: Final = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.op_list\.(\d+)\.(.+)")
_SIDE_OF: Final = {"encoder": "down", "decoder": "up"}
_QUERY_KEY_VALUE: Final = ("attn.to_q", "attn.to_k", "attn.to_v")
_FUSED: Final = "context_module.main.qkv.conv"
_MATRICES: Final = {"attn.to_out"}
_OUTER: Final = {
    "encoder.conv_in": "encoder.project_in.conv",
    "encoder.conv_out": "encoder.project_out.main.op_list.0.conv",
    "decoder.conv_in": "decoder.project_in.main.conv",
    "decoder.norm_out": "decoder.project_out.op_list.0",
    "decoder.conv_out": "decoder.project_out.op_list.2.conv",
}
"""Layers of diffusers' `AutoencoderDC` outside the stages, and ours."""
_INNER: Final = {
    "conv1": "main.conv1.conv",
    "conv2": "main.conv2.conv",
    "norm": "main.conv2.norm",
    "attn.to_qkv_multiscale.0.proj_in": "context_module.main.aggreg.0.0",
    "attn.to_qkv_multiscale.0.proj_out": "context_module.main.aggreg.0.1",
    "attn.to_out": "context_module.main.proj.conv",
    "attn.norm_out": "context_module.main.proj.norm",
    "conv_out.conv_inverted": "local_module.main.inverted_conv.conv",
    "conv_out.conv_depth": "local_module.main.depth_conv.conv",
    "conv_out.conv_point": "local_module.main.point_conv.conv",
    "conv_out.norm": "local_module.main.point_conv.norm",
}
"""Layers within a stage. A resampling layer is `conv` in both halves there and differs between the halves here."""
_RESAMPLE: Final = {"encoder": "main.conv", "decoder": "main.conv.conv"}
_OUTER_BACK: Final = {ours: theirs for theirs, ours in _OUTER.items()}
_INNER_BACK: Final = {ours: theirs for theirs, ours in _INNER.items()}


def _picture_to_ours(name: str) -> Place:
    layer, _, kind = name.rpartition(".")
    found = _IMAGE_STAGE.fullmatch(layer)
    if found is None or _SIDE_OF[found[1]] != found[2]:
        return Place(f"{_OUTER.get(layer, layer)}.{kind}")
    half, _, stage, index, inner = found.groups()
    prefix = f"{half}.stages.{stage}.op_list.{index}"
    if inner in _QUERY_KEY_VALUE:
        return Place(f"{prefix}.{_FUSED}.{kind}", _QUERY_KEY_VALUE.index(inner), 3, matrix=True)
    ours = _RESAMPLE[half] if inner == "conv" else _INNER.get(inner, inner)
    return Place(f"{prefix}.{ours}.{kind}", matrix=inner in _MATRICES)


def _picture_from_ours(name: str) -> tuple[str, ...]:
    layer, _, kind = name.rpartition(".")
    found = _OUR_STAGE.fullmatch(layer)
    if found is None:
        return (f"{_OUTER_BACK.get(layer, layer)}.{kind}",)
    half, stage, index, inner = found.groups()
    prefix = f"{half}.{_SIDE_OF[half]}_blocks.{stage}.{index}"
    if inner == _FUSED:
        return tuple(f"{prefix}.{part}.{kind}" for part in _QUERY_KEY_VALUE)
    theirs = "conv" if inner == _RESAMPLE[half] else _INNER_BACK.get(inner, inner)
    return (f"{prefix}.{theirs}.{kind}",)


LAYOUTS: Final[dict[str, Layout]] = {
    "hunyuan-vae": Layout("hunyuan-vae", VIDEO_KERNEL_AXES, _same_place, _same_names),
    "diffusers-hunyuan-vae": Layout("hunyuan-vae", VIDEO_KERNEL_AXES, _same_place, _same_names),
    "open-sora-dc-ae": Layout("dc-ae", VIDEO_KERNEL_AXES, _same_place, _same_names),
    "image-dc-ae": Layout("dc-ae", PICTURE_KERNEL_AXES, _same_place, _same_names),
    "diffusers-image-dc-ae": Layout("dc-ae", PICTURE_KERNEL_AXES, _picture_to_ours, _picture_from_ours),
}
"""Every layout by the name that a converter takes."""
