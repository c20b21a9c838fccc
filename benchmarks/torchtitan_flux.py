"""torchtitan's FluxModel with our weights, for train_step_cpu.py. For torchtitan 0.3.0, whose builders it takes."""

from __future__ import annotations

from torch import Tensor, nn
from torchtitan.models import flux
from torchtitan.models.common.linear import Linear
from torchtitan.models.flux.model.layers import EmbedND, LastLayer, MLPEmbedder
from torchtitan.models.flux.model.model import FluxModel

from videotrain_trainer.networks.mmdit.config import MMDiTConfig


def build(config: MMDiTConfig, state: dict[str, Tensor]) -> FluxModel:
    """The same function in float32.

    Args:
        config: of our model, without condition and guidance inputs.
        state: its weights in FLUX.1's layout.
    """
    width, heads, ratio = config.hidden_size, config.num_heads, config.mlp_ratio
    double = flux._make_double_block_config(width, heads, ratio, config.qkv_bias)
    single = flux._make_single_block_config(width, heads, ratio)
    about = FluxModel.Config(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        vec_in_dim=config.pooled_dim,
        context_in_dim=config.context_dim,
        hidden_size=width,
        mlp_ratio=ratio,
        num_heads=heads,
        depth=config.double_blocks,
        depth_single_blocks=config.single_blocks,
        axes_dim=config.rope_axes,
        theta=int(config.rope_theta),
        qkv_bias=config.qkv_bias,
        img_in=_linear(config.in_channels, width),
        txt_in=_linear(config.context_dim, width),
        clip_encoder=flux.FluxEmbedder.Config(version="none"),
        t5_encoder=flux.FluxEmbedder.Config(version="none"),
        pe_config=EmbedND.Config(dim=width // heads, theta=int(config.rope_theta), axes_dim=config.rope_axes),
        time_in_config=_embedder(256, width),
        vector_in_config=_embedder(config.pooled_dim, width),
        double_blocks=[double] * config.double_blocks,
        single_blocks=[single] * config.single_blocks,
        final_layer_config=LastLayer.Config(
            linear=_linear(width, config.in_channels),
            adaln_linear=_linear(width, 2 * width),
            hidden_size=width,
            patch_size=1,
            out_channels=config.in_channels,
        ),
    )
    module = about.build()
    for part in module.modules():
        if isinstance(part, nn.RMSNorm):
            part.eps = 1e-6  # FLUX.1's and ours; torchtitan's default is 1e-5
    module.load_state_dict({name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in state.items()})
    return module.train()


def _linear(into: int, out: int) -> Linear.Config:
    return Linear.Config(in_features=into, out_features=out, bias=True)


def _embedder(into: int, width: int) -> MLPEmbedder.Config:
    return MLPEmbedder.Config(
        in_dim=into, hidden_dim=width, in_layer=_linear(into, width), out_layer=_linear(width, width)
    )
