"""The model card of a finished run: what it tells, and that the hub's own reader takes its head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from videotrain.cli import main
from videotrain.results import card as card_module
from videotrain.results.card import CardChoices, model_card

EXAMPLE = Path(__file__).parents[4] / "manifests" / "examples" / "open-sora-2-lora.yaml"


@pytest.fixture
def folder(tmp_path):
    """Results of a run of the example of fine-tuning."""
    results = tmp_path / "W" / "results"
    (results / "adapter").mkdir(parents=True)
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["spec"]["seed"] = 1234
    documents = {
        "models.json": {"model": {}, "autoencoder": {}},
        "data.json": {"clips": {"uri": "s3://a/b", "bytes": 77, "etag": "e", "sha256": "c0ffee"}},
        "drop-report.json": {"videos": 9, "clips": 6, "counts": {"too-short": 2, "unreadable": 1}},
        "bill.json": {
            "total": "12.34",
            "currency": "USD",
            "estimated": True,
            "gpuMicrosecondsByBucket": {"productive": 3_600_000_000, "lost": 3_600_000_000},
            "stages": [{"name": "lora", "totalMicros": 12_340_000}],
        },
        "summary.json": {
            "versions": {"videotrain": "0.1.0", "torch": "2.13.0"},
            "samples": {"order_sha256": "0rder"},
            "stages": [{"name": "lora", "last_tenth_loss": 0.25}],
        },
    }
    for name, document in documents.items():
        (results / name).write_text(json.dumps(document))
    (results / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (results / "adapter" / "adapter_config.json").write_text("{}")
    return results


def parts(text: str) -> tuple[dict, str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_an_adapters_card_tells_base_data_steps_cost_seed_and_versions(folder):
    choices = CardChoices("adapter", licence="apache-2.0", base_model="hpcai-tech/Open-Sora-v2")
    head, body = parts(model_card(folder, choices))
    assert head == {
        "license": "apache-2.0",
        "base_model": "hpcai-tech/Open-Sora-v2",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-to-video",
        "tags": ["videotrain", "lora"],
    }
    for told in (
        "SHA-256 `c0ffee`",
        "9 videos gave 6 clips",
        "2 too-short",
        "12.34 USD, estimated for 2 GPU-hours",
        "| lora | train | 2000 | 0.0001 | 0.25 |",
        "Seed 1234",
        "LoRA of rank 32",
        "torch 2.13.0",
        "`0rder`",
    ):
        assert told in body, told


def test_what_the_folder_does_not_tell_is_not_invented(folder):
    for name in ("data.json", "drop-report.json", "bill.json", "summary.json"):
        (folder / name).unlink()
    head, body = parts(model_card(folder, CardChoices("diffusers")))
    assert not head.keys() & {"license", "base_model", "base_model_relation"}
    assert body.count("Not told by the run.") == 2
    assert "Licence: not stated" in body
    assert "trained from `s3://weights/open-sora-v2/Open_Sora_v2.safetensors`" in body


def test_weights_from_the_hub_are_the_base_model(folder):
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    manifest["spec"]["model"]["weights"] = "hf://hpcai-tech/Open-Sora-v2@abc/Open_Sora_v2.safetensors"
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    assert parts(model_card(folder, CardChoices("diffusers")))[0]["base_model"] == "hpcai-tech/Open-Sora-v2"


def test_the_hubs_own_reader_takes_every_card(folder):
    card = pytest.importorskip("huggingface_hub").ModelCard
    for layout in card_module._USE:
        read = card(model_card(folder, CardChoices(layout, "mit", "a/b")))
        assert (read.data.license, read.data.base_model) == ("mit", "a/b")


def test_an_adapter_is_exported_with_its_card(folder, tmp_path, capsys):
    target = tmp_path / "out"
    command = ["export", "--results", str(folder), "--to", "adapter", str(target), "--license", "mit"]
    assert main(command) == 0
    assert {path.name for path in target.iterdir()} == {"adapter_config.json", "README.md"}
    assert "license: mit" in (target / "README.md").read_text()
    assert main(command) == 2
    assert "is there already; export to another folder" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["s3://bucket/x", "hf://datasets/org/x", "hf://org/repo/folder"])
def test_a_place_that_nothing_can_be_pushed_to_is_refused_before_anything_is_written(folder, tmp_path, uri, capsys):
    command = ["export", "--results", str(folder), "--to", "adapter", str(tmp_path / "out"), "--push", uri]
    assert main(command) == 2
    assert "allowed: hf://ORGANISATION/REPOSITORY[@BRANCH]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
