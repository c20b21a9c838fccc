"""Adapters at every kind of place, refused ones that leave no trace, and FLUX LoRAs under diffusers' names."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.at_length import cases
from support.diffusers_models import (
    diffusers_transformer,
    random_autoencoder,
    random_inputs,
    random_transformer,
    relative,
    run_diffusers,
)
from support.numerics import assert_near

from videotrain_trainer import models
from videotrain_trainer.errors import ConfigError, DamagedObject
from videotrain_trainer.networks.lora.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    load_adapter,
    read_adapter,
    save_adapter,
)
from videotrain_trainer.networks.lora.from_diffusers import DIFFUSERS_FILE
from videotrain_trainer.networks.lora.layers import LoraConfig, adapted, initialize_adapter, inject, is_adapter, merge
from videotrain_trainer.networks.lora.to_diffusers import to_diffusers
from videotrain_trainer.storage import ObjectStore

pytestmark = pytest.mark.numeric

CONFIG = LoraConfig(rank=2, alpha=3.0, targets=("q_proj", "img_mlp.0", "linear2"))


@torch.no_grad()
def adapted_model(seed=1):
    model = random_transformer(seed)
    inject(model, CONFIG)
    initialize_adapter(model, 1)
    for number, layer in enumerate(adapted(model).values()):
        layer.lora_B.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return model


def equal(model, other):
    state, theirs = model.state_dict(), other.state_dict()
    return state.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in state.items())


@pytest.mark.parametrize("kind", ["path", "str", "file"])
def test_an_adapter_is_saved_to_and_loaded_from_every_kind_of_local_place(kind, tmp_path):
    folder = tmp_path / "an adapter"
    place = {"path": folder, "str": str(folder), "file": folder.as_uri()}[kind]
    model = adapted_model()
    save_adapter(model, CONFIG, place)
    assert {path.name for path in folder.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    other = random_transformer(1)
    assert load_adapter(other, place) == CONFIG
    assert equal(model, other)


@pytest.mark.parametrize(("name", "flips"), [(ADAPTER_CONFIG, cases(40, 150)), (ADAPTER_WEIGHTS, cases(20, 60))])
def test_no_flipped_bit_of_a_stored_adapter_is_believed(store, storage, tmp_path, name, flips):
    model = adapted_model()
    save_adapter(model, CONFIG, tmp_path / "adapter")
    for path in (tmp_path / "adapter").iterdir():
        store.put(f"{storage.uri}/adapter/{path.name}", path)
    data, generator = (tmp_path / "adapter" / name).read_bytes(), random.Random(9)
    plain, refused = random_transformer(1), 0
    whole = read_adapter(plain, f"{storage.uri}/adapter", store)
    for bit in generator.sample(range(8 * len(data)), flips):
        harmed = bytearray(data)
        harmed[bit // 8] ^= 1 << bit % 8
        store.put(f"{storage.uri}/adapter/{name}", bytes(harmed))
        try:
            found = read_adapter(plain, f"{storage.uri}/adapter", store)
        except (ConfigError, DamagedObject):
            refused += 1
        else:
            assert found.config == whole.config, f"bit {bit}"
            assert all(torch.equal(found.tensors[key], value) for key, value in whole.tensors.items()), f"bit {bit}"
    assert refused > flips / 3


def test_an_adapter_is_loaded_and_merged_from_the_object_store(s3, storage, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    store = ObjectStore.for_storage(storage)
    model = adapted_model()
    save_adapter(model, CONFIG, tmp_path / "adapter")
    for path in (tmp_path / "adapter").iterdir():
        store.put(f"{storage.uri}/adapter/{path.name}", path)
    other = random_transformer(1)
    assert load_adapter(other, f"{storage.uri}/adapter", store) == CONFIG
    assert equal(model, other)
    plain = random_transformer(1)
    save_file(plain.state_dict(), tmp_path / "base.safetensors")
    loaded = models.load(tmp_path / "base.safetensors", model=plain.config, adapter=f"{storage.uri}/adapter")
    merge(model)
    assert equal(loaded, model)
    with pytest.raises(ConfigError, match="an adapter is saved to a folder on this machine"):
        save_adapter(adapted_model(), CONFIG, f"{storage.uri}/adapter")


@pytest.mark.parametrize("damage", ["lost", "misshapen", "truncated", "config", "target", "nothing"])
def test_a_refused_adapter_leaves_the_model_as_it_was(damage, tmp_path):
    save_adapter(adapted_model(), CONFIG, tmp_path)
    path, config = tmp_path / ADAPTER_WEIGHTS, tmp_path / ADAPTER_CONFIG
    stored = load_file(path)
    name = next(iter(stored))
    if damage == "lost":
        save_file({key: value for key, value in stored.items() if key != name}, path)
    elif damage == "misshapen":
        save_file(stored | {name: stored[name].T.contiguous()}, path)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "config":
        config.write_text("{}")
    elif damage == "target":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["querry"]}))
    else:
        config.unlink()
    model, same = random_transformer(1), random_transformer(1)
    with pytest.raises(ConfigError):
        load_adapter(model, tmp_path)
    assert equal(model, same)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not adapted(model)


def their_layers(theirs):
    """diffusers' linear layers but the input, which has no counterpart beside a condition."""
    return {name: part for name, part in theirs.named_modules() if isinstance(part, torch.nn.Linear)}


