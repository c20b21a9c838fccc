"""Any video autoencoder of diffusers, from the folder that its `save_pretrained` writes.

The network is diffusers' own; its sizes stand in the folder's `config.json`. What that file does not say the same way
for every class (compression, causality) stands in `spec.autoencoder`, and is compared with what the class says of
itself and with what it really gives.

Latents are normalised as diffusers' pipelines do: (z - mean) / std * scale, for each channel, with the folder's
statistics (`latents_mean`, `latents_std`, `shift_factor`, `scaling_factor`) unless the specification has others.

Shape letters: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.autoencoder_kinds import TimeAxis
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig, Causality, Posterior
from videotrain_trainer.networks.autoencoders.tiling import Axis, TileCoder, Tiling

EXTRA = "pip install 'videotrain-trainer[diffusers]'"
_RATIOS = (
    ("temporal_compression_ratio", "scale_factor_temporal"),
    ("spatial_compression_ratio", "scale_factor_spatial"),
)
"""Names under which classes tell their compression in time and space; not every class does."""


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig(AutoencoderConfig):
    """What `config.json` and the specification say. Latents are multiplied by the scale, after mean and deviation."""

    fields: Mapping[str, Any]
    """Of `config.json`."""
    time: int
    space: int
    causal: Causality
    mean: tuple[float, ...] | None = None
    """Of each channel; or, as Cosmos has them, of each channel and latent frame."""
    std: tuple[float, ...] | None = None

    @property
    def spatial_compression(self) -> int:
        """As the specification says."""
        return self.space

    @property
    def temporal_compression(self) -> int:
        """As the specification says."""
        return self.time

    @property
    def causality(self) -> Causality:
        """As the specification says."""
        return self.causal


class DiffusersVAE(Autoencoder):
    """The autoencoder. `vae` is diffusers' model, with its weights under its own names."""

    config: DiffusersConfig

    def __init__(self, config: DiffusersConfig) -> None:
        super().__init__()
        self.config = config
        self.vae: nn.Module = _network(config.fields)
        self._check_ratios()
        self._axis = TimeAxis(config.time, config.causal)
        self.tiles = TileCoder(config.space, Axis(config.time, causal=self._axis.causal), config.tiling)

    def _check_ratios(self) -> None:
        """Raises ValueError if the class tells another compression than the specification."""
        for said, names in zip((self.config.time, self.config.space), _RATIOS, strict=True):
            told = [vars(self.vae).get(name) or self.config.fields.get(name) for name in names]
            ratios = [int(value) for value in told if isinstance(value, int | float)]
            if ratios and said not in ratios:
                raise ValueError(f"compression: {said}, but {type(self.vae).__name__} has {names[0]} {ratios[0]}")

    @property
    def _vae(self) -> Any:
        return self.vae

    def weights_owner(self) -> nn.Module:
        """Diffusers' model: its files have its own names."""
        return self.vae

    def check_size(self, frames: int, rows: int, columns: int) -> None:
        """T as causality and compression allow it, H and W multiples of the spatial compression."""
        unit = self.config.space
        if not self._axis.fits(frames) or rows % unit or columns % unit:
            raise ValueError(
                f"a clip of {frames} frames of {rows} x {columns} pixels cannot be encoded: frames must be "
                f"{self._axis.allowed}, rows and columns multiples of {unit}"
            )

    def moments(self, x_BCTHW: Tensor) -> Tensor:
        """Parameters of the class's distribution: mean and logarithm of the variance, or latents alone."""
        found = cast("Tensor", self._vae.encode(x_BCTHW).latent_dist.parameters)
        frames, rows, columns = x_BCTHW.shape[2:]
        wanted = (self._axis.latent_frames(frames), rows // self.config.space, columns // self.config.space)
        channels = self.config.latent_channels
        if tuple(found.shape[2:]) != wanted or found.shape[1] not in (channels, 2 * channels):
            raise ValueError(
                f"{type(self.vae).__name__} gives {list(found.shape[1:])} for a clip of {frames} x {rows} x {columns}, "
                f"but with spec.autoencoder's latentChannels {channels}, compression (time {self.config.time}, space "
                f"{self.config.space}) and causality {self.config.causal!r} it would be {[channels, *wanted]}: "
                "correct these fields"
            )
        return found

    def split(self, moments_BCTHW: Tensor) -> Posterior:
        """Mean, and logarithm of the variance in [-30, 20] where the class has one."""
        if moments_BCTHW.shape[1] == self.config.latent_channels:
            return Posterior(moments_BCTHW, None)
        mean, logvar = moments_BCTHW.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def pixels(self, z_BCTHW: Tensor) -> Tensor:
        """Diffusers' decoder; one that is told a noise level decodes clean latents."""
        options: dict[str, Tensor] = {}
        if self.config.fields.get("timestep_conditioning"):
            options["temb"] = torch.zeros(len(z_BCTHW), device=z_BCTHW.device, dtype=z_BCTHW.dtype)
        out = cast("Tensor", self._vae.decode(z_BCTHW, **options).sample)
        latents = z_BCTHW.shape[2]
        wanted = 1 if latents == 1 else self._axis.frames(latents)
        if out.shape[2] != wanted:
            raise ValueError(
                f"{type(self.vae).__name__} decodes {latents} latent frames to {out.shape[2]} frames, not to {wanted} "
                "as its compression and causality say; CogVideoX needs an odd number of latent frames, 1 + 8k frames"
            )
        return out

    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        """(z - mean) / std * scale."""
        mean, std = self._statistics(z_BCTHW)
        return ((z_BCTHW - mean) / std * self.config.scaling_factor).to(z_BCTHW.dtype)

    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        """Z / scale * std + mean."""
        mean, std = self._statistics(z_BCTHW)
        return (z_BCTHW / self.config.scaling_factor * std + mean).to(z_BCTHW.dtype)

    def _statistics(self, z_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """(1, C, T or 1, 1, 1) each."""
        mean = self._of_channels(self.config.mean, 0.0, z_BCTHW, "latents_mean")
        return mean, self._of_channels(self.config.std, 1.0, z_BCTHW, "latents_std")

    def _of_channels(self, values: Sequence[float] | None, default: float, z_BCTHW: Tensor, name: str) -> Tensor:
        channels, frames = z_BCTHW.shape[1:3]
        kept = dict(self.vae.named_buffers()).get(name)  # LTX keeps its statistics among the weights
        given = kept if values is None and kept is not None else values or [default] * channels
        by_frame = torch.as_tensor(given, dtype=torch.float32, device=z_BCTHW.device).view(1, channels, -1, 1, 1)
        if by_frame.shape[2] == 1:
            return by_frame
        if by_frame.shape[2] < frames:
            raise ValueError(
                f"{name} of this autoencoder has values for {by_frame.shape[2]} latent frames, but the clip has "
                f"{frames}: take shorter clips, or set spec.autoencoder.latentMean and latentStd to one value a channel"
            )
        return by_frame[:, :, :frames]


def config_of_folder(
    spec: AutoencoderSpec, fields: Mapping[str, Any] | None, tiling: Tiling | None, what: str
) -> DiffusersConfig:
    """What folder and specification say together.

    Args:
        spec: resolved.
        fields: of `config.json`; None if there is none.
        tiling: tiles of the specification.
        what: the folder, for messages.

    Raises:
        ConfigError: there is no `config.json`, or it does not fit the specification.
    """
    if fields is None:
        raise ConfigError(
            f"{what}: there is no config.json beside the weights; spec.autoencoder.kind diffusers needs the folder "
            "that diffusers' save_pretrained writes"
        )
    channels = spec.latent_channels or 0
    found = fields.get("latent_channels", fields.get("z_dim", channels))
    if found != channels:
        raise ConfigError(
            f"{what}: config.json has {found} latent channels, spec.autoencoder.latentChannels {channels}"
        )
    shift = fields.get("shift_factor")
    scale = spec.scaling_factor or fields.get("scaling_factor") or 1.0
    config = DiffusersConfig(
        latent_channels=channels,
        scaling_factor=float(scale),
        tiling=tiling,
        fields=fields,
        time=spec.time.compression,
        space=spec.spatial_compression,
        causal=spec.time.causality,
    )
    mean = spec.latent_mean or fields.get("latents_mean") or ([shift] * channels if shift else None)
    return _with_statistics(config, mean, spec.latent_std or fields.get("latents_std"), what)


def _with_statistics(
    config: DiffusersConfig, mean: Sequence[float] | None, std: Sequence[float] | None, what: str
) -> DiffusersConfig:
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if values is not None and (not values or len(values) % config.latent_channels):
            raise ConfigError(f"{what}: {name} has {len(values)} values for {config.latent_channels} latent channels")
    if std is not None and min(std) <= 0:
        raise ConfigError(f"{what}: latents_std has {min(std)}; standard deviations are above 0")
    return replace(config, mean=None if mean is None else tuple(mean), std=None if std is None else tuple(std))


def _network(fields: Mapping[str, Any]) -> Any:
    """Diffusers' model of a `config.json`, without its weights."""
    name = fields.get("_class_name")
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"spec.autoencoder.kind: diffusers needs the library diffusers, which is not installed: {EXTRA}"
        ) from error
    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, nn.Module) and str(name).startswith("Autoencoder")):
        raise ConfigError(
            f"config.json: _class_name {name!r} is no autoencoder of diffusers {diffusers.__version__}; a newer "
            "release may have it"
        )
    options = {key: value for key, value in fields.items() if not key.startswith("_")}
    return found.from_config(options)  # type: ignore[attr-defined]
