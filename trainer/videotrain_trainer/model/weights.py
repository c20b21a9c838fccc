"""Weight files: strict loading that lists every misfit, and FLUX.1's fused layout in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from videotrain_api import layout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.model.mmdit import MMDiT, MMDiTConfig

SHOWN_PROBLEMS = 20
HEADER_LENGTH_BYTES = 8
_FUSED_ATTENTION = re.compile(r"(double_blocks\.\d+\.(?:img|txt)_attn)\.qkv\.(weight|bias)")
_FUSED_SINGLE = re.compile(r"(single_blocks\.\d+)\.linear1\.(weight|bias)")
_NORM_SCALE = re.compile(r".*\.(?:query|key)_norm\.scale")
_SPLIT_QUERY = re.compile(r"(double_blocks\.\d+\.(?:img|txt)_attn|single_blocks\.\d+)\.q_proj\.(weight|bias)")


def load_weights(module: nn.Module, source: bytes | Path, what: str) -> None:
    """Copy a safetensors file into a model; values are cast to the model's data types.

    An MMDiT also takes files in FLUX.1's layout (fused q/k/v, interleaved rotary positions).

    Args:
        module: the model, with its memory allocated.
        source: the file, or its content.
        what: where it came from, for messages.

    Raises:
        ConfigError: names or shapes differ; each missing, unexpected or misshapen tensor is listed.
    """
    state = load(source) if isinstance(source, bytes) else load_file(source)
    if isinstance(module, MMDiT) and any(_FUSED_ATTENTION.fullmatch(name) for name in state):
        state = from_flux(state, module.config)
    load_state(module, state, what)


def read_metadata(source: bytes, what: str) -> dict[str, str]:
    """The free text fields of a safetensors file; empty if it has none.

    Args:
        source: content of the file.
        what: where it came from, for messages.

    Raises:
        ConfigError: it is no safetensors file.
    """
    length = int.from_bytes(source[:HEADER_LENGTH_BYTES], "little")
    try:
        header = json.loads(source[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
        found: dict[str, str] = header.get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{what}: not a safetensors file: {error}") from error
    return found


def weights_uri(source: str) -> str:
    """The safetensors object that a configured source means: a file as it is, or the result of a stage's prefix."""
    return source if source.endswith(".safetensors") else layout.final_weights(source)


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into a model by name; nothing may be missing, left over or of another shape.

    Raises:
        ConfigError: they do not fit.
    """
    expected = module.state_dict()
    problems = _misfits({name: tuple(tensor.shape) for name, tensor in expected.items()}, state)
    if problems:
        more = [f"... and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        lines = "\n  ".join(problems[:SHOWN_PROBLEMS] + more)
        raise ConfigError(
            f"{what}: {len(problems)} of {len(expected)} tensors do not fit the {type(module).__name__} of this run; "
            f"compare spec.model / spec.autoencoder with the model that wrote the file:\n  {lines}"
        )
    module.load_state_dict(state, strict=True)


def _misfits(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[str]:
    missing = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in state]
    unexpected = [f"unexpected: {name} {list(state[name].shape)}" for name in state if name not in expected]
    shapes = [
        f"misshapen: {name} is {list(state[name].shape)} in the file, {list(shape)} in the model"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    return missing + unexpected + shapes


def from_flux(state: Mapping[str, Tensor], config: MMDiTConfig) -> dict[str, Tensor]:
    """FLUX.1 names and layout to ours: fused matrices are split, queries and keys become half-split.

    A guidance input is dropped and a zero condition input added where the model's configuration asks for it.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _FUSED_ATTENTION.fullmatch(name):
            _put_split(out, match, tensor, ("q_proj", "k_proj", "v_proj"), config)
        elif match := _FUSED_SINGLE.fullmatch(name):
            _put_split(out, match, tensor, ("q_proj", "k_proj", "v_mlp"), config)
        elif _NORM_SCALE.fullmatch(name):
            out[name] = half_split(tensor, 1)
        elif config.guidance_embed or not name.startswith("guidance_in."):
            out[name] = tensor
    return out | _new_condition_input(out, config)


def to_flux(state: Mapping[str, Tensor], config: MMDiTConfig) -> dict[str, Tensor]:
    """The inverse of `from_flux`; the condition input, which FLUX.1 does not have, keeps its name."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _SPLIT_QUERY.fullmatch(name):
            prefix, kind = match.groups()
            last, fused = ("v_mlp", "linear1") if prefix.startswith("single") else ("v_proj", "qkv")
            query, key = (interleaved(state[f"{prefix}.{p}.{kind}"], config.num_heads) for p in ("q_proj", "k_proj"))
            out[f"{prefix}.{fused}.{kind}"] = torch.cat((query, key, state[f"{prefix}.{last}.{kind}"]))
        elif _NORM_SCALE.fullmatch(name):
            out[name] = interleaved(tensor, 1)
        elif not re.search(r"\.(k_proj|v_proj|v_mlp)\.", name):
            out[name] = tensor
    return out


def half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head the even rows first, then the odd ones."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """The inverse of `half_split`."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def _put_split(
    out: dict[str, Tensor], match: re.Match[str], fused: Tensor, names: tuple[str, str, str], config: MMDiTConfig
) -> None:
    prefix, kind = match.groups()
    width = config.hidden_size
    query, key, rest = fused[:width], fused[width : 2 * width], fused[2 * width :]
    parts = (half_split(query, config.num_heads), half_split(key, config.num_heads), rest)
    out.update({f"{prefix}.{name}.{kind}": part.contiguous() for name, part in zip(names, parts, strict=True)})


def _new_condition_input(state: Mapping[str, Tensor], config: MMDiTConfig) -> dict[str, Tensor]:
    if not config.cond_embed or "cond_in.weight" in state:
        return {}
    width = config.hidden_size
    return {"cond_in.weight": torch.zeros(width, config.cond_features), "cond_in.bias": torch.zeros(width)}
