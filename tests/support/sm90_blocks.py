"""What Inductor makes of the transformer's blocks for a Hopper GPU, on a machine that has none.

Run as a program, since it makes torch, Triton and Inductor believe in an H200; see benchmarks/inductor_for_h200.py.
Prints counts as JSON.

A unit is hidden size x 2 bytes, what a bfloat16 stream takes per token.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from inductor_for_h200 import Code, lower, pretend

WIDTH, HEADS, IMAGE, TEXT = 3072, 24, 20_736, 512
"""Of the 11B model, and of a 768px clip of 33 frames."""
UNIT = 2 * WIDTH
aten = torch.ops.aten


def counts(kind: str, policy: str) -> dict[str, Any]:
    """Of one block with one sample, forward and backward."""
    from videotrain_trainer.parallel.activation import KEPT

    block = made(kind)
    with torch.device("meta"):
        lengths = [IMAGE, TEXT] if kind == "double" else [IMAGE + TEXT]
        streams = [torch.empty(1, n, WIDTH, dtype=torch.bfloat16, requires_grad=True) for n in lengths]
        vec = torch.empty(1, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        rope = tuple(torch.empty(1, 1, IMAGE + TEXT, WIDTH // HEADS // 2) for _ in range(2))
    found = lower(block, (*streams, vec, rope), cudnn, policy, KEPT)
    first = len(list(block.parameters()))
    # A stream counts, but not weights and their views, rotation tables and the vector that modulates.
    counted = (None, *range(first, first + len(streams)))
    saved = sum(size for place, size in found.kept if place in counted)
    return {
        "saved": round(saved / (IMAGE + TEXT) / UNIT, 2),
        "forward": kernels(found.forward),
        "backward": kernels(found.backward),
    }


def kernels(code: Code) -> dict[str, Any]:
    """Kernels of one graph, and its elementwise traffic in units per token."""
    text = "\n".join(line for line in code.text.splitlines() if not line.strip().startswith("#"))
    return {
        "elementwise kernels": len(re.findall(r"triton_\w+?\.run\(", text)),
        "products": len(re.findall(r"extern_kernels\.\w+\(", text)),
        "attention forward": len(re.findall(r"_scaled_dot_product_cudnn_attention\.default\(", text)),
        "attention backward": len(re.findall(r"_scaled_dot_product_cudnn_attention_backward\.default\(", text)),
        "traffic": round(code.elementwise_bytes / (IMAGE + TEXT) / UNIT, 1),
    }


def cudnn(q: Any, k: Any, v: Any) -> Any:
    return aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[0]


def made(kind: str) -> torch.nn.Module:
    from videotrain_trainer.networks.mmdit.config import MMDiTConfig
    from videotrain_trainer.networks.mmdit.model import DoubleBlock, SingleBlock

    config = MMDiTConfig(
        in_channels=64,
        context_dim=4096,
        pooled_dim=768,
        hidden_size=WIDTH,
        num_heads=HEADS,
        double_blocks=1,
        single_blocks=1,
        mlp_ratio=4.0,
        rope_axes=(16, 56, 56),
        patch_size=2,
        cond_embed=True,
        guidance_embed=False,
    )
    with torch.device("meta"):
        return (DoubleBlock if kind == "double" else SingleBlock)(config).to(torch.bfloat16)


if __name__ == "__main__":
    pretend()
    wanted = [argument.split("/") for argument in sys.argv[1:]]
    print(json.dumps({f"{kind}, {policy}": counts(kind, policy) for kind, policy in wanted}))
