"""Layouts of an MMDiT: Open-Sora 2.0's own, FLUX.1's (fused, interleaved), and diffusers' FluxTransformer2DModel.

Rows of a fused matrix are queries, keys, values (and feed-forward input). Interleaved rotary positions have the rows of
queries and keys in another order within each head: even and odd ones alternate, where ours has the even ones first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.layout_rules import Rule
from videotrain_trainer.networks.mmdit.config import MMDiTConfig

CONDITION_BIAS = "videotrain.condition_bias"
"""Metadata field of diffusers files with a condition input: the two biases that their one input layer adds up."""
_DIFFUSERS_EDGES = {
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
}
_DIFFUSERS_GUIDANCE = {
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
_DIFFUSERS_STREAMS = {
    "img": {"mod": "norm1", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0", "norm": "norm", "ff": "ff"},
    "txt": {
        "mod": "norm1_context",
        "q": "add_q_proj",
        "k": "add_k_proj",
        "v": "add_v_proj",
        "out": "to_add_out",
        "norm": "norm_added",
        "ff": "ff_context",
    },
}


def half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head the even rows first, then the odd ones."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """The inverse of `half_split`."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def flux_rules(config: MMDiTConfig, fused: bool = True, interleave: bool = True) -> list[Rule]:
    """FLUX.1's layout, or one that differs from ours in only one of its two ways.

    Args:
        config: sizes.
        fused: one matrix for queries, keys and values.
        interleave: rotary positions of neighbouring elements.
    """
    rules = [_same(name) for name in _edges(config)]
    for block in range(config.double_blocks):
        for stream in ("img", "txt"):
            rules += _flux_stream(config, f"double_blocks.{block}", stream, fused, interleave)
    for block in range(config.single_blocks):
        rules += _flux_single(config, f"single_blocks.{block}", fused, interleave)
    return rules


def diffusers_rules(config: MMDiTConfig) -> list[Rule]:
    """The layout of diffusers' FluxTransformer2DModel.

    It has no condition input, but it has one input layer of any width: the condition's features are appended to the
    latent's, which computes the same.

    Raises:
        ConfigError: the class cannot compute this model.
    """
    if not config.qkv_bias or config.mlp_ratio != 4.0 or config.rope_theta != 10_000.0:
        raise ConfigError(
            "diffusers' FluxTransformer2DModel has query, key and value biases, mlp_ratio 4 and rope theta 10000; this "
            f"model has qkv_bias {config.qkv_bias}, mlp_ratio {config.mlp_ratio} and theta {config.rope_theta}"
        )
    rules = list(_diffusers_edges(config))
    for block in range(config.double_blocks):
        for stream in ("img", "txt"):
            rules += _diffusers_stream(config, block, stream)
    for block in range(config.single_blocks):
        rules += _diffusers_single(config, block)
    return rules


def _edges(config: MMDiTConfig) -> Iterator[str]:
    layers = ["img_in", "time_in.in_layer", "time_in.out_layer", "vector_in.in_layer", "vector_in.out_layer"]
    if config.guidance_embed:
        layers += ["guidance_in.in_layer", "guidance_in.out_layer"]
    if config.cond_embed:
        layers.append("cond_in")
    for layer in [*layers, "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1"]:
        yield from _parameters(layer)