def lora_of(theirs, seed, share):
    """A random adapter of a share of their layers, of ranks that differ; added to their weights as well."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    tensors, layers = {}, their_layers(theirs)
    names = [name for name in layers if name != "x_embedder" or theirs.config.in_channels == theirs.out_channels]
    for name in draw.sample(names, max(2, int(share * len(names)))):
        layer, rank = layers[name], draw.randint(1, 4)
        a = 0.2 * torch.randn(rank, layer.in_features, generator=generator)
        b = 0.2 * torch.randn(layer.out_features, rank, generator=generator)
        alpha = draw.choice([None, rank / 2, 2.0 * rank])
        with torch.no_grad():
            layer.weight += (1.0 if alpha is None else alpha / rank) * b @ a
        tensors |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
        if alpha is not None:
            tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_a_flux_lora_adds_what_it_adds_in_diffusers(seed, tmp_path):
    ours = random_transformer(seed)
    models.export_diffusers(tmp_path, ours, random_autoencoder(seed))
    theirs, inputs = diffusers_transformer(tmp_path), random_inputs(ours.config, seed)
    before = run_diffusers(theirs, inputs)
    save_file(lora_of(theirs, seed, 1.0 if seed == 0 else 0.4), tmp_path / DIFFUSERS_FILE)
    expected = run_diffusers(theirs, inputs)
    assert relative(before, expected) > 0.05
    config = load_adapter(ours, tmp_path if seed % 2 else tmp_path / DIFFUSERS_FILE)
    assert relative(ours(**inputs), expected) < 1e-3
    # It is now an adapter like any other: it can be saved, loaded, trained further and merged.
    save_adapter(ours, config, tmp_path / "peft")
    again = random_transformer(seed)
    load_adapter(again, tmp_path / "peft")
    assert equal(ours, again)
    merge(ours)
    assert relative(ours(**inputs), expected) < 1e-3


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_an_adapter_of_ours_adds_in_diffusers_what_it_adds_here(seed, tmp_path):
    """By diffusers' own loader and PEFT, on the exported model."""
    model, config = random_transformer(seed, cond_embed=seed != 1), LoraConfig(rank=2, alpha=3.0)
    models.export_diffusers(tmp_path, model, random_autoencoder(seed))
    theirs, inputs = diffusers_transformer(tmp_path), random_inputs(model.config, seed)
    plain = run_diffusers(theirs, inputs)
    inject(model, config)
    initialize_adapter(model, 1)
    for number, layer in enumerate(adapted(model).values()):
        layer.lora_B.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    tensors = {name: value for name, value in model.state_dict().items() if is_adapter(name)}
    named, settings = to_diffusers(model.config, config, tensors)
    save_file(named, tmp_path / DIFFUSERS_FILE, settings)
    theirs.load_lora_adapter(tmp_path, weight_name=DIFFUSERS_FILE, prefix="transformer")
    found = run_diffusers(theirs, inputs)
    assert relative(plain, found) > 0.05
    # In standard deviations: float32 sums in another order were 2e-6 apart at most, a lost layer is above 0.05.
    assert relative(model(**inputs), found) < 1e-3
    again = random_transformer(seed, cond_embed=seed != 1)
    load_adapter(again, tmp_path / DIFFUSERS_FILE)
    assert relative(again(**inputs), model(**inputs)) < 1e-3


