"""The models, for use in other programs.

```python
from videotrain_trainer import models

transformer = models.load("Open_Sora_v2.safetensors", device="cuda")
autoencoder = models.load("hunyuan_vae.safetensors", device="cuda")
text_encoder = models.load_text_encoder("mmdit-11b", "text_encoders/", device="cuda")
options = models.SampleOptions(frames=33, height=256, width=256)
video = models.sample(transformer, autoencoder, text_encoder, "A rabbit runs.", options)
```

Everything that this module exports is documented in docs/reference/python.md and kept compatible within a version.
"""

from videotrain_trainer.diffusion.sampler import Guidance
from videotrain_trainer.models.coding import decode, encode
from videotrain_trainer.models.diffusers_folder import export_diffusers, import_diffusers
from videotrain_trainer.models.drawing import sample
from videotrain_trainer.models.loading import Model, build, load, save
from videotrain_trainer.models.options import SampleOptions
from videotrain_trainer.models.presets import PRESETS, config_of
from videotrain_trainer.models.text import load_text_encoder
from videotrain_trainer.networks.initial import write_initial
from videotrain_trainer.networks.lora.files import load_adapter, save_adapter
from videotrain_trainer.networks.lora.layers import LoraConfig, inject, merge
from videotrain_trainer.networks.weights import LAYOUTS, Destination, convert, start_from

__all__ = [
    "LAYOUTS",
    "PRESETS",
    "Destination",
    "Guidance",
    "LoraConfig",
    "Model",
    "SampleOptions",
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
    "load_text_encoder",
    "merge",
    "sample",
    "save",
    "save_adapter",
    "start_from",
    "write_initial",
]
