"""CPU seconds of the MMDiT's forward pass beside diffusers' FluxTransformer2DModel: same weights, same inputs, one run.

diffusers is needed by this script alone: `pip install diffusers`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import diffusers
import torch
from diffusers import FluxTransformer2DModel

from videotrain_api.resource.architecture import TextEncoderSpec, TransformerSpec
from videotrain_trainer import models
from videotrain_trainer.models.diffusers_folder import transformer_fields
from videotrain_trainer.networks.layout_rules import Mapped, towards_theirs
from videotrain_trainer.networks.packing import position_ids
from videotrain_trainer.networks.weights.layouts import scheme

MODELS = {
    "flux-dev-tiny": (TransformerSpec(preset="flux-dev-tiny"), (1, 16, 16), 64),
    "mmdit-tiny, i2v, 5 latent frames": (TransformerSpec(preset="mmdit-tiny"), (5, 16, 16), 64),
    "mmdit of width 512, i2v, 3 latent frames": (
        TransformerSpec(
            preset="mmdit-tiny", hidden_size=512, num_heads=8, double_blocks=3, single_blocks=6, rope_axes=[8, 28, 28]
        ),
        (3, 16, 16),
        128,
    ),
}
"""Name to transformer, (frames, rows, columns) of the latent, text tokens."""
TEXT = TextEncoderSpec(context_dim=64, pooled_dim=32)


def pair(spec):
    """Our model and diffusers', with the same float32 weights."""
    ours = models.build(spec, autoencoder="hunyuan-vae-tiny", text_encoder=TEXT, seed=1)
    if ours.cond_in is not None:
        torch.nn.init.normal_(ours.cond_in.weight, std=0.1)
    return ours, flux(ours)


def flux(ours):
    """diffusers' model with the weights of ours."""
    fields = {name: value for name, value in transformer_fields(ours.config).items() if name[0] != "_"}
    peer = FluxTransformer2DModel(**fields).eval()
    peer.load_state_dict(in_layout("diffusers", ours), strict=True)
    return peer


def in_layout(layout, ours):
    """Our weights in a published layout."""
    stored, state = scheme(layout, ours.config), ours.state_dict()
    theirs = Mapped(towards_theirs(stored.rules), lambda name: state[name])
    return {name: theirs(name) for name in theirs.names}


def inputs(config, latent, text):
    frames, rows, columns = latent
    ids = position_ids(frames, rows, columns, config.patch_size, 1)
    tokens = ids.shape[1]
    return {
        "img_BNI": torch.randn(1, tokens, config.in_channels),
        "img_ids_BN3": ids,
        "txt_BLD": torch.randn(1, text, config.context_dim),
        "txt_ids_BL3": torch.zeros(1, text, 3),
        "timesteps_B": torch.rand(1),
        "pooled_BP": torch.randn(1, config.pooled_dim),
        "cond_BNE": torch.randn(1, tokens, config.cond_features) if config.cond_embed else None,
        "guidance_B": torch.tensor([4.0]) if config.guidance_embed else None,
    }


def as_peer(given):
    cond = given["cond_BNE"]
    image = given["img_BNI"] if cond is None else torch.cat((given["img_BNI"], cond), dim=-1)
    return {
        "hidden_states": image,
        "encoder_hidden_states": given["txt_BLD"],
        "pooled_projections": given["pooled_BP"],
        "timestep": given["timesteps_B"],
        "img_ids": given["img_ids_BN3"][0],
        "txt_ids": given["txt_ids_BL3"][0],
        "guidance": given["guidance_B"],
        "return_dict": False,
    }


def cpu_seconds(work):
    began = time.process_time()
    work()
    return time.process_time() - began


@torch.no_grad()
def measure(spec, latent, text, rounds):
    ours, peer = pair(spec)
    given = inputs(ours.config, latent, text)
    peer_given = as_peer(given)
    difference = (ours(**given) - peer(**peer_given)[0]).abs().max().item()
    assert difference < 5e-5, f"the two models differ by {difference}"
    mine, other = [], []
    for number in range(rounds):  # in turns, each first in every second round
        turns = [(mine, lambda: ours(**given)), (other, lambda: peer(**peer_given))]
        for times, work in turns if number % 2 else turns[::-1]:
            times.append(cpu_seconds(work))
    return {
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "image_tokens": given["img_BNI"].shape[1],
        "text_tokens": text,
        "largest_difference": difference,
        "ours_ms": summary(mine),
        "diffusers_ms": summary(other),
        "ratio_of_medians": statistics.median(mine) / statistics.median(other),
        "ratio_of_minima": min(mine) / min(other),
    }


def summary(times):
    return {"median": 1e3 * statistics.median(times), "min": 1e3 * min(times), "max": 1e3 * max(times)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    today = datetime.now(UTC).date().isoformat()
    result = {
        "what": "forward pass, float32, batch 1, one thread, CPU milliseconds, both models in turns",
        "date": today,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "rounds": options.rounds,
        "models": {name: measure(*about, options.rounds) for name, about in MODELS.items()},
    }
    path = options.out or Path(__file__).parent / "results" / f"models-cpu-{today}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["models"], indent=1))


if __name__ == "__main__":
    main()
