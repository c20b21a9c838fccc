"""A training step beside those of diffusers' and torchtitan's models: same weights, same inputs, in turns, in one run.

A step is forward, mean squared error, backward and fused AdamW, float32, one thread, in CPU seconds. The peers compute
the same function: diffusers' FluxTransformer2DModel, its HunyuanVideoTransformer3DModel without text refiner, and
torchtitan's FluxModel where it is installed. Outputs and gradients are compared before anything is timed.

    pip install torchtitan==0.3.0               # for the third, which is left out without it
    python benchmarks/train_step_cpu.py --out benchmarks/results/train-step-cpu-DATE.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from models_cpu import TEXT, as_peer, cpu_seconds, flux, in_layout, inputs, summary
from torch import Tensor, nn

from videotrain_api.resource.architecture import TransformerSpec
from videotrain_trainer import models
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.packing import pack, unpack

MODEL = TransformerSpec(
    preset="mmdit-tiny",
    hidden_size=512,
    num_heads=8,
    double_blocks=2,
    single_blocks=4,
    rope_axes=[8, 28, 28],
    cond_embed=False,
)
LATENT, TEXT_TOKENS = (3, 16, 16), 64
TOLERANCE = 1e-3
"""Of outputs and gradients, relative to their largest: float32 sums in another order."""
Given = Mapping[str, Tensor]


@dataclass(frozen=True)
class Side:
    """One model that computes the function."""

    name: str
    version: str
    module: nn.Module
    run: Callable[[Given], Tensor]
    """From our packed inputs to the packed velocity (B, N, I)."""


def sides(peers: Sequence[str]) -> list[Side]:
    """Ours first, then those peers, by their keys in PEERS."""
    mine = models.build(MODEL, autoencoder="hunyuan-vae-tiny", text_encoder=TEXT, seed=1)
    with torch.no_grad():  # no weight may be zero, or a part of the model would not be compared
        for parameter in mine.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    ours = Side("videotrain", version("videotrain-trainer"), mine, lambda given: mine(**given))
    return [ours, *(PEERS[name](mine) for name in peers)]


def _flux(mine: MMDiT) -> Side:
    module = flux(mine).train()
    return Side("diffusers flux", version("diffusers"), module, lambda given: module(**as_peer(given))[0])


def _hunyuan_video(mine: MMDiT) -> Side:
    """On latents instead of tokens, and without the text refiner: the same blocks, as HunyuanVideo has them."""
    from diffusers import HunyuanVideoTransformer3DModel

    config = mine.config
    patch = config.patch_size
    channels = config.in_channels // patch**2
    module = HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        num_refiner_layers=0,
        mlp_ratio=config.mlp_ratio,
        patch_size=patch,
        guidance_embeds=False,
        text_embed_dim=config.context_dim,
        pooled_projection_dim=config.pooled_dim,
        rope_theta=config.rope_theta,
        rope_axes_dim=config.rope_axes,
    ).train()
    state = in_layout("diffusers", mine)
    state["x_embedder.proj.weight"] = state.pop("x_embedder.weight").reshape(-1, channels, 1, patch, patch)
    state["x_embedder.proj.bias"] = state.pop("x_embedder.bias")
    for kind in ("weight", "bias"):
        state[f"context_embedder.proj_in.{kind}"] = state.pop(f"context_embedder.{kind}")
    missing, unknown = module.load_state_dict(state, strict=False)
    idle = [name for name in missing if name.startswith("context_embedder.time_text_embed.")]  # of the refiner's blocks
    assert not unknown, unknown
    assert missing == idle, missing

    def run(given: Given) -> Tensor:
        out = module(
            hidden_states=unpack(given["img_BNI"], *LATENT, patch),
            timestep=1000 * given["timesteps_B"],
            encoder_hidden_states=given["txt_BLD"],
            encoder_attention_mask=torch.ones(given["txt_BLD"].shape[:2]),
            pooled_projections=given["pooled_BP"],
            return_dict=False,
        )
        return pack(out[0], patch)

    return Side("diffusers hunyuan-video", version("diffusers"), module, run)


def _torchtitan(mine: MMDiT) -> Side:
    import torchtitan_flux

    module = torchtitan_flux.build(mine.config, in_layout("flux-dev", mine))

    def run(given: Given) -> Tensor:
        out: Tensor = module(
            img=given["img_BNI"],
            img_ids=given["img_ids_BN3"],
            txt=given["txt_BLD"],
            txt_ids=given["txt_ids_BL3"],
            timesteps=given["timesteps_B"],
            y=given["pooled_BP"],
        )
        return out

    return Side("torchtitan flux", version("torchtitan"), module, run)


PEERS: Mapping[str, Callable[[MMDiT], Side]] = {
    "diffusers flux": _flux,
    "diffusers hunyuan-video": _hunyuan_video,
    "torchtitan flux": _torchtitan,
}


class Step:
    """One optimizer step of a side, over and over on the same batch."""

    def __init__(self, side: Side, given: Given, target_BNI: Tensor) -> None:
        self.side, self._given, self._target_BNI = side, given, target_BNI
        self._optimizer = torch.optim.AdamW(side.module.parameters(), lr=1e-5, fused=True)

    def __call__(self) -> None:
        F.mse_loss(self.side.run(self._given), self._target_BNI).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def check_equal(found: list[Side], given: Given, target_BNI: Tensor) -> dict[str, float]:
    """Largest difference of each peer's output and gradient of the noisy latent, relative to the largest value."""

    def both(side: Side) -> tuple[Tensor, Tensor]:
        latent_BNI = given["img_BNI"].clone().requires_grad_()
        out_BNI = side.run({**given, "img_BNI": latent_BNI})
        (gradient_BNI,) = torch.autograd.grad(F.mse_loss(out_BNI, target_BNI), latent_BNI)
        return out_BNI.detach(), gradient_BNI

    mine = both(found[0])
    differences = {}
    for side in found[1:]:
        theirs = zip(mine, both(side), strict=True)
        differences[side.name] = max(float((a - b).abs().max() / a.abs().max()) for a, b in theirs)
        assert differences[side.name] < TOLERANCE, f"{side.name} computes something else: {differences}"
    return differences


