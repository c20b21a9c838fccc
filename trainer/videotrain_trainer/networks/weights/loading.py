"""From weight files into models: strict, tensor by tensor, whatever published layout the file has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from videotrain_trainer.networks.layout_rules import Mapped, towards_ours, towards_theirs
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.layouts import native_rules
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.quantized import SCALE, QuantizedLinear
from videotrain_trainer.networks.weights.configuration import check_same_model
from videotrain_trainer.networks.weights.files import Weights, open_weights
from videotrain_trainer.networks.weights.fragments import Chosen, Computed, Fragments, StoredFragments, whole
from videotrain_trainer.networks.weights.layouts import ModelConfig, Scheme, has_layouts, recognise, scheme, sizes
from videotrain_trainer.networks.weights.strict import check_fit

LOG = logging.getLogger(__name__)
Source = bytes | str | Path | Weights
Read = Callable[[str], Tensor]


def load_weights(module: nn.Module, source: Source, what: str | None = None, layout: str | None = None) -> None:
    """Copy weights into a model, strictly; values are cast to the model's data types.

    Parameters on the `meta` device get memory as they are read, so the peak is the model and one group of tensors.

    Args:
        module: a model of this package.
        source: content of a safetensors file, its path or URI, an index, a folder, or weights that are open.
        what: where it came from, for messages.
        layout: of the file; recognised by its tensor names if unset.

    Raises:
        ConfigError: names or shapes differ; each missing, unexpected or misshapen tensor is listed.
    """
    weights = source if isinstance(source, Weights) else open_weights(source, what)
    stored = check_weights(module, weights, layout)
    _fill(module, _native(module, _ours(stored, weights)) if stored is not None else weights.read)


def check_weights(module: nn.Module, weights: Weights, layout: str | None = None) -> Scheme | None:
    """How weights that fit a model strictly are stored; None if under the model's own names. No tensor is read.

    Args:
        module: a model of this package, perhaps on the `meta` device.
        weights: of which headers are known.
        layout: of the file; recognised by its tensor names if unset.

    Raises:
        ConfigError: names or shapes differ; each missing, unexpected or misshapen tensor is listed.
    """
    config = config_of(module)
    if config is None or not has_layouts(config):
        _check(module, weights.shapes, weights.what)
        return None
    stored = scheme(recognise(weights.shapes, weights.what, layout), config)
    check_fit(stored.theirs, weights.shapes, weights.what, _described(module))
    check_same_model(config, weights)
    return stored


def start_from(module: nn.Module, source: Source, what: str | None = None, fresh: Sequence[str] = ()) -> None:
    """Begin training with weights of a model that need not have the same inputs, as the published recipe does.

    Autoencoders are loaded as `load_weights` does.

    Args:
        module: initialised.
        source: as for `load_weights`.
        what: where it came from, for messages.
        fresh: names of layers (`img_in`, `final_layer.linear`) that keep the values they have.

    Raises:
        ConfigError: the file is incomplete in itself, or does not fit otherwise.
    """
    weights = source if isinstance(source, Weights) else open_weights(source, what)
    if not isinstance(module, MMDiT):
        load_weights(module, weights)
        return
    state = module.state_dict()
    kept = native_to_ours(module, state.__getitem__)
    own = Computed(lambda name, start, length: kept(name).reshape(-1)[start : start + length])
    found, shapes = starting_fragments(module, weights, own, fresh), scheme("open-sora-v2", module.config).ours
    _fill(module, _native(module, lambda name: whole(found, name, shapes[name])))


def starting_fragments(module: MMDiT, weights: Weights, own: Fragments, fresh: Sequence[str] = ()) -> Fragments:
    """The first values of a model that begins with weights of another, from which nothing is read yet.

    From FLUX.1-dev every layer is taken over, the guidance input is dropped and the condition input starts at zero, so
    that the model's output is at first that of the image model. A text-only video model gains the condition input the
    same way. Anything else must fit.

    Args:
        module: says which parameters are wanted; it may be on the `meta` device, and is left as it is.
        weights: of the other model, in any layout.
        own: what the layers start with that are not taken over.
        fresh: names of layers that are not.

    Returns:
        Values of our tensors: those of the module, unless it holds them fused or interleaved.

    Raises:
        ConfigError: the file is incomplete in itself, or does not fit otherwise.
    """
    layout = recognise(weights.shapes, weights.what)
    stored = scheme(layout, sizes(weights.shapes, weights.what))
    check_fit(stored.theirs, weights.shapes, weights.what, "the model that its own tensors describe")
    wanted = scheme("open-sora-v2", module.config).ours
    new = {name for name in wanted if name.rpartition(".")[0].startswith(tuple(fresh))} if fresh else set()
    zero = {name for name in wanted if name.startswith("cond_in.") and name not in stored.ours} - new
    dropped = {name for name in stored.ours if name.startswith("guidance_in.") and name not in wanted}
    kept = {name: shape for name, shape in wanted.items() if name not in new | zero}
    given = {name: shape for name, shape in stored.ours.items() if name not in dropped | new}
    check_fit(kept, given, weights.what, "the model that is to start from it; see spec.model")
    for verb, names in (("start at zero", zero), ("keep their own start", new), ("are dropped", dropped)):
        if names:
            LOG.info("%s: %s %s", weights.what, ", ".join(sorted(names)), verb)
    zeros = Computed(lambda _name, _start, length: torch.zeros(length))
    others = dict.fromkeys(zero, zeros) | dict.fromkeys(new, own)
    sides = towards_ours(stored.rules, weights.metadata)
    return Chosen(others, StoredFragments(weights, sides, stored.ours))


@torch.no_grad()
def load_frozen(module: nn.Module, fragments: Fragments, device: torch.device, dtype: torch.dtype) -> None:
    """Give the parameters that are not trained memory on the device and their values, one after another.

    Args:
        module: those parameters may be on the `meta` device.
        fragments: of the module.
        device: of this process.
        dtype: that the model computes in.
    """
    for name, parameter in list(module.named_parameters()):
        path, _, leaf = name.rpartition(".")
        if parameter.requires_grad or leaf == SCALE:  # which comes of its weight
            continue
        value, owner = whole(fragments, name, tuple(parameter.shape)).to(device=device), module.get_submodule(path)
        if isinstance(owner, QuantizedLinear) and leaf == "weight":
            owner.hold(value, dtype)
        else:
            owner._parameters[leaf] = nn.Parameter(value.to(dtype=dtype), requires_grad=False)


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors under the model's own names; nothing may be missing, left over or of another shape.

    Raises:
        ConfigError: they do not fit.
    """
    _check(module, {name: tuple(tensor.shape) for name, tensor in state.items()}, what)
    _fill(module, lambda name: state[name])


