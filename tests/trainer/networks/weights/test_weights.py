import hashlib
import json
import re
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from support.model_fixtures import forward

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.initial import initialize, write_initial
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.layouts import CONDITION_BIAS, half_split, interleaved
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Destination, convert, load_weights, open_weights, start_from
from videotrain_trainer.networks.weights.layouts import LAYOUTS, sizes

MMDIT = MMDiTConfig(
    in_channels=16,
    context_dim=24,
    pooled_dim=12,
    hidden_size=64,
    num_heads=2,
    double_blocks=2,
    single_blocks=2,
    mlp_ratio=4.0,
    rope_axes=(4, 14, 14),
    patch_size=2,
    cond_embed=True,
    guidance_embed=False,
)
FLUX = replace(MMDIT, cond_embed=False, guidance_embed=True)
DC_AE = DCAEConfig(
    latent_channels=8, widths=(8, 32, 32, 64), depths=(2, 1, 1, 1), decoder_depths=(1, 2, 1, 3), scaling_factor=0.5
)
HUNYUAN = HunyuanVAEConfig(
    latent_channels=4, widths=(8, 16, 16), depths=(2, 1, 1), decoder_depths=(3, 2, 2), norm_groups=8
)
PICTURES = PictureVAEConfig(latent_channels=4, width=32, multipliers=(1, 2, 2), blocks=1)
MODELS = {
    "mmdit": (MMDiT, MMDIT),
    "flux": (MMDiT, FLUX),
    "dc-ae": (DCAE, DC_AE),
    "hunyuan": (HunyuanVAE, HUNYUAN),
    "pictures": (PictureVAE, PICTURES),
}
HOMES = {
    "mmdit": "open-sora-v2",
    "flux": "open-sora-v2",
    "dc-ae": "open-sora-dc-ae",
    "hunyuan": "hunyuan-vae",
    "pictures": "flux-vae",
}
"""The layout that each model has by itself."""
ROUND_TRIPS = [
    ("mmdit", "open-sora-v2", "flux-dev"),
    ("mmdit", "open-sora-v2", "diffusers"),
    ("mmdit", "flux-dev", "open-sora-v2"),
    ("mmdit", "diffusers", "open-sora-v2"),
    ("mmdit", "diffusers", "flux-dev"),
    ("flux", "flux-dev", "open-sora-v2"),
    ("flux", "flux-dev", "diffusers"),
    ("flux", "diffusers", "flux-dev"),
    ("hunyuan", "hunyuan-vae", "diffusers"),
    ("hunyuan", "diffusers", "hunyuan-vae"),
    ("dc-ae", "open-sora-dc-ae", "open-sora-dc-ae"),
    ("pictures", "flux-vae", "diffusers"),
    ("pictures", "diffusers", "flux-vae"),
]


def empty(kind):
    make, config = MODELS[kind]
    with torch.device("meta"):
        return make(config)


def written(kind, layout, target, seed=1, **options):
    """A file of first weights, with no bias or norm left at its plain start."""
    model = MODELS[kind][0](MODELS[kind][1])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    own = target.with_name("own.safetensors")
    save_file({name: value.bfloat16() for name, value in model.state_dict().items()}, own)
    convert(own, Destination(target=target, **options), HOMES[kind], layout)
    own.unlink()
    return target


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("kind", "layout", "other"), ROUND_TRIPS)
def test_a_published_file_comes_back_bit_by_bit_through_another_layout(kind, layout, other, tmp_path):
    source = written(kind, layout, tmp_path / "source.safetensors")
    convert(source, Destination(target=tmp_path / "other.safetensors"), layout, other)
    convert(tmp_path / "other.safetensors", Destination(target=tmp_path / "back.safetensors"), other, layout)
    first, back = load_file(source), load_file(tmp_path / "back.safetensors")
    assert first.keys() == back.keys()
    assert all(first[name].dtype == back[name].dtype == torch.bfloat16 for name in first)
    assert all(torch.equal(first[name], back[name]) for name in first)
    assert digest(source) == digest(tmp_path / "back.safetensors")


def test_every_layout_of_a_video_model_has_a_round_trip_here():
    assert {layout for _, layout, _ in ROUND_TRIPS} >= {name for name in LAYOUTS if "image" not in name}


