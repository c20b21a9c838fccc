"""`videotrain-trainer evaluate` as people and programs call it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.perceptual_weights import write_lpips
from support.training_worlds import make_clips, store

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer import cli
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.manifest import LATENT_SCHEMA, to_parquet
from videotrain_trainer.data.sets import EncodedSetInfo, set_info_uri
from videotrain_trainer.data.shards import ShardWriter
from videotrain_trainer.data.video import write_mp4
from videotrain_trainer.evaluation.videos import items_of
from videotrain_trainer.models.coding import encode
from videotrain_trainer.networks.build import SCALING_FACTOR, build_autoencoder, initialize

FAKE_VBENCH = """
import json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        assert os.path.isfile(full_info_dir), full_info_dir
        self.device, self.output = device, output_path
    def evaluate(self, videos_path, name, prompt_list=(), dimension_list=None, local=False, mode="vbench_standard"):
        assert local and os.environ["VBENCH_CACHE_DIR"].endswith("cache")
        scores = {d: [0.5 + number / 10, []] for number, d in enumerate(dimension_list)}
        if BROKEN: scores.popitem()
        with open(os.path.join(self.output, name + "_eval_results.json"), "w") as file: json.dump(scores, file)
        with open(os.path.join(self.output, "call.json"), "w") as file:
            json.dump([str(self.device), videos_path, mode, prompt_list], file)
BROKEN = False
"""


def run(capsys, *arguments):
    code = cli.main(["evaluate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def video(path, seed=0, frames=9, side=64):
    """A square that moves over noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ground = np.random.default_rng(seed).integers(0, 120, (side, side, 3), dtype=np.uint8)
    pictures = []
    for t in range(frames):
        picture = ground.copy()
        picture[8 + 3 * t : 24 + 3 * t, 8:24] = 220
        pictures.append(picture)
    write_mp4(pictures, path, 24)
    return path


@pytest.fixture
def weights(tmp_path):
    model = build_autoencoder(AUTOENCODERS["dc-ae-tiny"])
    initialize(model, 1)
    save_file(model.state_dict(), tmp_path / "ae.safetensors", metadata={SCALING_FACTOR: "1.0"})
    return tmp_path / "ae.safetensors"


