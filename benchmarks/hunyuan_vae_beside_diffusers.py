"""HunyuanVideo VAE on one core: ours beside diffusers' `AutoencoderKLHunyuanVideo`, same weights and inputs.

Runs alternate, so that both see the same machine. Needs diffusers (`pip install diffusers`), which nothing else uses.
It also checks that both compute the same, and that diffusers' picture DC-AE in our layout computes what ours does.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKLHunyuanVideo

from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.autoencoders.layouts import LAYOUTS, to_ours

WIDTHS, GROUPS = (16, 32, 32, 32), 8
CLIP = (1, 3, 17, 64, 64)


def video_models():
    """Both implementations with one set of random weights."""
    torch.manual_seed(0)
    facts = {"latent_channels": 8, "block_out_channels": WIDTHS, "layers_per_block": 2, "norm_num_groups": GROUPS}
    theirs = AutoencoderKLHunyuanVideo(**facts).eval().requires_grad_(False)
    theirs.use_framewise_encoding = theirs.use_framewise_decoding = False
    config = HunyuanVAEConfig(
        latent_channels=8, widths=WIDTHS, depths=(2,) * 4, decoder_depths=(3,) * 4, norm_groups=GROUPS
    )
    ours = HunyuanVAE(config).eval().requires_grad_(False)
    ours.load_state_dict(to_ours(theirs.state_dict(), LAYOUTS["diffusers-hunyuan-vae"]))
    return ours, theirs


def interleaved(ours, theirs, repeats):
    """Medians of CPU seconds and of the ratio of neighbours."""
    times = {"ours": [], "diffusers": []}
    for round_number in range(repeats + 1):
        for name, work in (("ours", ours), ("diffusers", theirs)):
            started = time.process_time()
            work()
            if round_number:
                times[name].append(time.process_time() - started)
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["diffusers"], strict=True)]
    return {f"{name}_s": statistics.median(found) for name, found in times.items()} | {
        "diffusers_over_ours": statistics.median(ratios),
        "slowest_pair": min(ratios),
    }


def train_step(model, reconstruct, clip):
    """One forward and backward pass."""

    def step():
        model.requires_grad_(True)
        with torch.enable_grad():
            reconstruct(clip).square().mean().backward()
        model.zero_grad()
        model.requires_grad_(False)

    return step


def picture_dc_ae_difference():
    """Largest difference between diffusers' picture DC-AE and ours with its weights in the middle of our kernels."""
    widths, stages = (8, 16, 16, 32, 64, 64), (("ResBlock",) * 3 + ("EfficientViTBlock",) * 3)
    scales = ((),) * 3 + ((5,),) * 3
    torch.manual_seed(1)
    facts = {}
    for half in ("encoder", "decoder"):
        facts |= {f"{half}_block_types": stages, f"{half}_block_out_channels": widths}
        facts |= {f"{half}_layers_per_block": (1,) * 6, f"{half}_qkv_multiscales": scales}
    theirs = AutoencoderDC(latent_channels=8, upsample_block_type="interpolate", downsample_block_type="conv", **facts)
    theirs = theirs.eval().requires_grad_(False)
    config = DCAEConfig(latent_channels=8, widths=widths, depths=(1,) * 6, decoder_depths=(1,) * 6)
    ours = DCAE(config).eval().requires_grad_(False)
    state, own = to_ours(theirs.state_dict(), LAYOUTS["diffusers-image-dc-ae"]), ours.state_dict()
    for name, tensor in state.items():
        target = own[name]
        if target.dim() == 5:
            target.zero_()[:, :, target.shape[2] // 2] = tensor
        else:
            target.copy_(tensor)
    picture = torch.rand(1, 3, 64, 96) * 2 - 1
    z = theirs.encode(picture).latent
    encoded = (ours.encode(picture[:, :, None])[:, :, 0] - z).abs().max()
    decoded = (ours.decode(z[:, :, None])[:, :, 0] - theirs.decode(z).sample).abs().max()
    return {"encode": float(encoded), "decode": float(decoded), "tensors": len(state)}


def measure(repeats):
    """Everything that the result holds."""
    ours, theirs = video_models()
    clip = torch.rand(CLIP) * 2 - 1
    with torch.no_grad():
        z = ours.posterior(clip).mean_BCTHW
        same = {
            "encode": float((z - theirs.encode(clip).latent_dist.mean).abs().max()),
            "decode": float((ours.decode(z) - theirs.decode(z).sample).abs().max()),
        }
        result = {
            "encode": interleaved(lambda: ours.posterior(clip), lambda: theirs.encode(clip), repeats),
            "decode": interleaved(lambda: ours.decode(z), lambda: theirs.decode(z), repeats),
        }
    reconstruct = lambda x: theirs.decode(theirs.encode(x).latent_dist.mean).sample  # noqa: E731
    steps = train_step(ours, ours, clip), train_step(theirs, reconstruct, clip)
    result["forward_and_backward"] = interleaved(*steps, max(2, repeats // 2))
    return {"largest_difference": same, "picture_dc_ae_difference": picture_dc_ae_difference(), "cpu_seconds": result}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    today = str(date(2026, 11, 23))
    result = {
        "what": f"HunyuanVideo VAE, widths {WIDTHS}, one clip {CLIP}, float32, medians of {repeats} alternating runs",
        "date": today,
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": 1,
        **measure(repeats),
    }
    path = Path(__file__).parent / "results" / f"hunyuan-vae-beside-diffusers-{today}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
