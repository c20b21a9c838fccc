"""Seconds per clip of the tiny Video DC-AE on one core: torch's own choice of kernel against ours."""

import json
import platform
import time
from datetime import date
from pathlib import Path

import torch

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_trainer.networks.autoencoders import dc_ae
from videotrain_trainer.networks.build import build_autoencoder, initialize

REPEATS = 5


def seconds(work):
    work()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def measure(convolve):
    dc_ae.convolve = convolve
    model = build_autoencoder(AUTOENCODERS["dc-ae-tiny"])
    initialize(model, 1)
    clip = torch.rand(1, 3, 8, 64, 64) * 2 - 1

    def train():
        model.zero_grad()
        model(clip).square().mean().backward()

    @torch.no_grad()
    def encode():
        model.encode(clip)

    return {"train_step_s": seconds(train), "encode_s": seconds(encode)}


def main():
    torch.set_num_threads(1)
    ours = dc_ae.convolve
    peer = measure(lambda conv, x: conv(x))
    result = {
        "what": "dc-ae-tiny, one clip of 8 frames of 64 x 64 pixels, float32, CPU seconds",
        "date": str(date(2026, 11, 23)),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "torch_choice": peer,
        "ours": measure(ours),
    }
    result["speedup"] = {name: peer[name] / result["ours"][name] for name in peer}
    path = Path(__file__).parent / "results" / "dc-ae-cpu-2026-11-23.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