def test_an_autoencoder_is_measured_on_a_folder_of_videos(tmp_path, capsys, weights):
    for number in range(2):
        video(tmp_path / f"in/{number}.mp4", number)
    lpips = write_lpips(tmp_path / "lpips")
    flags = ["--weights", weights, "--autoencoder", "dc-ae-tiny", "--size", "64x32", "--frames", "8"]
    code, out, err = run(capsys, "autoencoder", tmp_path / "in", *flags, "--lpips", lpips, "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found["videos"]) == ["0.mp4", "1.mp4"]
    assert set(found["mean"]) == {"psnr", "ssim", "lpips"}
    assert 3 < found["mean"]["psnr"] < 40
    assert found["mean"]["lpips"] > 0
    assert err.endswith("2 of 2\n")
    code, out, err = run(capsys, "autoencoder", tmp_path / "in", *flags, "--limit", 1, "--quiet")
    assert (code, err) == (0, "")
    assert "lpips" not in out.splitlines()[0]
    assert "No LPIPS: its weights are not mounted" in out
    assert out.splitlines()[-2].startswith("mean")


@pytest.mark.numeric
def test_an_autoencoder_is_measured_on_a_curated_set(tmp_path, capsys, weights):
    clips = make_clips(tmp_path, count=2)
    flags = ["--weights", weights, "--autoencoder", "dc-ae-tiny", "--size", "64x64", "--frames", "8", "--json"]
    code, out, _ = run(capsys, "autoencoder", clips, *flags)
    assert code == 0
    assert list(json.loads(out)["videos"]) == ["clip0", "clip1"]


def encoded_set(folder, clips, model):
    """One sample: frames 4 to 11 of the first clip, 64 x 64, encoded by the model."""
    uri = f"file://{folder}/latents"
    pixels = items_of(store(), clips, None, (64, 64), 16, None)[0].pixels()[:, 4:12]
    with ShardWriter(folder / "shard.tar") as shard:
        member = shard.add("a", {"latent": encode(model, pixels[None])[0].to(torch.bfloat16)})
    name = shard.object_name("64px/8f/1:1", 0)
    store().put(f"{uri}/shards/{name}", folder / "shard.tar")
    row = dict.fromkeys(LATENT_SCHEMA.names, 0) | {
        "uid": "a",
        "clip": "clip0",
        "row": "r",
        "bucket": "64px/8f/1:1",
        "shard": f"shards/{name}",
        "offset": member.offset,
        "length": member.length,
        "crc32c": member.crc32c,
        "frames": 8,
        "start": 4,
        "latent_frames": 2,
        "latent_height": 2,
        "latent_width": 2,
        "caption": "c",
        "source": "s",
    }
    store().put(f"{uri}/manifest.parquet", to_parquet([row], LATENT_SCHEMA))
    info = EncodedSetInfo(
        samples=1,
        manifest_hash="x",
        rows=["r"],
        prompts=["fps"],
        latent_channels=64,
        spatial_compression=32,
        context_dim=8,
        pooled_dim=8,
        text_encoder="bytes",
        autoencoder_weights="w",
    )
    store().put(set_info_uri(uri), sealed_json(info.to_wire()))
    return uri


@pytest.mark.numeric
def test_stored_latents_are_decoded_and_compared_with_their_own_frames(tmp_path, capsys, weights):
    model = build_autoencoder(AUTOENCODERS["dc-ae-tiny"]).eval()
    initialize(model, 1)
    clips = make_clips(tmp_path, count=1, frames=16)
    uri = encoded_set(tmp_path, clips, model)
    flags = ["--weights", weights, "--autoencoder", "dc-ae-tiny", "--json", "--quiet"]
    code, out, _ = run(capsys, "autoencoder", uri, *flags, "--clips", clips)
    assert code == 0
    stored = json.loads(out)["mean"]["psnr"]
    (item,) = items_of(store(), uri, clips, (8, 8), 1, None)
    whole = items_of(store(), clips, None, (64, 64), 16, None)[0].pixels()
    assert torch.equal(item.pixels(), whole[:, 4:12])
    assert 3 < stored < 40
    code, _, err = run(capsys, "autoencoder", uri, *flags)
    assert code == int(ExitCode.CONFIG)
    assert "name the curated set it was made from with --clips" in err


def test_what_cannot_be_measured_is_told(tmp_path, capsys, weights):
    video(tmp_path / "in/a.mp4")
    flags = ["--weights", weights, "--autoencoder", "dc-ae-tiny", "--quiet"]
    code, _, err = run(capsys, "autoencoder", tmp_path / "in", *flags, "--size", "64x64", "--frames", "9")
    assert code == int(ExitCode.CONFIG)
    assert "a.mp4: a clip of 9 frames" in err
    code, _, err = run(capsys, "autoencoder", tmp_path / "in", *flags, "--size", "64x64", "--frames", "32")
    assert "has 9 frames, 32 are asked for; use fewer with --frames" in err
    code, _, err = run(capsys, "autoencoder", tmp_path / "in", *flags, "--size", "64x8")
    assert "SSIM needs sides of 11 pixels" in err
    code, _, err = run(capsys, "videos", tmp_path / "nothing")
    assert code == int(ExitCode.DATA)
    assert "no video (.mp4" in err


def test_videos_are_described_and_compared_with_references(tmp_path, capsys):
    video(tmp_path / "a/x.mp4", 0)
    video(tmp_path / "b/x.mp4", 0)
    code, out, _ = run(capsys, "videos", tmp_path / "a", "--reference", tmp_path / "b", "--json", "--quiet")
    assert code == 0
    row = json.loads(out)["videos"]["x.mp4"]
    assert row["psnr"] == 100.0
    assert row["motion"] > 1
    code, out, _ = run(capsys, "videos", tmp_path / "a", "--quiet")
    assert out.splitlines()[0].split() == ["video", "flicker", "motion", "sharpness"]
    video(tmp_path / "a/y.mp4", 0)
    code, _, err = run(capsys, "videos", tmp_path / "a", "--reference", tmp_path / "b")
    assert "1 videos have no counterpart there, such as y.mp4" in err


@pytest.fixture
def vbench(tmp_path, monkeypatch):
    package = tmp_path / "site/vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_VBENCH)
    (package / "VBench_full_info.json").write_text("[]")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/model.pth").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("VBENCH_CACHE_DIR", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    yield package
    sys.modules.pop("vbench", None)


def test_vbench_is_called_as_it_wants_and_its_scores_are_shown(tmp_path, capsys, vbench):
    (tmp_path / "prompts.json").write_text('{"x.mp4": "a cat"}')
    video(tmp_path / "a/x.mp4")
    flags = ["--weights", tmp_path / "cache", "--output", tmp_path / "results", "--device", "cpu"]
    chosen = ["--dimension", "motion_smoothness", "--dimension", "imaging_quality"]
    code, out, err = run(
        capsys, "vbench", tmp_path / "a", *flags, *chosen, "--prompts", tmp_path / "prompts.json", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["scores"] == {"motion_smoothness": 0.5, "imaging_quality": 0.6}
    call = json.loads((tmp_path / "results/call.json").read_text())
    assert call == ["cpu", str(tmp_path / "a"), "custom_input", {"x.mp4": "a cat"}]
    code, out, _ = run(capsys, "vbench", tmp_path / "a", *flags, "--suite")
    assert json.loads((tmp_path / "results/call.json").read_text())[2] == "vbench_standard"
    assert len(out.splitlines()) == 2 + 16 + 3
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["quality", "semantic", "total"]


def test_what_vbench_lacks_is_told(tmp_path, capsys, vbench):
    video(tmp_path / "a/x.mp4")
    flags = ["--output", tmp_path / "results", "--device", "cpu"]
    code, _, err = run(capsys, "vbench", tmp_path / "a", "--weights", tmp_path / "empty", *flags)
    assert code == int(ExitCode.CONFIG)
    assert "mount the folder that VBench fills as its cache" in err
    cache = ["--weights", tmp_path / "cache"]
    _, _, err = run(capsys, "vbench", tmp_path / "a", *cache, *flags, "--dimension", "scene")
    assert "'scene' can be measured on videos of VBench's own prompts (--suite) alone" in err
    _, _, err = run(capsys, "vbench", tmp_path / "a", *cache, *flags, "--dimension", "beauty")
    assert "'beauty' is unknown; allowed: subject_consistency" in err
    (vbench / "__init__.py").write_text(FAKE_VBENCH.replace("BROKEN = False", "BROKEN = True"))
    code, _, err = run(capsys, "vbench", tmp_path / "a", *cache, *flags, "--dimension", "imaging_quality")
    assert code == int(ExitCode.DATA)
    assert "no score for imaging_quality" in err


def test_a_missing_vbench_package_is_told(tmp_path, capsys):
    video(tmp_path / "a/x.mp4")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/model.pth").write_bytes(b"x")
    code, _, err = run(capsys, "vbench", tmp_path / "a", "--weights", tmp_path / "cache")
    assert code == int(ExitCode.CONFIG)
    assert "the package vbench is not installed here" in err


def test_the_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "win-rate" in capsys.readouterr().out


def test_the_page_is_part_of_the_package():
    page = Path(cli.__file__).parent / "evaluation/preference.html"
    assert "/*DATA*/null" in page.read_text()