def measure(rounds: int, peers: Sequence[str]) -> dict[str, Any]:
    """CPU milliseconds of a step of each side, in turns, each one first once in a while."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = sides(peers)
    given = inputs(found[0].module.config, LATENT, TEXT_TOKENS)
    target_BNI = torch.randn_like(given["img_BNI"])
    differences = check_equal(found, given, target_BNI)
    steps = [Step(side, given, target_BNI) for side in found]
    times: dict[str, list[float]] = {side.name: [] for side in found}
    for step in steps:
        step()
    for number in range(rounds):
        turn = number % len(steps)
        for step in steps[turn:] + steps[:turn]:
            times[step.side.name].append(cpu_seconds(step))
    return {
        "parameters": sum(parameter.numel() for parameter in found[0].module.parameters()),
        "image_tokens": given["img_BNI"].shape[1],
        "text_tokens": TEXT_TOKENS,
        "largest_difference": differences,
        "versions": {side.name: side.version for side in found},
        "step_ms": {name: summary(mine) for name, mine in times.items()},
        "ratio_to_peer": {
            name: statistics.median(times["videotrain"]) / statistics.median(theirs)
            for name, theirs in times.items()
            if name != "videotrain"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    today = datetime.now(UTC).date().isoformat()
    installed = [name for name in PEERS if importlib.util.find_spec(name.split()[0]) is not None]
    result = {
        "what": "forward, loss, backward, AdamW; float32, batch 1, one thread; CPU milliseconds, all models in turns",
        "date": today,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        **measure(options.rounds, installed),
    }
    path = options.out or Path(__file__).parent / "results" / f"train-step-cpu-{today}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
