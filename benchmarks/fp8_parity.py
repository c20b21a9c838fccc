"""Loss curves of a tiny MMDiT trained with FP8 products and without: same weights, clips, noise and order, in one run.

    python benchmarks/fp8_parity.py --steps 2000 --out benchmarks/results/fp8-parity-DATE.json

bf16 weights with float32 masters and AdamW, as the engines keep them; the loss is flow matching's. Every large layer
multiplies in FP8, also those of short streams, which a run leaves alone. On a CPU the products have the same roundings
as on a GPU, and no speed is measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videotrain_api.resource.architecture import TextEncoderSpec, TransformerSpec
from videotrain_trainer import models
from videotrain_trainer.networks.fp8 import use_fp8
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.packing import pack, position_ids

LATENT, TEXT_TOKENS, CLIPS, BATCH = (2, 8, 8), 8, 64, 8
TEXT = TextEncoderSpec(context_dim=64, pooled_dim=32)
LEARNING_RATE = 1e-3
LAST = 0.2
"""Share of the steps, at the end, whose mean losses are compared."""


@dataclass(frozen=True)
class Clips:
    """Smooth latents, and text that tells them apart."""

    latents: Tensor
    texts: Tensor
    pooled: Tensor

    @classmethod
    def draw(cls, channels: int) -> Clips:
        """Sums of a few waves in time and space, each clip its own."""
        generator = torch.Generator().manual_seed(1)
        axes = torch.meshgrid(*(torch.arange(size) / size for size in LATENT), indexing="ij")
        latents = torch.zeros(CLIPS, channels, *LATENT)
        for _ in range(3):
            rates = torch.randint(0, 3, (3, CLIPS, channels, 1, 1, 1), generator=generator)
            phase = torch.rand(CLIPS, channels, 1, 1, 1, generator=generator)
            wave = sum(rate * axis for rate, axis in zip(rates, axes, strict=True)) + phase
            latents += torch.sin(2 * torch.pi * wave)
        texts = torch.randn(CLIPS, TEXT_TOKENS, TEXT.context_dim, generator=generator)
        return cls(latents, texts, torch.randn(CLIPS, TEXT.pooled_dim, generator=generator))


class Training:
    """A model in bf16 with float32 masters."""

    def __init__(self, model: MMDiT) -> None:
        self.model = model.bfloat16()
        self._masters = [parameter.detach().float().requires_grad_() for parameter in self.model.parameters()]
        self._optimizer = torch.optim.AdamW(self._masters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self, clips: Clips, seed: int) -> float:
        """One step on clips, times and noise that the seed chooses; its loss."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(0, CLIPS, (BATCH,), generator=generator)
        patch = self.model.config.patch_size
        clean_BNI = pack(clips.latents[chosen], patch)
        noise_BNI = torch.randn(clean_BNI.shape, generator=generator)
        times_B = torch.rand(BATCH, generator=generator)
        mixed_BNI = torch.lerp(clean_BNI, noise_BNI, times_B[:, None, None])
        found_BNI = self.model(
            mixed_BNI,
            position_ids(*LATENT, patch, BATCH),
            clips.texts[chosen],
            torch.zeros(BATCH, TEXT_TOKENS, 3),
            times_B,
            clips.pooled[chosen],
        )
        loss = F.mse_loss(found_BNI.float(), noise_BNI - clean_BNI)
        loss.backward()
        self._update()
        return float(loss.detach())

    @torch.no_grad()
    def _update(self) -> None:
        for master, parameter in zip(self._masters, self.model.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        for master, parameter in zip(self._masters, self.model.parameters(), strict=True):
            parameter.copy_(master)


def curves(steps: int) -> dict[str, list[float]]:
    """Losses of every step, in turns."""
    spec = TransformerSpec(preset="mmdit-tiny", cond_embed=False)
    plain = models.build(spec, autoencoder="hunyuan-vae-tiny", text_encoder=TEXT, seed=1).train()
    fp8 = copy.deepcopy(plain)
    use_fp8(fp8, least_rows=0)
    clips = Clips.draw(plain.config.in_channels // plain.config.patch_size**2)
    trainings = {"bf16": Training(plain), "fp8": Training(fp8)}
    losses: dict[str, list[float]] = {name: [] for name in trainings}
    for seed in range(steps):
        for name, training in trainings.items():
            losses[name].append(training.step(clips, seed))
    return losses


def gap(losses: dict[str, list[float]], last: float = LAST) -> float:
    """How much larger the mean loss of the last steps is in FP8, as a part of that in bf16."""
    means = {name: _mean(curve[-max(1, int(last * len(curve))) :]) for name, curve in losses.items()}
    return means["fp8"] / means["bf16"] - 1


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _thinned(curve: list[float], points: int = 40) -> list[float]:
    width = max(1, len(curve) // points)
    return [round(_mean(curve[at : at + width]), 5) for at in range(0, len(curve), width)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    losses = curves(options.steps)
    today = datetime.now(UTC).date().isoformat()
    result: dict[str, Any] = {
        "what": "flow matching loss of a tiny MMDiT, FP8 products in all large layers and none, same noise, in turns",
        "date": today,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "steps": options.steps,
        "gap_of_last_fifth": gap(losses),
        "losses": {name: _thinned(curve) for name, curve in losses.items()},
    }
    path = options.out or Path(__file__).parent / "results" / f"fp8-parity-{today}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