def test_a_layer_without_a_counterpart_in_diffusers_is_refused_by_name():
    model, config = random_transformer(1, cond_embed=True), LoraConfig(rank=2, alpha=2.0, targets=("cond_in", "proj"))
    inject(model, config)
    tensors = {name: value for name, value in model.state_dict().items() if is_adapter(name)}
    with pytest.raises(ConfigError, match="no counterpart:\n  cond_in"):
        to_diffusers(model.config, config, tensors)


def test_the_scale_in_the_metadata_of_newer_files_counts(tmp_path):
    names = {"a": "transformer.transformer_blocks.0.attn.to_v.lora_A.weight"}
    names["b"] = names["a"].replace("lora_A", "lora_B")
    model = random_transformer(1)
    width = model.config.hidden_size
    tensors = {names["a"]: torch.ones(2, width), names["b"]: torch.ones(width, 2)}
    settings = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_v"]}
    save_file(tensors, tmp_path / DIFFUSERS_FILE, {"lora_adapter_metadata": json.dumps(settings)})
    load_adapter(model, tmp_path)
    before = random_transformer(1).double_blocks[0].img_attn.v_proj.weight
    merge(model)
    added = model.double_blocks[0].img_attn.v_proj.weight - before
    assert_near(added, torch.full_like(added, 8 / 2 * 2), 2)  # added to a weight, which is subtracted again
    settings["transformer.rank_pattern"] = {"to_v": 4}
    save_file(tensors, tmp_path / DIFFUSERS_FILE, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(ConfigError, match="only plain LoRA can be loaded, but these are set: rank_pattern"):
        load_adapter(random_transformer(1), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transformer.transformer_blocks.99.attn.to_q", r"no counterpart:\n  transformer_blocks.99.attn.to_q"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "only pairs transformer.NAME.lora_A.weight"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "only pairs transformer.NAME.lora_A.weight"),
    ],
)
def test_what_a_flux_lora_adapts_besides_is_refused_by_name(name, message, tmp_path):
    width, fine = 8, "transformer.single_transformer_blocks.0.attn.to_k"
    model = random_transformer(1)
    hidden = model.config.hidden_size
    tensors = {f"{fine}.lora_A.weight": torch.zeros(2, hidden), f"{fine}.lora_B.weight": torch.zeros(hidden, 2)}
    tensors |= {f"{name}.lora_A.weight": torch.zeros(2, width), f"{name}.lora_B.weight": torch.zeros(width, 2)}
    save_file(tensors, tmp_path / DIFFUSERS_FILE)
    with pytest.raises(ConfigError, match=message):
        load_adapter(model, tmp_path)
    assert not adapted(model)


def test_an_adapter_for_another_width_or_kind_of_model_is_refused(tmp_path):
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.zeros(2, 7), f"{name}.lora_B.weight": torch.zeros(7, 2)}
    save_file(tensors, tmp_path / DIFFUSERS_FILE)
    with pytest.raises(ConfigError, match=r"to_q.lora_B.weight: 7 rows, .* it was made for another model"):
        load_adapter(random_transformer(1), tmp_path)
    with pytest.raises(ConfigError, match="only an MMDiT can take it"):
        load_adapter(random_autoencoder(1), tmp_path)
    with pytest.raises(ConfigError, match=r"there is no adapter: neither adapter_config\.json .* nor pytorch_lora"):
        load_adapter(random_transformer(1), tmp_path / "nowhere")
