"""Towers as transformers stores them, seeded and tiny, with predictors in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.image_models import SEEN, SMALL, WIDTH, clip_folder, laion_head, processor
from transformers import CLIPImageProcessor, SiglipVisionConfig, SiglipVisionModel
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from videotrain_api.resource.stages import ImageModel
from videotrain_trainer.curation.dedup_embeddings import SCALE, decoded
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.image_scorer import check_image_model, open_image_model

STILLS = np.random.default_rng(3).integers(0, 256, (3, 40, 64, 3), np.uint8)


def by_hand(embeddings: torch.Tensor, head: dict[str, torch.Tensor]) -> float:
    at = embeddings.double() / embeddings.double().norm(dim=-1, keepdim=True)
    for number in (0, 2, 4, 6, 7):
        at = at @ head[f"layers.{number}.weight"].double().T + head[f"layers.{number}.bias"].double()
    return float(at.mean())


def seen_by_clip(folder: Path) -> torch.Tensor:
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=list(STILLS), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return CLIPVisionModelWithProjection.from_pretrained(folder)(pixels).image_embeds


def test_clip_with_the_predictor_of_laion(tmp_path, store):
    folder, head = clip_folder(tmp_path / "clip"), laion_head(WIDTH)
    torch.save(head, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    spec = ImageModel(weights=folder.as_uri(), head=(tmp_path / "sac+logos+ava1-l14-linearMSE.pth").as_uri())
    found = open_image_model(spec, store, tmp_path / "cache").columns(STILLS)
    embeddings = seen_by_clip(folder)
    assert found["aesthetic"] == pytest.approx(by_hand(embeddings, head), rel=1e-4)
    mean = (embeddings / embeddings.norm(dim=-1, keepdim=True)).mean(0)
    stored = np.frombuffer(decoded(found["embedding"]), np.int8) / SCALE
    assert np.abs(stored - (mean / mean.norm()).numpy()).max() <= 0.6 / SCALE
    assert check_image_model(spec, store).endswith("embeddings of 16, a predictor of 5 layers")


def test_a_predictor_that_is_stored_with_its_tower(tmp_path, store):
    folder, head = clip_folder(tmp_path / "clip"), laion_head(WIDTH, 5)
    save_file(load_file(folder / "model.safetensors") | head, folder / "model.safetensors", {"format": "pt"})
    spec = ImageModel(weights=str(folder))
    found = open_image_model(spec, store, tmp_path / "cache").columns(STILLS)
    assert found["aesthetic"] == pytest.approx(by_hand(seen_by_clip(folder), head), rel=1e-4)
    assert "its own predictor of 5 layers" in check_image_model(spec, store)


def test_siglip_from_the_object_store_and_a_single_layer(tmp_path, store):
    torch.manual_seed(4)
    SiglipVisionModel(SiglipVisionConfig(**SMALL, **SEEN)).save_pretrained(tmp_path / "siglip")
    processor(tmp_path / "siglip")
    for file in (tmp_path / "siglip").iterdir():
        store.put(f"s3://bucket/models/siglip/{file.name}", file.read_bytes())
    save_file({"weight": torch.full((1, 32), 0.5), "bias": torch.tensor([5.0])}, tmp_path / "head.safetensors")
    spec = ImageModel(weights="s3://bucket/models/siglip", head=str(tmp_path / "head.safetensors"))
    found = open_image_model(spec, store, tmp_path / "cache").columns(STILLS[:1])
    embedding = np.frombuffer(decoded(found["embedding"]), np.int8) / SCALE
    assert found["aesthetic"] == pytest.approx(5 + 0.5 * embedding.sum(), abs=0.5 * 32 * 0.5 / SCALE)
    assert "SiglipVisionModel" in check_image_model(spec, store)


def test_without_a_predictor_there_are_embeddings_alone(tmp_path, store):
    found = open_image_model(ImageModel(weights=str(clip_folder(tmp_path / "m"))), store, tmp_path).columns(STILLS)
    assert set(found) == {"embedding"}


def wrong_width(folder: Path) -> ImageModel:
    torch.save(laion_head(WIDTH + 8), folder.parent / "head.pth")
    return ImageModel(weights=str(folder), head=str(folder.parent / "head.pth"))


def no_tensors(folder: Path) -> ImageModel:
    (folder.parent / "head.pth").write_bytes(b"nothing of the kind")
    return ImageModel(weights=str(folder), head=str(folder.parent / "head.pth"))


def another_model(folder: Path) -> ImageModel:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return ImageModel(weights=str(folder))


def half_a_tower(folder: Path) -> ImageModel:
    whole = load_file(folder / "model.safetensors")
    for name in [name for name in whole if name.startswith("vision_model.encoder.layers.1.")]:
        del whole[name]
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return ImageModel(weights=str(folder))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (wrong_width, r"curate.imageModel.head: .* width 16 to one score"),
        (no_tensors, "curate.imageModel.head: .*not a readable file"),
        (another_model, "model_type 'bert'; allowed: clip, siglip"),
        (half_a_tower, r"curate.imageModel.weights: .* tensors of CLIPVisionModelWithProjection are missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, store, broken, words):
    spec = broken(clip_folder(tmp_path / "clip"))
    with pytest.raises(ConfigError, match=words):
        open_image_model(spec, store, tmp_path / "cache")
    if broken is not half_a_tower:  # how many layers it has is for transformers to know
        with pytest.raises(ConfigError, match=words):
            check_image_model(spec, store)