def _check(module: nn.Module, found: Mapping[str, tuple[int, ...]], what: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_fit(expected, found, what, _described(module))


def _described(module: nn.Module) -> str:
    name = type(module).__name__
    return f"the {name} of this run; compare spec.model / spec.autoencoder with the model that wrote the file"


def model_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer's parameters as it is built, whatever an engine or an adapter made of them."""
    config = config_of(module)
    if not isinstance(config, MMDiTConfig):
        raise TypeError(type(module))
    return dict(scheme("open-sora-v2", config).ours)


def config_of(module: nn.Module) -> ModelConfig | None:
    """Sizes of a model that has published layouts; None for another one."""
    config = getattr(module, "config", None)
    return config if isinstance(config, ModelConfig) else None


def _ours(stored: Scheme, weights: Weights) -> Mapped:
    return Mapped(towards_ours(stored.rules, weights.metadata), weights.read)


def _native(module: nn.Module, ours: Read) -> Read:
    """From our tensors to those of a model that holds them fused or interleaved."""
    config = config_of(module)
    return Mapped(towards_theirs(native_rules(config)), ours) if _is_other(config) else ours


def native_to_ours(module: nn.Module, native: Read) -> Read:
    """Our tensors from those of a model that may hold them fused or interleaved."""
    config = config_of(module)
    return Mapped(towards_ours(native_rules(config), {}), native) if _is_other(config) else native


def _is_other(config: ModelConfig | None) -> TypeGuard[MMDiTConfig]:
    return isinstance(config, MMDiTConfig) and (config.fused_qkv or config.rope_layout != "half-split")


@torch.no_grad()
def _fill(module: nn.Module, read: Read) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            materialise(module, name, read(name))
        else:
            tensor.copy_(read(name))


def materialise(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter or buffer without memory its value, in its own data type."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value.to(owner.get_buffer(leaf).dtype)
        return
    old = owner.get_parameter(leaf)
    owner._parameters[leaf] = nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad)
