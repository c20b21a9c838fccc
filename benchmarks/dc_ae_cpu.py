"""Seconds of tiny Video DC-AEs on one core: torch's choice of kernels, ours beside real enlargements, and ours."""

import json
import platform
import time
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_trainer.networks.autoencoders import dc_ae
from videotrain_trainer.networks.build import build_autoencoder, initialize

REPEATS = 4
SHALLOW = {"widths": [8, 32, 64, 256], "depths": [0] * 4, "decoder_depths": [0] * 4}
MODELS = {"dc-ae-tiny, one clip": ({}, 1), "8, 32, 64 and 256 wide without blocks, two clips": (SHALLOW, 2)}


def enlarged(convolve):
    """The convolution of an enlargement that is made."""

    def work(conv, x, factor):
        return convolve(conv, F.interpolate(x, scale_factor=[float(n) for n in factor], mode="nearest"))

    return work


def measure(changes, clips, ways):
    """The least of some times, the ways taking turns."""
    model = build_autoencoder(AUTOENCODERS["dc-ae-tiny"].model_copy(update=changes))
    initialize(model, 1)
    clip = torch.rand(clips, 3, 8, 64, 64) * 2 - 1
    with torch.no_grad():
        latent = model.encode(clip)

    def train():
        model.zero_grad()
        model(clip).square().mean().backward()

    works = {
        "train_step_s": train,
        "encode_s": torch.no_grad()(lambda: model.encode(clip)),
        "decode_s": torch.no_grad()(lambda: model.decode(latent)),
    }
    found = {way: dict.fromkeys(works, float("inf")) for way in ways}
    for _ in range(REPEATS):
        for way, (dc_ae.convolve, dc_ae.convolve_enlarged) in ways.items():
            for name, work in works.items():
                started = time.process_time()
                work()
                found[way][name] = min(found[way][name], time.process_time() - started)
    return found


def main():
    torch.set_num_threads(1)
    ours, choice = dc_ae.convolve, torch.nn.Conv3d.forward
    ways = {
        "torch_choice": (choice, enlarged(choice)),
        "with_enlargements": (ours, enlarged(ours)),
        "ours": (ours, dc_ae.convolve_enlarged),
    }
    result = {
        "what": "8 frames of 64 x 64 pixels, float32, CPU seconds; other work on the machine meanwhile",
        "date": str(date(2026, 11, 30)),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "models": {name: measure(changes, clips, ways) for name, (changes, clips) in MODELS.items()},
    }
    path = Path(__file__).parent / "results" / "dc-ae-cpu-2026-11-30.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
