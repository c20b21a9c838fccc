"""The models, for use in other programs.

```python
from videotrain_trainer import models

transformer = models.load("Open_Sora_v2.safetensors", device="cuda")
autoencoder = models.load("hunyuan_vae.safetensors", device="cuda")
video = models.sample(transformer, autoencoder, text_encoder, "A rabbit runs.", frames=33, height=256, width=256)
```

Everything that this module exports is documented in docs/reference/python.md and kept compatible within a version.
"""

from videotrain_trainer.models.coding import decode, encode
from videotrain_trainer.models.diffusers_folder import export_diffusers, import_diffusers
from videotrain_trainer.models.drawing import sample
from videotrain_trainer.models.loading import Model, build, load
from videotrain_trainer.models.presets import PRESETS, config_of
from videotrain_trainer.networks.initial import write_initial
from videotrain_trainer.networks.lora.files import load_adapter, save_adapter
from videotrain_trainer.networks.lora.layers import LoraConfig, inject, merge
from videotrain_trainer.networks.weights import LAYOUTS, Destination, convert, start_from

__all__ = [
    "LAYOUTS",
    "PRESETS",
    "Destination",
    "LoraConfig",
    "Model",
    "build",
    "config_of",
    "convert",
    "decode",
    "encode",
    "export_diffusers",
    "import_diffusers",
    "inject",
    "load",
    "load_adapter",
    "merge",
    "sample",
    "save_adapter",
    "start_from",
    "write_initial",
]