def _parameters(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"


def _same(name: str) -> Rule:
    return Rule(ours=(name,), theirs=(name,), by_rows=True)


def _renamed(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(ours=(a,), theirs=(b,), by_rows=True) for a, b in zip(_parameters(ours), _parameters(theirs), strict=True)
    ]


def _flux_stream(config: MMDiTConfig, block: str, stream: str, fused: bool, interleave: bool) -> Iterator[Rule]:
    attention = f"{block}.{stream}_attn"
    for name in _parameters(f"{block}.{stream}_mod.lin"):
        yield _same(name)
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        yield from _flux_qkv(config, attention, ("q_proj", "k_proj", "v_proj"), "qkv", kind, fused, interleave)
    yield from _flux_norms(f"{attention}.norm", interleave)
    for layer in (f"{attention}.proj", f"{block}.{stream}_mlp.0", f"{block}.{stream}_mlp.2"):
        for name in _parameters(layer):
            yield _same(name)


def _flux_single(config: MMDiTConfig, block: str, fused: bool, interleave: bool) -> Iterator[Rule]:
    for kind in ("weight", "bias"):
        yield from _flux_qkv(config, block, ("q_proj", "k_proj", "v_mlp"), "linear1", kind, fused, interleave)
    for name in _parameters(f"{block}.linear2"):
        yield _same(name)
    yield from _flux_norms(f"{block}.norm", interleave)
    for name in _parameters(f"{block}.modulation.lin"):
        yield _same(name)


def _flux_norms(prefix: str, interleave: bool) -> Iterator[Rule]:
    for name in (f"{prefix}.query_norm.scale", f"{prefix}.key_norm.scale"):
        yield _permuted(name, name, 1) if interleave else _same(name)


def _flux_qkv(
    config: MMDiTConfig,
    prefix: str,
    parts: tuple[str, str, str],
    whole: str,
    kind: str,
    fused: bool,
    interleave: bool,
) -> Iterator[Rule]:
    """Queries, keys and the rest (values, or values and feed-forward input) of one kind of parameter."""
    names = tuple(f"{prefix}.{part}.{kind}" for part in parts)
    if not fused:
        query, key, rest = names
        for name in (query, key):
            yield _permuted(name, name, config.num_heads) if interleave else _same(name)
        yield _same(rest)
        return
    heads = config.num_heads if interleave else None
    yield Rule(
        ours=names,
        theirs=(f"{prefix}.{whole}.{kind}",),
        to_theirs=partial(_join, heads=heads),
        to_ours=partial(_split, heads=heads, width=config.hidden_size),
        by_rows=True,
    )


def _join(parts: Sequence[Tensor], heads: int | None) -> Sequence[Tensor]:
    query, key, rest = parts
    if heads is not None:
        query, key = interleaved(query, heads), interleaved(key, heads)
    return [torch.cat((query, key, rest))]


def _split(whole: Sequence[Tensor], heads: int | None, width: int) -> Sequence[Tensor]:
    query, key, rest = whole[0].tensor_split((width, 2 * width))
    return [query, key, rest] if heads is None else [half_split(query, heads), half_split(key, heads), rest]


def _permuted(ours: str, theirs: str, heads: int) -> Rule:
    return Rule(
        ours=(ours,),
        theirs=(theirs,),
        to_theirs=lambda tensors: [interleaved(tensors[0], heads)],
        to_ours=lambda tensors: [half_split(tensors[0], heads)],
        by_rows=True,
    )


def _diffusers_edges(config: MMDiTConfig) -> Iterator[Rule]:
    if config.cond_embed:
        yield from _joined_inputs(config.in_channels)
    else:
        yield from _renamed("img_in", "x_embedder")
    for ours, theirs in (_DIFFUSERS_EDGES | (_DIFFUSERS_GUIDANCE if config.guidance_embed else {})).items():
        yield from _renamed(ours, theirs)
    yield from _renamed("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        yield Rule(
            ours=(f"final_layer.adaLN_modulation.1.{kind}",),
            theirs=(f"norm_out.linear.{kind}",),
            to_theirs=_swap_halves,
            to_ours=_swap_halves,
            by_rows=True,
        )


def _swap_halves(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Ours has shift, then scale; theirs scale, then shift."""
    return [torch.cat(tensors[0].chunk(2)[::-1])]


def _joined_inputs(in_channels: int) -> Iterator[Rule]:
    yield Rule(
        ours=("img_in.weight", "cond_in.weight"),
        theirs=("x_embedder.weight",),
        to_theirs=lambda tensors: [torch.cat(tuple(tensors), dim=1)],
        to_ours=lambda tensors: [part.contiguous() for part in tensors[0].tensor_split((in_channels,), dim=1)],
    )
    yield Rule(
        ours=("img_in.bias", "cond_in.bias"),
        theirs=("x_embedder.bias",),
        to_theirs=lambda tensors: [tensors[0] + tensors[1]],
        to_ours=lambda tensors: [tensors[0], torch.zeros_like(tensors[0])],
        kept=CONDITION_BIAS,
    )


def _diffusers_stream(config: MMDiTConfig, block: int, stream: str) -> Iterator[Rule]:
    ours, theirs, names = f"double_blocks.{block}", f"transformer_blocks.{block}", _DIFFUSERS_STREAMS[stream]
    attention = f"{ours}.{stream}_attn"
    yield from _renamed(f"{ours}.{stream}_mod.lin", f"{theirs}.{names['mod']}.linear")
    for part in ("q", "k"):
        for kind in ("weight", "bias"):
            yield _permuted(f"{attention}.{part}_proj.{kind}", f"{theirs}.attn.{names[part]}.{kind}", config.num_heads)
    yield from _renamed(f"{attention}.v_proj", f"{theirs}.attn.{names['v']}")
    yield from _diffusers_norms(f"{attention}.norm", f"{theirs}.attn.{names['norm']}")
    yield from _renamed(f"{attention}.proj", f"{theirs}.attn.{names['out']}")
    yield from _renamed(f"{ours}.{stream}_mlp.0", f"{theirs}.{names['ff']}.net.0.proj")
    yield from _renamed(f"{ours}.{stream}_mlp.2", f"{theirs}.{names['ff']}.net.2")


def _diffusers_norms(ours: str, theirs: str) -> Iterator[Rule]:
    yield _permuted(f"{ours}.query_norm.scale", f"{theirs}_q.weight", 1)
    yield _permuted(f"{ours}.key_norm.scale", f"{theirs}_k.weight", 1)


def _diffusers_single(config: MMDiTConfig, block: int) -> Iterator[Rule]:
    ours, theirs = f"single_blocks.{block}", f"single_transformer_blocks.{block}"
    yield from _renamed(f"{ours}.modulation.lin", f"{theirs}.norm.linear")
    for kind in ("weight", "bias"):
        yield _permuted(f"{ours}.q_proj.{kind}", f"{theirs}.attn.to_q.{kind}", config.num_heads)
        yield _permuted(f"{ours}.k_proj.{kind}", f"{theirs}.attn.to_k.{kind}", config.num_heads)
        yield Rule(
            ours=(f"{ours}.v_mlp.{kind}",),
            theirs=(f"{theirs}.attn.to_v.{kind}", f"{theirs}.proj_mlp.{kind}"),
            to_theirs=lambda tensors: tensors[0].tensor_split((config.hidden_size,)),
            to_ours=lambda tensors: [torch.cat(tuple(tensors))],
            by_rows=True,
        )
    yield from _diffusers_norms(f"{ours}.norm", f"{theirs}.attn.norm")
    yield from _renamed(f"{ours}.linear2", f"{theirs}.proj_out")


def native_rules(config: MMDiTConfig) -> list[Rule]:
    """The layout in which a model of that configuration holds its own tensors."""
    return flux_rules(config, fused=config.fused_qkv, interleave=config.rope_layout == "interleaved")


def same_rules(config: MMDiTConfig) -> list[Rule]:
    """Open-Sora 2.0's layout, which is ours."""
    return flux_rules(config, fused=False, interleave=False)
