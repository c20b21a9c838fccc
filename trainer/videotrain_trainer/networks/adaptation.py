"""Weights of another model as a beginning: an image DC-AE for a video DC-AE, a transformer for other latents.

Image to video: each 2-D kernel becomes the middle frame of a 3-D one, the other frames are zero. A picture then gives
exactly what the image autoencoder gives, and a clip begins as a row of pictures. Where the numbers of latent channels
differ, the two layers at the latents are new.

Other latents (arXiv 2503.09642, section 4): a trained transformer gets new input and output layers and keeps the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.layout_rules import Mapped, Shapes, towards_ours
from videotrain_trainer.networks.weights import Source, Weights, load_state, open_weights, start_from
from videotrain_trainer.networks.weights.layouts import PICTURE_LAYOUTS, recognise, scheme, sizes
from videotrain_trainer.networks.weights.strict import check_fit

LOG = logging.getLogger(__name__)
TRANSFORMER_LATENT_LAYERS = ("img_in", "cond_in", "final_layer.linear")
"""What touches latents in a transformer."""
AUTOENCODER_LATENT_LAYERS = ("encoder.project_out.", "decoder.project_in.")
KERNEL_3D = 5


def adapt_transformer(module: nn.Module, source: Source, what: str | None = None) -> None:
    """Start a transformer from one that was trained on latents of another autoencoder, at another patch size.

    Args:
        module: initialised; its layers at the latents stay as they are (the condition input is zero).
        source: weights of the trained one, in any layout that `start_from` takes.
        what: where they came from, for messages.

    Raises:
        ConfigError: other tensors than those at the latents differ.
    """
    start_from(module, source, what, fresh=TRANSFORMER_LATENT_LAYERS)


def start_from_image(module: nn.Module, source: Source, what: str | None = None) -> None:
    """Start a video DC-AE from an image DC-AE of the same widths and depths, in either published layout.

    Args:
        module: initialised.
        source: weights of the image DC-AE.
        what: where they came from, for messages.

    Raises:
        ConfigError: they are no image DC-AE of this shape; lists what differs.
    """
    weights = source if isinstance(source, Weights) else open_weights(source, what)
    fresh = module.state_dict()
    wanted, shapes, read = check_image_autoencoder(module, weights)
    new = [name for name, shape in wanted.items() if tuple(shapes[name]) != shape]
    state = {name: fresh[name] if name in new else _lifted(read(name), fresh[name]) for name in fresh}
    load_state(module, state, weights.what)
    LOG.info("%s: an image autoencoder, its kernels made 3-D; new layers: %s", weights.what, ", ".join(new) or "none")


def check_image_autoencoder(module: nn.Module, weights: Weights) -> tuple[Shapes, Shapes, Callable[[str], Tensor]]:
    """Shapes that an image DC-AE has for a video DC-AE to start from it, those of the file, and its tensors.

    Args:
        module: the video DC-AE, perhaps on the `meta` device.
        weights: of which no tensor is read.

    Raises:
        ConfigError: they are no image DC-AE of this shape; lists what differs.
    """
    shapes, read = _opened(weights)
    wanted = {name: _stored_shape(tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    _check(wanted, shapes, weights.what)
    return wanted, shapes, read


def _opened(weights: Weights) -> tuple[Shapes, Callable[[str], Tensor]]:
    """Shapes and tensors of an image DC-AE under the names that a video DC-AE has; kernels are 2-D."""
    layout = recognise(weights.shapes, weights.what)
    if layout not in PICTURE_LAYOUTS:
        raise ConfigError(
            f"{weights.what}: a file of layout {layout}, not an image DC-AE ({', '.join(PICTURE_LAYOUTS)}); leave out "
            "initFrom.adapt"
        )
    stored = scheme(layout, sizes(weights.shapes, weights.what))
    check_fit(stored.theirs, weights.shapes, weights.what, "the image DC-AE that its own tensors describe")
    return stored.ours, Mapped(towards_ours(stored.rules, weights.metadata), weights.read)


def inflate(kernel: Tensor, frames: int) -> Tensor:
    """(out, in, h, w) to (out, in, frames, h, w): the kernel in the middle frame, zeros elsewhere.

    Args:
        kernel: 2-D kernel.
        frames: odd extent in time.
    """
    out = torch.zeros(*kernel.shape[:2], frames, *kernel.shape[2:], dtype=kernel.dtype)
    out[:, :, frames // 2] = kernel
    return out


def _lifted(stored: Tensor, fresh: Tensor) -> Tensor:
    return inflate(stored, fresh.shape[2]) if fresh.ndim == KERNEL_3D else stored


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that an image DC-AE has for a tensor of the video DC-AE."""
    return shape[:2] + shape[3:] if len(shape) == KERNEL_3D else shape


def _check(wanted: Shapes, shapes: Shapes, what: str) -> None:
    given = {name: wanted[name] if _at_latents(name, shape, wanted) else shape for name, shape in shapes.items()}
    check_fit(wanted, given, what, "an image DC-AE with the widths and depths of spec.autoencoder")


def _at_latents(name: str, shape: tuple[int, ...], wanted: Shapes) -> bool:
    """Whether a tensor may have another number of latent channels."""
    return name.startswith(AUTOENCODER_LATENT_LAYERS) and name in wanted and len(shape) == len(wanted[name])
