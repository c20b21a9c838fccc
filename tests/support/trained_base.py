"""A tiny transformer that was trained, in this process and in a minute, on clips: something for an adapter to change.

Shapes: B batch, C latent channels, T latent frames, H rows, W columns, N image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from videotrain_trainer.diffusion.conditioning import pack_condition
from videotrain_trainer.diffusion.flow_matching import interpolate, shift_alpha, time_shift, velocity
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.packing import pack, position_ids
from videotrain_trainer.text.encoders import TextEncoder

BATCH, LEARNING_RATE, WARM_UP, NORM = 8, 3e-3, 20, 1.0


def train_base(
    transformer: MMDiT, encoder: TextEncoder, latents_BCTHW: torch.Tensor, captions: Sequence[str], steps: int
) -> float:
    """Flow matching of text to video; the loss of the last tenth of the steps.

    Args:
        transformer: with a condition input; it is trained in place.
        encoder: of its captions.
        latents_BCTHW: what it is to draw, whatever the caption.
        captions: one is drawn for each batch.
        steps: of AdamW, with a rate that falls to a tenth.
    """
    generator, patch = torch.Generator().manual_seed(0), transformer.config.patch_size
    texts = [encoder.encode([caption]) for caption in captions]
    _, channels, frames, rows, columns = latents_BCTHW.shape
    alpha = shift_alpha(rows * columns / patch**2, frames)
    nothing_given = torch.zeros(BATCH, 1, frames, rows, columns), torch.zeros(BATCH, channels, frames, rows, columns)
    optimizer, losses = torch.optim.AdamW(transformer.parameters(), weight_decay=0.0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (1 - 0.9 * step / steps)
        chosen = torch.randint(len(latents_BCTHW), (BATCH,), generator=generator)
        text = texts[int(torch.randint(len(texts), (1,), generator=generator))]
        x0_BNI = pack(latents_BCTHW[chosen], patch)
        x1_BNI = torch.randn(x0_BNI.shape, generator=generator)
        t_B = time_shift(alpha, torch.sigmoid(torch.randn(BATCH, generator=generator)))
        predicted_BNI = transformer(
            img_BNI=interpolate(x0_BNI, x1_BNI, t_B),
            img_ids_BN3=position_ids(frames, rows, columns, patch, BATCH, t_B.device),
            txt_BLD=text.context_BLD.expand(BATCH, -1, -1),
            txt_ids_BL3=torch.zeros(BATCH, text.context_BLD.shape[1], 3),
            timesteps_B=t_B,
            pooled_BP=text.pooled_BP.expand(BATCH, -1),
            cond_BNE=pack_condition(*nothing_given, patch),
        )
        loss = (predicted_BNI - velocity(x0_BNI, x1_BNI)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
