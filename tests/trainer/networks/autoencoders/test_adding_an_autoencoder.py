"""The way that CONTRIBUTING tells: a network, a row in the registry and one in the API's table, and a run works."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.autoencoders import clip
from support.latent_run import LatentRun, storage  # noqa: F401 - a fixture
from torch import Tensor, nn

from videotrain_api.config.presets import TRANSFORMERS
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.autoencoder_kinds import KINDS, AutoencoderKind
from videotrain_trainer import models
from videotrain_trainer.networks import registry
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig, Causality, Posterior
from videotrain_trainer.networks.autoencoders.tiling import Axis, TileCoder
from videotrain_trainer.networks.build import build_autoencoder, initialize, load_autoencoder
from videotrain_trainer.networks.registry import AutoencoderRow


@dataclass(frozen=True, kw_only=True)
class BlockConfig(AutoencoderConfig):
    """Means of blocks of 2 x 16 x 16, mixed to latent channels."""

    @property
    def spatial_compression(self) -> int:
        return 16

    @property
    def temporal_compression(self) -> int:
        return 2

    @property
    def causality(self) -> Causality:
        return "none"


class BlockAutoencoder(Autoencoder):
    config: BlockConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tiles = TileCoder(16, Axis(2), config.tiling)
        self.mix = nn.Linear(3, config.latent_channels)
        self.back = nn.Linear(config.latent_channels, 3)

    def check_size(self, frames: int, rows: int, columns: int) -> None:
        if (frames > 1 and frames % 2) or rows % 16 or columns % 16:
            raise ValueError(f"{frames} frames of {rows} x {columns}")

    def moments(self, x_BCTHW: Tensor) -> Tensor:
        means = F.avg_pool3d(x_BCTHW, (min(2, x_BCTHW.shape[2]), 16, 16))
        return self.mix(means.movedim(1, -1)).movedim(-1, 1)

    def split(self, moments_BCTHW: Tensor) -> Posterior:
        return Posterior(moments_BCTHW, None)

    def pixels(self, z_BCTHW: Tensor) -> Tensor:
        out = self.back(z_BCTHW.movedim(1, -1)).movedim(-1, 1)
        return F.interpolate(out, scale_factor=(2 if z_BCTHW.shape[2] > 1 else 1, 16, 16))

    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        return z_BCTHW * self.config.scaling_factor

    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        return z_BCTHW / self.config.scaling_factor


@pytest.fixture
def spec(monkeypatch):
    kind = AutoencoderKind(
        needs=frozenset(),
        takes=frozenset(),
        temporal_compression=2,
        causality="none",
        stages=None,
        trainable=False,
        in_folder=False,
    )
    monkeypatch.setitem(KINDS, "blocks", kind)
    row = AutoencoderRow(title="block means", config=BlockConfig, of_spec=lambda _: {}, build=BlockAutoencoder)
    monkeypatch.setitem(registry.AUTOENCODERS, "blocks", row)
    fields = {"kind": "blocks", "latent_channels": 4, "scaling_factor": 0.5, "widths": [1] * 5}
    return AutoencoderSpec().model_copy(update=fields)


@pytest.mark.usefixtures("alone")
def test_a_run_with_it_encodes_trains_and_draws(spec, tmp_path, storage):  # noqa: F811 - the fixture
    module = build_autoencoder(spec)
    initialize(module, 3)
    save_file(module.state_dict(), tmp_path / "blocks.safetensors")
    model = TRANSFORMERS["mmdit-tiny"].model_copy(update={"patch_size": 1})
    run = LatentRun(tmp_path / "all", model, spec, tmp_path / "blocks.safetensors")
    sizes = {(row["latent_frames"], row["latent_height"], row["latent_width"]) for row in run.encode(storage)}
    assert sizes == {(2, 4, 4)}
    loss, shape = run.train()
    assert 0 < loss < 1000
    assert shape == (4, 2, 4, 4)
    assert run.draw() == [(4, 64, 64)] * 2


def test_it_is_saved_loaded_coded_and_asked_for_blocks_like_any_other(spec, tmp_path):
    module = build_autoencoder(spec)
    initialize(module, 3)
    module.eval()
    models.save(module, tmp_path / "blocks.safetensors")
    loaded = load_autoencoder(spec, tmp_path / "blocks.safetensors").eval()
    video = clip(2, 3, 4, 32, 32)
    latent = models.encode(loaded, video)
    assert torch.equal(latent, models.encode(module, video))
    assert models.decode(loaded, latent).shape == video.shape
    assert module.recomputable_blocks() == []
