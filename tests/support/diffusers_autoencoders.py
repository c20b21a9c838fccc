"""Tiny configurations of video autoencoders of diffusers: class, fields, and (channels, time, space)."""

WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WAN |= {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.5, 2.0, 1.0]}
TINY = {
    "wan": ("AutoencoderKLWan", WAN, (4, 4, 8)),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
        },
        (8, 8, 32),
    ),
    "hunyuan-video-15": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 8, "block_out_channels": (32, 32, 32, 32, 32), "layers_per_block": 1},
        (8, 4, 16),
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "attention_resolutions": (),
            "num_layers": 1,
            "latents_mean": [0.01 * n for n in range(16)],
            "latents_std": [1.0 + 0.1 * n for n in range(16)],
        },
        (4, 8, 8),
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "sample_height": 64,
            "sample_width": 64,
        },
        (4, 4, 8),
    ),
}
