"""docs/how-to/fine-tune.md from published files to an adapter in use, on a tiny twin of Open-Sora 2.0's repository.

The files have the published names and layouts, the manifest is the example with smaller sizes, and the page's commands
are run as they stand there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.diffusers_models import diffusers_transformer, random_inputs, relative, run_diffusers, shaken
from support.doc_blocks import ROOT, blocks
from support.text_encoders import save_clip, save_t5

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer import models
from videotrain_trainer.data.video import decode, write_mp4
from videotrain_trainer.evaluation.metrics import psnr
from videotrain_trainer.models.open_sora_folder import export_open_sora
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.networks.mmdit.model import MMDiT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PAGE, EXAMPLE = ROOT / "docs" / "how-to" / "fine-tune.md", ROOT / "manifests" / "examples" / "open-sora-2-lora.yaml"
TEXT = {"contextDim": 32, "pooledDim": 24, "maxTokens": 16}
MODEL, AUTOENCODER = TransformerSpec(preset="mmdit-tiny"), AutoencoderSpec(preset="hunyuan-vae-tiny")
SIDE, FRAMES, STEPS = 64, 9, 150
SIZE = {"resolution": f"{SIDE}px", "frames": FRAMES}


def twin_transformer() -> MMDiT:
    """With the blocks of Open-Sora's, for the features of the tiny text encoders."""
    text = TextEncoderSpec.from_wire({"kind": "t5-clip", "weights": "file:///text"} | TEXT)
    return build_transformer(complete_transformer(MODEL), complete_autoencoder(AUTOENCODER), text)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """What `hf download` leaves: the twin of hpcai-tech/Open-Sora-v2."""
    folder = tmp_path_factory.mktemp("open-sora-v2")
    made = {"transformer": twin_transformer(), "autoencoder": build_autoencoder(complete_autoencoder(AUTOENCODER))}
    for seed, (name, module) in enumerate(made.items()):
        initialize(module, seed)
        save_file(shaken(module, seed).state_dict(), folder / f"{name}.safetensors", {"scaling_factor": "1.0"})
    paths = [folder / f"{name}.safetensors" for name in made]
    export_open_sora(folder, *paths, made["transformer"].config, "hunyuan-vae-tiny")
    for path in paths:
        path.unlink()
    encoders = folder / "text-encoders"
    for save, name in ((save_t5, "google/t5-v1_1-xxl"), (save_clip, "openai/clip-vit-large-patch14")):
        _, tokenizer = save(encoders / name)
        tokenizer.save_pretrained(encoders / name)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Own videos, each with its caption beside it."""
    folder = tmp_path_factory.mktemp("mine")
    ramp = np.linspace(0, 255, 96)
    for number in range(4):
        picture = np.stack([np.broadcast_to(ramp, (96, 96)), np.broadcast_to(255 - ramp[:, None], (96, 96)),
                            np.full((96, 96), 60.0 * number)], axis=-1).astype(np.uint8)  # fmt: skip
        frames = [np.roll(picture, time // 4, axis=1) for time in range(72)]
        write_mp4(frames, folder / f"{number}.mp4", Fraction(24))
        (folder / f"{number}.txt").write_text("a cat runs on the wall")
    return folder


def twin_of(example: dict[str, Any], published: Path, videos: Path) -> dict[str, Any]:
    """The example with the sizes of the twin, one process and this machine's own object store."""
    spec = example["spec"]
    spec["model"] = {"preset": MODEL.preset, "weights": (published / "Open_Sora_v2.safetensors").as_uri()}
    spec["autoencoder"] = {"preset": AUTOENCODER.preset, "weights": (published / "hunyuan_vae.safetensors").as_uri()}
    spec["textEncoder"] |= {"weights": (published / "text-encoders").as_uri()} | TEXT
    spec["dataset"]["videos"] = videos.as_uri()
    del spec["storage"]["credentialsSecret"]
    spec["pool"] = {"gpusPerNode": 1, "pricePerGpuHour": "2.00"}
    stages = {stage["name"]: stage[stage["task"]] for stage in spec["stages"]}
    stages["lora"]["steps"] = STEPS
    stages["lora"]["lora"]["rank"] = 16
    stages["lora"]["buckets"] = [SIZE | {"batchSize": 2, "aspectRatios": ["1:1"]}]
    stages["lora"]["optimizer"]["learningRate"] = [{"value": 1e-2}]
    stages["lora"]["parallel"]["microBatchesPerStep"] = 2
    stages["lora"]["validation"] = {"everySteps": 75, "share": 0.3}
    stages["lora"]["compile"] = "off"
    for task in (stages["lora"]["samples"], stages["sample"]):
        task |= SIZE | {"aspectRatio": "1:1", "samplingSteps": 10, "textGuidance": 1.0}
        task["prompts"] = [{"text": "a cat runs on the wall"}]
    return example


