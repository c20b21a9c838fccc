"""The memory of a coding in tiles is that of a tile, whatever the clip."""

from __future__ import annotations

import pytest
import torch
from autoencoder_memory import LiveBytes, counted, spec_of


def test_bytes_are_counted_from_birth_to_death():
    with LiveBytes() as live:
        first = torch.zeros(1000, device="meta")
        second = first + 1
        del first
        third = second.view(10, 100)
        _ = third * 2
    assert live.peak == 3 * 4000 - 4000
    assert live.now == 2 * 4000


@pytest.mark.parametrize(("preset", "stages", "frames"), [("hunyuan-vae-tiny", 4, 17), ("dc-ae-tiny", 6, 16)])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_the_peak_of_a_tiled_coding_does_not_grow_with_the_clip(preset, stages, frames, direction):
    sizes, wide = ((frames, 64, 96), (frames + 16, 96, 128)), {"widths": [128] * stages}
    tiled, whole = (
        [counted(spec_of(preset, tile, 0.5, **wide), size, parts=(direction,))[direction] for size in sizes]
        for tile in ((64, 16), None)
    )
    # The picture of a time tile grows, but has three channels where an activation has 128.
    assert tiled[1]["activations"] < 1.1 * tiled[0]["activations"]
    assert whole[1]["activations"] > 3 * whole[0]["activations"]
