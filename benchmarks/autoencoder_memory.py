"""Peak memory of encoding and decoding with and without tiles, at published widths and without any real memory.

Models and clips live on torch's meta device, and every tensor's bytes are counted from its birth to its death, so the
peak is that of the activations, exact and the same on every machine; kernels' own workspaces come on top. One small
case runs for real, in a process of its own, and its resident memory is put beside the count.

`tile_factor` is (peak - clip - latents) over the bytes of one activation of the first width at one tile's pixels: the
formula is peak = input + output + tile_factor * width * tile frames * tile pixels^2 * bytes per value. The factor holds
the pictures of one time tile too, so it rises a little with the picture, and most for small tiles.
"""

import argparse
import json
import resource
import subprocess
import sys
import weakref
from datetime import date
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.resource.architecture import AutoencoderTiling
from videotrain_trainer.networks.build import build_autoencoder

GIB = 2**30
SMALL = {"widths": [16, 16, 16, 16], "norm_groups": 4, "depths": [1] * 4, "decoder_depths": [1] * 4}
TILES = {
    "hunyuan-vae": [None, (256, None), (256, 64), (256, 16)],
    "dc-ae-f32t4c128": [None, (256, None), (256, 32)],
}


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = {}

    def hold(self, tensor):
        """Count a tensor that was made outside."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key, size):
        del self._known[key]
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, torch.Tensor):
                self.hold(value)
        return out


def spec_of(preset, tile, overlap=0.25, **changes):
    tiling = None if tile is None else AutoencoderTiling(pixels=tile[0], frames=tile[1], overlap=overlap)
    return AUTOENCODERS[preset].model_copy(update={"tiling": tiling, **changes})


def work_of(spec, size, device, dtype):
    """Model, input and function of both directions."""
    frames, height, width = size
    with torch.device(device):
        model = build_autoencoder(spec).to(dtype).eval().requires_grad_(False)
    video = torch.zeros(1, 3, *size, device=device, dtype=dtype)
    side = spec.spatial_compression
    latents = (spec.latent_channels, spec.time.latent_frames(frames), height // side, width // side)
    z = torch.zeros(1, *latents, device=device, dtype=dtype)
    return {"encode": (model.encode, video), "decode": (model.decode, z)}, video.nbytes + z.nbytes


@torch.inference_mode()
def counted(spec, size, device="meta", dtype=torch.bfloat16, parts=("encode", "decode")):
    """Peak in GiB, bytes beside clip and latents, and factor of the directions."""
    work, ends = work_of(spec, size, device, dtype)
    tiles, found = spec.tiling, {}
    frames = min(size[0], tiles.frames + spec.causal if tiles and tiles.frames else size[0])
    rows, columns = (min(side, tiles.pixels if tiles and tiles.pixels else side) for side in size[1:])
    unit = spec.widths[0] * frames * rows * columns * dtype.itemsize
    for name in parts:
        code, given = work[name]
        with LiveBytes() as live:
            live.hold(given)
            code(given)
        rest = live.peak - ends
        found[name] = {
            "peak_gib": round(live.peak / GIB, 3),
            "activations": rest,
            "tile_factor": round(rest / unit, 2),
        }
    return found


def resident(tile):
    """In this process: what the count says and what the machine says, for a small model on real memory."""
    spec, size = spec_of("hunyuan-vae", tile, **SMALL), (9, 192, 192)
    torch.set_num_threads(1)
    with torch.inference_mode():
        work, _ = work_of(spec, size, "cpu", torch.float32)
        code, z = work["decode"]
        code(z[:, :, :1, :8, :8])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        code(z)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    count = counted(spec, size, dtype=torch.float32)["decode"]["peak_gib"]
    return {"counted_gib": count, "resident_gib": round((after - before) / GIB, 3)}


def measured(tile):
    out = subprocess.run(
        [sys.executable, __file__, "--resident", json.dumps(tile)], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def all_cases():
    rows = []
    for preset, tiles in TILES.items():
        longest = 129 if preset == "hunyuan-vae" else 128
        for tile in tiles:
            for size in ((longest, 768, 768), (longest // 2 + 1 if longest % 2 else 64, 512, 512)):
                row = {"preset": preset, "tile": tile, "clip": size, **counted(spec_of(preset, tile), size)}
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resident", type=json.loads, default="0")
    tile = parser.parse_args().resident
    if tile != 0:
        print(json.dumps(resident(tile)))
        return
    today = str(date(2026, 11, 23))
    result = {
        "what": "peak bytes of live tensors, bfloat16, batch of one, published widths (meta device)",
        "date": today,
        "torch": torch.__version__,
        "cases": all_cases(),
        "beside_resident_memory": {
            "what": f"decoding 9 frames of 192 x 192 pixels on the CPU, float32, {SMALL['widths']} channels",
            **{str(tile): measured(tile) for tile in (None, (128, 16))},
        },
    }
    path = Path(__file__).parent / "results" / f"autoencoder-memory-{today}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