@pytest.fixture(scope="module")
def followed(tmp_path_factory, published, videos):
    """The working directory after the page's commands, and what they printed."""
    folder = tmp_path_factory.mktemp("followed")
    manifest, workdir = folder / "run.yaml", folder / "W"
    manifest.write_text(yaml.safe_dump(twin_of(yaml.safe_load(EXAMPLE.read_text()), published, videos)))
    lines = [line for block in blocks("sh") if block.page == PAGE for line in block.text.splitlines()]
    local = f"videotrain local {manifest} --workdir {workdir} --device cpu"
    assert lines[-1].startswith("videotrain export --workdir W")
    printed, places = {}, {"W": str(workdir), str(EXAMPLE.relative_to(ROOT)): str(manifest)}
    for line in [*lines[:-1], local, lines[-1]]:
        words = [places.get(word, word) for word in shlex.split(line)]
        assert words[0] == "videotrain"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=folder if "export" in words else ROOT,
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        printed[line] = done.stdout
    return folder, printed


def merged(folder: Path) -> Any:
    """The final model of the stage, by this project's own reader."""
    return (
        models.load(folder / "W" / "results" / "transformer.safetensors", model=twin_transformer().config)
        .float()
        .eval()
    )


def test_the_adapter_and_its_card_are_there(followed):
    folder, _ = followed
    assert {path.name for path in (folder / "my-adapter").iterdir()} >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
    }
    card = (folder / "my-adapter" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["base_model"]) == ("apache-2.0", "hpcai-tech/Open-Sora-v2")
    assert "LoRA of rank 16" in card and "USD" in card


@torch.no_grad()
def test_peft_computes_with_it_what_the_merged_model_computes(followed, published):
    folder, _ = followed
    base = models.load(published / "Open_Sora_v2.safetensors", model=twin_transformer().config).float().eval()
    inputs, whole = random_inputs(base.config, 1), merged(folder)
    plain = base(**inputs)
    adapted = peft.PeftModel.from_pretrained(base, folder / "my-adapter").eval()
    found = adapted.get_base_model()(**inputs)
    assert relative(plain, whole(**inputs)) > 0.1
    assert relative(found, whole(**inputs)) < 0.05  # merged weights are rounded to bfloat16


@torch.no_grad()
def test_diffusers_computes_with_it_what_the_merged_model_computes(followed, published, tmp_path):
    folder, _ = followed
    base = models.load(published / "Open_Sora_v2.safetensors", model=twin_transformer().config).float()
    autoencoder = models.load(published / "hunyuan_vae.safetensors", model="hunyuan-vae-tiny").float()
    models.export_diffusers(tmp_path, base, autoencoder)
    theirs, inputs = diffusers_transformer(tmp_path), random_inputs(base.config, 1)
    theirs.load_lora_adapter(
        folder / "my-adapter", weight_name="pytorch_lora_weights.safetensors", prefix="transformer"
    )
    assert relative(run_diffusers(theirs, inputs), merged(folder)(**inputs)) < 0.05


def test_what_is_drawn_comes_nearer_to_the_data(followed, published, videos):
    """From the same noise, as far as random weights below the adapter let it: each clip as the autoencoder shows it."""
    folder, _ = followed
    drawn = sorted((folder / "W" / "samples").glob("lora-step-*-0001.mp4"))
    before, after = (np.stack([frame for _, frame in decode(path)]) for path in (drawn[0], drawn[-1]))
    autoencoder = models.load(published / "hunyuan_vae.safetensors", model="hunyuan-vae-tiny").float().eval()

    def shown(path: Path) -> np.ndarray[Any, Any]:
        frames = np.stack([frame for _, frame in decode(path, (SIDE, SIDE))][:FRAMES])
        clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        pixels = models.decode(autoencoder, models.encode(autoencoder, clip))[0]
        return ((pixels.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0).numpy().astype(np.uint8)

    clips = [shown(path) for path in sorted(videos.glob("*.mp4"))]
    near = [max(psnr(clip, video) for clip in clips) for video in (before, after)]
    print(f"PSNR to the nearest clip, as the autoencoder shows it: {near[0]:.1f} dB before, {near[1]:.1f} dB after")
    assert near[1] > near[0] + 0.5