@pytest.mark.parametrize("name", ["mmdit_t2v", "mmdit_i2v", "mmdit_dc_ae", "mmdit_flux_image"])
@pytest.mark.parametrize("layout", ["open-sora-v2", "flux-dev", "diffusers"])
@torch.no_grad()
def test_a_fixture_computes_its_output_from_every_layout(name, layout, fixture, mmdit, tmp_path):
    found, model = fixture(name), mmdit(name)
    home = "flux-dev" if name == "mmdit_flux_image" else "open-sora-v2"
    convert(found.weights, Destination(target=tmp_path / "w.safetensors"), home, layout)
    other = MMDiT(model.config)
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(forward(other, found), forward(model, found))


def test_the_rows_of_a_head_are_taken_even_ones_first():
    rows = torch.arange(8.0)[:, None].repeat(1, 3)
    assert half_split(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(interleaved(half_split(rows, 2), 2), rows)


def test_diffusers_has_scale_before_shift_in_its_last_layer(tmp_path):
    ours = load_file(written("flux", "open-sora-v2", tmp_path / "ours.safetensors"))
    theirs = load_file(written("flux", "diffusers", tmp_path / "theirs.safetensors"))
    shift, scale = ours["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(theirs["norm_out.linear.weight"], torch.cat((scale, shift)))


def test_the_condition_is_part_of_diffusers_input_layer_and_its_bias_is_kept_in_the_metadata(tmp_path):
    ours = load_file(written("mmdit", "open-sora-v2", tmp_path / "ours.safetensors"))
    target = written("mmdit", "diffusers", tmp_path / "theirs.safetensors")
    theirs = load_file(target)
    assert torch.equal(theirs["x_embedder.weight"], torch.cat((ours["img_in.weight"], ours["cond_in.weight"]), dim=1))
    assert torch.equal(theirs["x_embedder.bias"], ours["img_in.bias"] + ours["cond_in.bias"])
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert CONDITION_BIAS in metadata
    theirs["x_embedder.bias"] += 1  # somebody trained it further: the stored parts fit no more
    save_file(theirs, target, metadata=metadata)
    convert(target, Destination(target=tmp_path / "back.safetensors"), "diffusers", "open-sora-v2")
    back = load_file(tmp_path / "back.safetensors")
    assert torch.equal(back["img_in.bias"], theirs["x_embedder.bias"])
    assert not back["cond_in.bias"].any()


class TestRefusals:
    """A file with one tensor missing, extra, transposed or cut off is refused with the list."""

    @pytest.fixture(params=["open-sora-v2", "flux-dev", "diffusers"])
    def published(self, request, tmp_path):
        kind = "flux" if request.param == "flux-dev" else "mmdit"
        return request.param, kind, load_file(written(kind, request.param, tmp_path / "w.safetensors")), tmp_path

    def refused(self, layout, kind, state, folder):
        """By conversion (which has nothing but the file) and by loading; the messages."""
        save_file(state, folder / "bad.safetensors")
        with pytest.raises(ConfigError) as converted:
            convert(folder / "bad.safetensors", Destination(target=folder / "out.safetensors"), layout, "open-sora-v2")
        assert not (folder / "out.safetensors").exists()
        model = empty(kind)
        with pytest.raises(ConfigError) as loaded:
            load_weights(model, folder / "bad.safetensors")
        assert all(parameter.is_meta for parameter in model.parameters())  # nothing was half loaded
        return str(converted.value), str(loaded.value)

    def test_one_missing(self, published):
        layout, kind, state, folder = published
        name = next(name for name in state if "blocks.1" in name and name.endswith("bias"))
        shape = list(state.pop(name).shape)
        for message in self.refused(layout, kind, state, folder):
            assert f"missing: {name} {shape}" in message
            assert "1 of " in message

    def test_one_extra(self, published):
        layout, kind, state, folder = published
        state["ema.decay"] = torch.zeros(3)
        for message in self.refused(layout, kind, state, folder):
            assert "unexpected: ema.decay [3]" in message

    def test_every_matrix_that_is_not_square_transposed(self, published):
        layout, kind, state, folder = published
        oblong = [name for name, value in state.items() if value.ndim == 2 and value.shape[0] != value.shape[1]]
        assert len(oblong) >= 15
        for name in oblong:
            rows, columns = state[name].shape
            bad = {**state, name: state[name].T.contiguous()}
            for message in self.refused(layout, kind, bad, folder):
                assert f"misshapen: {name} is {[columns, rows]} in the file, {[rows, columns]} in" in message
                assert "(transposed)" in message

    @pytest.mark.parametrize("lost", [1, 5000])
    def test_truncated(self, published, lost):
        _layout, kind, state, folder = published
        save_file(state, folder / "bad.safetensors")
        data = (folder / "bad.safetensors").read_bytes()
        (folder / "bad.safetensors").write_bytes(data[:-lost])
        for source in (folder / "bad.safetensors", data[:-lost]):
            with pytest.raises(ConfigError) as caught:
                load_weights(empty(kind), source)
            expected = f"truncated: {len(data)} bytes expected, the file ends after {len(data) - lost}"
            assert expected in str(caught.value)
            assert re.search(r"truncated: \S+ \[.*\] needs bytes \d+ to", str(caught.value))

    @pytest.mark.parametrize("kind", ["dc-ae", "hunyuan"])
    def test_autoencoders_too(self, kind, tmp_path):
        layout = {"dc-ae": "open-sora-dc-ae", "hunyuan": "hunyuan-vae"}[kind]
        state = load_file(written(kind, layout, tmp_path / "w.safetensors"))
        name = next(name for name, value in state.items() if value.ndim == 5 and value.shape[0] != value.shape[1])
        shape = list(state[name].shape)
        missing = {other: value for other, value in state.items() if other != name}
        misshapen = {**state, name: state[name].transpose(0, 1).contiguous()}
        for bad, problem in ((missing, "missing"), (misshapen, "misshapen")):
            for message in self.refused_autoencoder(layout, kind, bad, tmp_path):
                assert f"{problem}: {name}" in message
                assert str(shape) in message

    def refused_autoencoder(self, layout, kind, state, folder):
        save_file(state, folder / "bad.safetensors")
        with pytest.raises(ConfigError) as converted:
            convert(folder / "bad.safetensors", Destination(target=folder / "out.safetensors"), layout, layout)
        with pytest.raises(ConfigError) as loaded:
            load_weights(empty(kind), folder / "bad.safetensors")
        return str(converted.value), str(loaded.value)


def test_a_file_of_another_layout_than_was_said_is_refused_by_name(tmp_path):
    source = written("mmdit", "diffusers", tmp_path / "w.safetensors")
    with pytest.raises(
        ConfigError, match="said to have layout 'flux-dev', but its tensor names are those of 'diffusers'"
    ):
        convert(source, Destination(target=tmp_path / "out.safetensors"), "flux-dev", "open-sora-v2")
    with pytest.raises(ConfigError, match="layout 'difusers' is unknown; did you mean 'diffusers'"):
        convert(source, Destination(target=tmp_path / "out.safetensors"), "difusers", "open-sora-v2")
    with pytest.raises(ConfigError, match="layout 'hunyuan-vae' cannot hold an MMDiT; those that can: open-sora-v2"):
        convert(source, Destination(target=tmp_path / "out.safetensors"), "diffusers", "hunyuan-vae")


def test_a_video_autoencoder_is_not_made_from_one_of_pictures_by_renaming(tmp_path):
    state = load_file(written("dc-ae", "open-sora-dc-ae", tmp_path / "w.safetensors"))
    flat = {name: value[:, :, 0].contiguous() if value.ndim == 5 else value for name, value in state.items()}
    save_file(flat, tmp_path / "pictures.safetensors")
    with pytest.raises(ConfigError, match="a picture autoencoder has no kernels over time"):
        convert(
            tmp_path / "pictures.safetensors",
            Destination(target=tmp_path / "o.safetensors"),
            "image-dc-ae",
            "open-sora-dc-ae",
        )
    convert(
        tmp_path / "pictures.safetensors",
        Destination(target=tmp_path / "d.safetensors"),
        "image-dc-ae",
        "diffusers-image-dc-ae",
    )
    convert(
        tmp_path / "d.safetensors",
        Destination(target=tmp_path / "b.safetensors"),
        "diffusers-image-dc-ae",
        "image-dc-ae",
    )
    back = load_file(tmp_path / "b.safetensors")
    assert back.keys() == flat.keys()
    assert all(torch.equal(back[name], flat[name]) for name in flat)


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_tells_the_sizes_of_its_model(kind, tmp_path):
    config = MODELS[kind][1]
    for layout in sorted({layout for model, *both in ROUND_TRIPS for layout in both if model == kind}):
        shapes = open_weights(written(kind, layout, tmp_path / "w.safetensors")).shapes
        found = sizes(shapes, "file")
        unknown = {"scaling_factor": config.scaling_factor} if kind == "dc-ae" else {}
        assert replace(found, **unknown) == config


class TestShards:
    def sharded(self, folder, **options):
        return written("mmdit", "open-sora-v2", folder / "shards", shard_bytes=60_000, **options)

    def test_shards_have_an_index_and_are_read_back(self, tmp_path):
        folder = self.sharded(tmp_path)
        whole = load_file(written("mmdit", "open-sora-v2", tmp_path / "whole.safetensors"))
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        assert len(files) > 5
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in whole.values())
        assert set(index["weight_map"].values()) == set(files)
        assert all((folder / name).stat().st_size < 60_000 + 2**17 for name in files)
        pieces = {name: value for file in files for name, value in load_file(folder / file).items()}
        for found in (pieces, {name: open_weights(folder).read(name) for name in whole}):
            assert found.keys() == whole.keys()
            assert all(torch.equal(found[name], whole[name]) for name in whole)

    def test_a_folder_its_index_and_a_file_uri_are_the_same_source(self, tmp_path):
        folder = self.sharded(tmp_path)
        for source in (folder, folder / "model.safetensors.index.json", f"file://{folder}"):
            model = empty("mmdit")
            load_weights(model, source)
            assert not any(parameter.is_meta for parameter in model.parameters())

    def test_shards_become_one_file_again(self, tmp_path):
        folder = self.sharded(tmp_path)
        whole = written("mmdit", "open-sora-v2", tmp_path / "whole.safetensors")
        convert(folder, Destination(target=tmp_path / "one.safetensors"), "open-sora-v2", "open-sora-v2")
        assert digest(whole) == digest(tmp_path / "one.safetensors")

    def test_a_lost_shard_and_a_shard_that_differs_from_the_index_are_named(self, tmp_path):
        folder = self.sharded(tmp_path)
        second = sorted(folder.glob("*.safetensors"))[1]
        state = load_file(second)
        name = next(iter(state))
        save_file({other: value for other, value in state.items() if other != name} | {"new": torch.zeros(1)}, second)
        with pytest.raises(ConfigError) as caught:
            open_weights(folder)
        assert f"missing: {name} is not in {second.name}" in str(caught.value)
        assert f"unexpected: new in {second.name} is not in the index" in str(caught.value)
        second.unlink()
        with pytest.raises(ConfigError, match=f"{second.name}: there is no such weight file"):
            open_weights(folder)

    def test_a_folder_that_has_weights_already_is_refused(self, tmp_path):
        folder = self.sharded(tmp_path)
        before = {path.name: digest(path) for path in folder.iterdir()}
        source = written("flux", "flux-dev", tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=r"there is model\S+ already; remove it or write to another folder"):
            convert(source, Destination(target=folder), "flux-dev", "flux-dev")
        assert {path.name: digest(path) for path in folder.iterdir()} == before

    def test_a_folder_with_two_models_asks_for_one(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors").write_bytes(save({"x": torch.zeros(1)}))
        with pytest.raises(
            ConfigError, match=r"several weights to choose from: a\.safetensors, b\.safetensors; name one"
        ):
            open_weights(tmp_path)
        with pytest.raises(ConfigError, match="there are no weights"):
            open_weights(tmp_path / "nowhere")


def test_reading_never_holds_more_than_one_group(tmp_path, monkeypatch):
    """Streaming: what was read is let go before the next group is read."""
    import gc
    import weakref

    from videotrain_trainer.networks.weights import files

    source = written("flux", "flux-dev", tmp_path / "w.safetensors")
    alive, most = weakref.WeakSet(), [0]
    plain = files.SafetensorsFile.read

    def counting(self, name):
        tensor = plain(self, name)
        alive.add(tensor.untyped_storage())
        most[0] = max(most[0], len(alive))
        return tensor

    monkeypatch.setattr(files.SafetensorsFile, "read", counting)
    gc.collect()
    convert(source, Destination(target=tmp_path / "out", shard_bytes=50_000), "flux-dev", "diffusers")
    assert len(alive) == 0
    assert 1 <= most[0] <= 2


def test_progress_counts_every_byte_and_casting_keeps_to_its_type(tmp_path):
    source, told = written("mmdit", "open-sora-v2", tmp_path / "w.safetensors"), []
    done = convert(
        source,
        Destination(target=tmp_path / "o.safetensors"),
        "open-sora-v2",
        "diffusers",
        dtype=torch.float32,
        progress=lambda *at: told.append(at),
    )
    assert told[-1] == (done.bytes, done.bytes)
    assert [at for at, _ in told] == sorted({at for at, _ in told})
    found = load_file(tmp_path / "o.safetensors")
    assert len(found) == done.tensors
    assert all(value.dtype == torch.float32 for value in found.values())


def test_an_interrupted_conversion_leaves_no_file_under_the_final_name(tmp_path):
    source = written("mmdit", "open-sora-v2", tmp_path / "w.safetensors")

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, Destination(target=tmp_path / "o.safetensors"), "open-sora-v2", "flux-dev", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file: 0 bytes"),
        (b"no weights at all", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 500) + b"{}", "truncated: the header has 500 bytes"),
        (save({"x": torch.zeros(2, 2)}).replace(b"[2,2]", b"[2,3]"), "damaged header: x [2, 3] cannot have 16 bytes"),
        (save({"x": torch.zeros(2, 2)}).replace(b'"F32"', b'"F31"'), "data type 'F31' is none of"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_with_the_reason(data, message):
    with pytest.raises(ConfigError, match="^s3://some: .*" + re.escape(message)):
        open_weights(data, "s3://some")


class TestStarting:
    """The published way to begin: image model, then text-only video model, then the condition."""

    def test_from_flux_the_guidance_input_is_dropped_and_the_condition_starts_at_zero(self, tmp_path):
        source = written("flux", "flux-dev", tmp_path / "flux.safetensors")
        model = MMDiT(MMDIT)
        initialize(model, 5)
        torch.nn.init.ones_(model.cond_in.weight)
        start_from(model, source)
        image = MMDiT(FLUX)
        load_weights(image, source)
        assert not model.cond_in.weight.any()
        assert not model.cond_in.bias.any()
        kept = {name for name in model.state_dict() if not name.startswith("cond_in")}
        assert all(torch.equal(model.state_dict()[name], image.state_dict()[name]) for name in kept)

    def test_the_first_output_is_that_of_the_text_only_model(self, fixture, mmdit, tmp_path):
        found = fixture("mmdit_t2v")
        plain = mmdit("mmdit_t2v")
        model = MMDiT(replace(plain.config, cond_embed=True))
        start_from(model, found.weights)
        args = [found[f"in.{name}"] for name in ("img", "img_ids", "txt", "txt_ids", "timesteps", "y_vec")]
        with torch.no_grad():
            assert torch.equal(model(*args, torch.randn(2, 60, model.config.cond_features)), plain(*args))

    def test_layers_that_are_named_keep_their_own_start_whatever_their_size(self, tmp_path):
        source = written("mmdit", "open-sora-v2", tmp_path / "w.safetensors")
        other = replace(MMDIT, in_channels=8, patch_size=1)
        model = MMDiT(other)
        initialize(model, 5)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        start_from(model, source, fresh=("img_in", "cond_in", "final_layer.linear"))
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert {n.split(".")[0] for n in before.keys() - changed} == {"img_in", "cond_in", "final_layer"}

    def test_anything_else_must_fit(self, tmp_path):
        source = written("flux", "flux-dev", tmp_path / "w.safetensors")
        model = MMDiT(replace(MMDIT, single_blocks=3, in_channels=8))
        with pytest.raises(ConfigError) as caught:
            start_from(model, source)
        assert "missing: single_blocks.2.linear2.weight" in str(caught.value)
        assert "misshapen: img_in.weight is [64, 16] in the file, [64, 8] in the model" in str(caught.value)

    def test_strict_loading_adds_and_drops_nothing(self, tmp_path):
        source = written("flux", "flux-dev", tmp_path / "w.safetensors")
        with pytest.raises(ConfigError) as caught:
            load_weights(MMDiT(MMDIT), source)
        assert "missing: cond_in.weight [64, 20]" in str(caught.value)
        assert "unexpected: guidance_in.in_layer.weight" in str(caught.value)


def test_a_loader_that_is_not_strict_leaves_random_weights(tmp_path):
    """Public code loads what fits and is silent about the rest; here one wrong name stops everything."""
    with torch.device("meta"):
        model = MMDiT(MMDIT)
    write_initial(model, 1, Destination(target=tmp_path / "w.safetensors"), "open-sora-v2")
    state = load_file(tmp_path / "w.safetensors")
    state["double_blocks.0.img_attn.query.weight"] = state.pop("double_blocks.0.img_attn.q_proj.weight")
    fresh = MMDiT(MMDIT)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(ConfigError, match=r"missing: double_blocks\.0\.img_attn\.q_proj\.weight"):
        load_weights(fresh, save(state))
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
