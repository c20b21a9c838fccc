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
from support.trained_base import train_base

from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer import models
from videotrain_trainer.data.prompts import prompt_text
from videotrain_trainer.data.video import decode, write_mp4
from videotrain_trainer.evaluation.metrics import psnr
from videotrain_trainer.models.open_sora_folder import export_open_sora
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.networks.mmdit.model import MMDiT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PAGE, EXAMPLE = ROOT / "docs" / "how-to" / "fine-tune.md", ROOT / "manifests" / "examples" / "open-sora-2-lora.yaml"
TEXT = {"contextDim": 32, "pooledDim": 24, "maxTokens": 16}
MODEL, AUTOENCODER = TransformerSpec(preset="mmdit-tiny"), AutoencoderSpec(preset="hunyuan-vae-tiny")
SIDE, FRAMES, STEPS, BASE_STEPS = 64, 9, 300, 1000
PROMPT = "a cat runs on the wall"
CAPTIONS = [PROMPT, "a dog", prompt_text(PROMPT, "fps-motion", 24, 4), prompt_text("a dog", "fps-motion", 24, 4), ""]
"""Of the clips that the base was trained on; with the caption of the own videos, which it answers with its own."""
SIZE = {"resolution": f"{SIDE}px", "frames": FRAMES}


def twin_transformer() -> MMDiT:
    """With the blocks of Open-Sora's, for the features of the tiny text encoders."""
    text = TextEncoderSpec.from_wire({"kind": "t5-clip", "weights": "file:///text"} | TEXT)
    return build_transformer(complete_transformer(MODEL), complete_autoencoder(AUTOENCODER), text)


def moving(red: Any, green: Any, blue: Any, side: int, frames: int) -> np.ndarray[Any, Any]:
    """(T, H, W, 3): a picture of three planes that moves to the right."""
    planes = [np.broadcast_to(plane, (side, side)) for plane in (red, green, blue)]
    picture = np.stack(planes, axis=-1).astype(np.uint8)
    return np.stack([np.roll(picture, time // 4, axis=1) for time in range(frames)])


def clip_of(frames: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@torch.no_grad()
def narrow(moments: torch.nn.Module) -> None:
    """A posterior of little variance, as trained autoencoders have; a random one is noise, which nobody can learn."""
    variances = slice(len(moments.bias) // 2, None)
    moments.weight[variances], moments.bias[variances] = 0, -8


@pytest.fixture(scope="module")
def base_clips() -> list[np.ndarray[Any, Any]]:
    """What the base was trained on: other colours, which run another way."""
    ramp = np.linspace(0, 255, SIDE)
    return [moving(40.0 + 20 * number, ramp[:, None], 255 - ramp, SIDE, FRAMES) for number in range(4)]


@pytest.fixture(scope="module")
def published(tmp_path_factory, base_clips) -> Path:
    """What `hf download` leaves: the twin of hpcai-tech/Open-Sora-v2, whose transformer can draw its clips."""
    folder = tmp_path_factory.mktemp("open-sora-v2")
    encoders = folder / "text-encoders"
    for save, name in ((save_t5, "google/t5-v1_1-xxl"), (save_clip, "openai/clip-vit-large-patch14")):
        _, tokenizer = save(encoders / name)
        tokenizer.save_pretrained(encoders / name)
    transformer, autoencoder = twin_transformer(), build_autoencoder(complete_autoencoder(AUTOENCODER))
    for seed, module in enumerate((transformer, autoencoder)):
        initialize(module, seed)
        shaken(module, seed)
    narrow(autoencoder.quant_conv)
    latents = torch.cat([models.encode(autoencoder.eval(), clip_of(frames)) for frames in base_clips])
    spec = TextEncoderSpec.from_wire({"kind": "t5-clip", "weights": encoders.as_uri()} | TEXT)
    loss = train_base(transformer, models.load_text_encoder(spec), latents, CAPTIONS, BASE_STEPS)
    assert loss < 0.15, "it learned its clips"
    paths = []
    for name, module in (("transformer", transformer), ("autoencoder", autoencoder)):
        paths.append(folder / f"{name}.safetensors")
        save_file(module.state_dict(), paths[-1], {"scaling_factor": "1.0"})
    export_open_sora(folder, *paths, transformer.config, "hunyuan-vae-tiny")
    for path in paths:
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Own videos, each with its caption beside it."""
    folder = tmp_path_factory.mktemp("mine")
    ramp = np.linspace(0, 255, 96)
    for number in range(4):
        frames = moving(ramp, 255 - ramp[:, None], 60.0 * number, 96, 72)
        write_mp4(list(frames), folder / f"{number}.mp4", Fraction(24))
        (folder / f"{number}.txt").write_text(PROMPT)
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
        task["prompts"] = [{"text": PROMPT}]
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


def colours(video: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Shares of 16 classes of each colour, (3, 16)."""
    shares = [
        np.histogram(video[..., plane], bins=16, range=(0, 256))[0] / video[..., plane].size for plane in range(3)
    ]
    return np.stack(shares)


def nearest(video: np.ndarray[Any, Any], clips: list[np.ndarray[Any, Any]]) -> tuple[float, float]:
    """PSNR to the clip that is nearest by it, and the share of colours that the clip nearest by these has not."""
    others = (float(np.abs(colours(video) - colours(clip)).sum(axis=1).mean() / 2) for clip in clips)
    return max(psnr(clip, video) for clip in clips), min(others)


def test_what_is_drawn_resembles_the_own_videos_and_no_longer_what_the_base_draws(
    followed, published, videos, base_clips
):
    """From the same noise and prompt: each clip as the autoencoder shows it, whose weights are random."""
    folder, _ = followed
    drawn = sorted((folder / "W" / "samples").glob("lora-step-*-0001.mp4"))
    before, after = (np.stack([frame for _, frame in decode(path)]) for path in (drawn[0], drawn[-1]))
    autoencoder = models.load(published / "hunyuan_vae.safetensors", model="hunyuan-vae-tiny").float().eval()

    @torch.no_grad()
    def shown(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        pixels = models.decode(autoencoder, models.encode(autoencoder, clip_of(frames)))[0]
        return ((pixels.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0).numpy().astype(np.uint8)

    own, base = [], [shown(frames) for frames in base_clips]
    for path in sorted(videos.glob("*.mp4")):
        frames = np.stack([frame for _, frame in decode(path, (SIDE, SIDE))])
        own += [shown(frames[begin : begin + FRAMES]) for begin in range(0, len(frames) - FRAMES + 1, FRAMES)]
    (own_before, own_colours_before), (base_before, base_colours_before) = (nearest(before, c) for c in (own, base))
    (own_after, own_colours_after), (base_after, base_colours_after) = (nearest(after, c) for c in (own, base))
    print(
        f"PSNR to the own clips: {own_before:.1f} dB before, {own_after:.1f} dB after; to those of the base: "
        f"{base_before:.1f} dB, {base_after:.1f} dB. Other colours than the own clips': {own_colours_before:.3f}, "
        f"{own_colours_after:.3f}; than those of the base: {base_colours_before:.3f}, {base_colours_after:.3f}"
    )
    assert base_before > own_before + 1.5, "the base draws what it was trained on"
    assert own_after > base_after + 1.5, "with the adapter it draws the own videos"
    assert own_after > own_before + 0.75
    assert base_colours_before < 0.85 * own_colours_before
    assert own_colours_after < 0.7 * base_colours_after
    assert own_colours_after < 0.8 * own_colours_before
