"""The published weights of LPIPS from a mounted folder or the object store."""

from __future__ import annotations

from io import BytesIO
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.losses.perceptual import PerceptualDistance, published_names, widths_in
from videotrain_trainer.storage import ObjectStore

ENDINGS = (".safetensors", ".pth", ".pt")
SHOWN = 5


def load_perceptual(store: ObjectStore, folder: str, field: str) -> PerceptualDistance:
    """LPIPS with its weights, on the CPU.

    Args:
        store: object store; reads file:// URIs too.
        folder: URI of the folder with the files.
        field: what the user set it by, for messages.

    Raises:
        ConfigError: there is no file, one is damaged, or together they lack a tensor.
    """
    state: dict[str, Tensor] = {}
    for file in perceptual_files(store, folder, field):
        state |= published_names(_read(store.get(file), file, field))
    module = PerceptualDistance(widths_in(state))
    _check(module, state, folder, field)
    module.load_state_dict(state)
    return module.eval()


def perceptual_files(store: ObjectStore, folder: str, field: str) -> list[str]:
    """URIs of the weight files in a folder.

    Raises:
        ConfigError: there are none.
    """
    files = [item.uri for item in store.list(folder.rstrip("/")) if item.uri.endswith(ENDINGS)]
    if not files:
        raise ConfigError(
            f"{field}: no {', '.join(ENDINGS)} file in {folder}; put torchvision's VGG16 (vgg16-397923af.pth) and the "
            "linear layers of LPIPS 0.1 (vgg.pth) there, or remove the perceptual loss"
        )
    return files


def _read(data: bytes, file: str, field: str) -> dict[str, Tensor]:
    try:
        if file.endswith(".safetensors"):
            stored: dict[str, Tensor] = load(data)
            return stored
        # weights_only: a pickle may otherwise run code.
        found = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"{field}: {file} is no readable weight file: {error}") from error
    return {name: value for name, value in dict(found).items() if isinstance(value, Tensor)}


def _check(module: PerceptualDistance, state: dict[str, Tensor], folder: str, field: str) -> None:
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [
        f"{name} {shape}" + (f" is {list(state[name].shape)} there" if name in state else " is missing")
        for name, shape in expected.items()
        if name not in state or list(state[name].shape) != shape
    ]
    extra = [f"{name} is not of LPIPS with VGG16" for name in state if name not in expected]
    if wrong or extra:
        raise ConfigError(
            f"{field}: {len(wrong) + len(extra)} of {len(expected)} tensors do not fit in {folder}: "
            f"{'; '.join((wrong + extra)[:SHOWN])}"
        )
