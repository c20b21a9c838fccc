"""The kinds of video autoencoders that there are: one row each, and nothing else in the package asks for a kind.

A row is all that loading, building, converting, exporting, encoding, training and sampling know of a kind; the API has
its own row in `videotrain_api.resource.autoencoder_kinds`, and a preset names the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders import folders, layouts, picture_layouts, sizes
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.diffusers_vae import DiffusersConfig, DiffusersVAE, config_of_folder
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig
from videotrain_trainer.networks.autoencoders.tiling import Tiling
from videotrain_trainer.networks.layout_rules import Rule, Shapes

Value = TypeVar("Value")
MakeRules = Callable[[Any, Shapes], list[Rule]]
"""Rules of a layout for a model of those sizes and shapes."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """How an autoencoder stands in a model folder in diffusers' form."""

    class_name: str
    library: str
    """Whose class it is."""
    layout: str
    """Of its weights."""
    fields: Callable[[Any], dict[str, Any]]
    """Sizes to the fields of `config.json`."""
    of_fields: Callable[[Mapping[str, Any]], AutoencoderConfig]
    """Fields to sizes. May raise KeyError, TypeError or ValueError."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderRow:
    """What the package knows of a kind."""

    title: str
    """With its article, for messages."""
    config: type[AutoencoderConfig]
    of_spec: Callable[[AutoencoderSpec], dict[str, Any]]
    """Arguments of `config` that only this kind has, from a resolved specification."""
    build: Callable[[Any], Autoencoder]
    """The network without weights. Works under `torch.device("meta")`."""
    layouts: Mapping[str, MakeRules] = field(default_factory=dict)
    """Published layouts of its weights by name; without one the weights have the network's own names."""
    sizes: Callable[[str, Shapes, str], AutoencoderConfig] | None = None
    """Sizes from the shapes of a file: its layout, its shapes, and where it came from for messages."""
    sign: str = ""
    """A tensor that only this kind has in a layout whose name it shares with a transformer."""
    untold: tuple[str, ...] = ()
    """Fields of the sizes that shapes do not tell, beside scale and tiles."""
    folder: Folder | None = None
    of_folder: Callable[[AutoencoderSpec, Mapping[str, Any] | None, Tiling | None, str], AutoencoderConfig] | None = (
        None
    )
    """Sizes of a kind that only the `config.json` beside its weights tells: specification, its fields, tiles, and the
    folder for messages."""


def _named_rules(name: str) -> MakeRules:
    found = layouts.LAYOUTS[name]

    def rules(_config: object, ours: Shapes) -> list[Rule]:
        return [_autoencoder_rule(our_name, found) for our_name in ours]

    return rules


def _autoencoder_rule(name: str, layout: layouts.Layout) -> Rule:
    theirs = layout.from_ours(name)
    return Rule(
        ours=(name,),
        theirs=theirs,
        to_theirs=lambda tensors: list(layouts.from_ours({name: tensors[0]}, layout).values()),
        to_ours=lambda tensors: list(layouts.to_ours(dict(zip(theirs, tensors, strict=True)), layout).values()),
    )


def _levels(spec: AutoencoderSpec) -> dict[str, Any]:
    return {
        "widths": tuple(needed(spec.widths, "spec.autoencoder.widths")),
        "depths": tuple(needed(spec.depths, "spec.autoencoder.depths")),
        "decoder_depths": tuple(needed(spec.decoder_depths, "spec.autoencoder.decoderDepths")),
    }


AUTOENCODERS: dict[str, AutoencoderRow] = {
    "dc-ae": AutoencoderRow(
        title="a Video DC-AE",
        config=DCAEConfig,
        of_spec=_levels,
        build=DCAE,
        layouts={name: _named_rules(name) for name in ("open-sora-dc-ae", "image-dc-ae", "diffusers-image-dc-ae")},
        sizes=sizes.dc_ae_sizes,
        folder=Folder(
            class_name=folders.DC_AE_CLASS,
            library="videotrain_trainer",
            layout="open-sora-dc-ae",
            fields=folders.dc_ae_fields,
            of_fields=folders.dc_ae_of_fields,
        ),
    ),
    "hunyuan-vae": AutoencoderRow(
        title="a HunyuanVideo VAE",
        config=HunyuanVAEConfig,
        of_spec=lambda spec: {**_levels(spec), "norm_groups": needed(spec.norm_groups, "spec.autoencoder.normGroups")},
        build=HunyuanVAE,
        layouts={
            "diffusers": _named_rules("diffusers-hunyuan-vae"),
            "hunyuan-vae": _named_rules("hunyuan-vae"),
        },
        sizes=sizes.hunyuan_sizes,
        untold=("norm_groups",),
        folder=Folder(
            class_name=folders.HUNYUAN_CLASS,
            library="diffusers",
            layout="diffusers",
            fields=folders.hunyuan_fields,
            of_fields=folders.hunyuan_of_fields,
        ),
    ),
    # Text-to-picture-to-video draws with it; a run names no kind for it, since it codes pictures alone.
    "flux-vae": AutoencoderRow(
        title="FLUX.1's picture autoencoder",
        config=PictureVAEConfig,
        of_spec=lambda _: {},
        build=PictureVAE,
        layouts={"diffusers": picture_layouts.diffusers_rules, "flux-vae": picture_layouts.same_rules},
        sizes=sizes.picture_sizes,
        sign=picture_layouts.DIFFUSERS_SIGN,
        folder=Folder(
            class_name=folders.PICTURE_CLASS,
            library="diffusers",
            layout="diffusers",
            fields=folders.picture_fields,
            of_fields=folders.picture_of_fields,
        ),
    ),
    "diffusers": AutoencoderRow(
        title="an autoencoder of diffusers",
        config=DiffusersConfig,
        of_spec=lambda _: {},
        build=DiffusersVAE,
        of_folder=config_of_folder,
    ),
}
"""The table."""


def row_of_kind(kind: str | None) -> AutoencoderRow:
    """The row of a specification's kind.

    Raises:
        ConfigError: there is none.
    """
    if kind not in AUTOENCODERS:
        raise ConfigError(f"spec.autoencoder.kind: {kind!r}; allowed: {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[kind]


def kind_of(config: AutoencoderConfig) -> str:
    """The kind of an autoencoder with those sizes."""
    return next(kind for kind, row in AUTOENCODERS.items() if type(config) is row.config)


def row_of(config: AutoencoderConfig) -> AutoencoderRow:
    """The row of an autoencoder with those sizes."""
    return AUTOENCODERS[kind_of(config)]


def row_of_class(class_name: str) -> AutoencoderRow | None:
    """The row whose folders name that class; None if there is none."""
    rows = (row for row in AUTOENCODERS.values() if row.folder is not None and row.folder.class_name == class_name)
    return next(rows, None)


def needed(value: Value | None, name: str) -> Value:
    """A field of a resolved specification.

    Raises:
        ConfigError: it is not set.
    """
    if value is None:
        raise ConfigError(f"{name}: not set in the stage configuration; it must be resolved before training")
    return value
