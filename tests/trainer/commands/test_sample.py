"""`videotrain-trainer sample` as people use it, on tiny models."""

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.sampling_folder import AUTOENCODER, MODEL, TEXT, flags_of, make_folder

from videotrain_api.config.presets import TRANSFORMERS
from videotrain_trainer import cli
from videotrain_trainer.commands import sample as command
from videotrain_trainer.data.video import decode, probe
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.build import build_autoencoder, build_transformer, initialize
from videotrain_trainer.sampling import outputs
from videotrain_trainer.sampling.loaded import FLUX_PICTURE_SPEC, Models


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def run(folder, *flags):
    return cli.main(flags_of(folder, *flags))


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pixels(path):
    return np.stack([frame for _, frame in decode(path)])


def difference(path, other):
    """Mean of 255: the same drawing may differ in last digits, of which a video codec makes more."""
    return np.abs(pixels(path).astype(int) - pixels(other).astype(int)).mean()


def test_a_prompt_becomes_a_video_that_tells_how_it_was_made(folder, capsys):
    assert run(folder, "--prompt", "A cat.", "--fps", 12, "--seed", 5, "--json") == 0
    out = capsys.readouterr()
    (line,) = [json.loads(text) for text in out.out.splitlines()]
    path = folder / "out/0001.mp4"
    assert (line["file"], line["seed"], line["kept"]) == (str(path), 5, False)
    info = probe(path)
    assert (info.width, info.height, info.fps) == (64, 64, 12)
    assert len(pixels(path)) == 8
    metadata = outputs.read_metadata(path)
    assert metadata["request"]["text"] == "A cat. 12 FPS, 4 motion score."
    assert metadata["request"]["settings"]["steps"] == 2
    assert str(folder / "model.safetensors") in metadata["request"]["models"]
    sidecar = json.loads((folder / "out/0001.json").read_text())
    assert sidecar == metadata | {"file": "0001.mp4"}
    assert re.search(r"0001: step 1/2, .*\n0001: step 2/2, ", out.err)


def test_a_batch_goes_on_where_it_was_stopped_and_redraws_what_has_other_settings(folder, capsys, monkeypatch):
    (folder / "prompts.txt").write_text("# two prompts\nA cat.\n\nA dog.\n")
    run(folder, "--prompts", folder / "prompts.txt", "--json")
    assert [line["kept"] for line in lines(capsys)] == [False, False]
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    (folder / "out/0002.json").unlink()  # as if it had been stopped while it wrote the second one
    run(folder, "--prompts", folder / "prompts.txt", "--json")
    assert [line["kept"] for line in lines(capsys)] == [True, False]
    assert (folder / "out/0001.mp4").stat().st_mtime_ns == times["0001.mp4"]
    assert (folder / "out/0002.mp4").stat().st_mtime_ns != times["0002.mp4"]
    monkeypatch.setattr("videotrain_trainer.commands.sample_run.load_models", None)  # nothing is missing: not called
    assert run(folder, "--prompts", folder / "prompts.txt") == 0
    assert capsys.readouterr().out.count("(kept)") == 2
    monkeypatch.undo()
    run(folder, "--prompts", folder / "prompts.txt", "--guidance", 2, "--json")
    assert [line["kept"] for line in lines(capsys)] == [False, False]
    assert not [path for path in (folder / "out").iterdir() if "partial" in path.name]


def test_rows_of_a_csv_file_have_their_own_references_seeds_and_names(folder, capsys):
    rows = [
        "text,image,last_image,condition,seed,name,negative",
        f'"A street, at night.",{folder}/picture.png,,,7,street,blurry',
        f"A loop.,{folder}/picture.png,{folder}/last.png,,,,",
        f"A tail.,{folder}/last.png,,i2v_tail,,,",
    ]
    (folder / "prompts.csv").write_text("\n".join(rows))
    assert run(folder, "--prompts", folder / "prompts.csv", "--seed", 3, "--json") == 0
    found = [json.loads(Path(line["sidecar"]).read_text())["request"] for line in lines(capsys)]
    assert [request["condition"] for request in found] == ["i2v_head", "i2v_loop", "i2v_tail"]
    assert [request["seed"] for request in found] == [7, 3, 3]
    assert [request["negative"] for request in found] == ["blurry", "", ""]
    assert found[0]["prompt"] == "A street, at night."
    assert (folder / "out/street.mp4").exists()
    assert (folder / "out/0002.mp4").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,picture\na,b\n", r"prompts.csv:1: columns .*'text' is needed; allowed: text, negative, image"),
        ("text,seed\na,-1\n", r"prompts.csv:2: seed: '-1'"),
        ("text,condition\na,i2v\n", r"prompts.csv:2: condition: 'i2v'; allowed: t2v"),
        ("text,name\na,../b\n", r"prompts.csv:2: name"),
        ("text,seed\n,1\n", r"prompts.csv:2: text: empty"),
        ("text,seed\na,1,2\n", r"prompts.csv:2: more values"),
        ("text\n", "there is no prompt in it"),
        ("text,name\na,x\nb,x\n", "would be written twice"),
        ("text,condition\na,i2v_head\n", r"prompts.csv:2: condition 'i2v_head' and image None"),
    ],
)
def test_wrong_rows_are_refused_with_file_and_line(folder, capsys, text, message):
    (folder / "prompts.csv").write_text(text)
    assert run(folder, "--prompts", folder / "prompts.csv") != 0
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "there is no prompt"),
        (
            ["--prompt", "a", "--num-frames", 9],
            "--num-frames: 9: this autoencoder decodes to 1 or 4k with k > 1 frames",
        ),
        (["--prompt", "a", "--aspect", "7:3"], "--resolution, --aspect: unknown aspect ratio '7:3'"),
        (["--prompt", "a", "--best-of", 2], "--best-of 2, --scorer None: several candidates need a scorer"),
        (["--prompt", "a", "--best-of", 2, "--scorer", "beauty"], "scorer: 'beauty' is unknown; allowed: motion"),
        (["--prompt", "a", "--image-model-weights", "x"], "--image-model: not set"),
        (["--prompt", "a", "--model", "mmdit-12b"], "unknown preset; did you mean 'mmdit-11b'"),
        (["--prompt", "a", "--num-frames", 1, "--format", "mp4"], "--format: 'mp4' for a picture"),
        (["--prompt", "a", "--num-frames", 1, "--image", "x.png"], "'i2v_head': a picture takes no reference"),
        (["--prompt", "a", "--device", "tpu"], "--device: 'tpu'"),
        (
            ["--prompt", "a", "--video", "clip.mp4", "--num-frames", 32],
            "32 frames are not more than the 32 that are given",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_flag(folder, capsys, flags, message):
    assert run(folder, *flags) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--steps", 0], ["--guidance", "high"], ["--seed", -1], ["--offlaod"]])
def test_wrong_and_unknown_flags_are_refused(folder, flags):
    with pytest.raises(SystemExit):
        run(folder, "--prompt", "a", *flags)


def test_every_flag_is_read(folder):
    """A flag of the published command has no effect, because its code reads another name."""
    import argparse
    import inspect

    from videotrain_trainer.commands import sample_requests as flags
    from videotrain_trainer.commands import sample_run as draw

    parser = argparse.ArgumentParser()
    command.add_options(parser)
    source = inspect.getsource(draw) + inspect.getsource(flags)
    names = [action.dest for action in parser._actions if action.dest != "help"]
    assert len(names) > 35
    assert [name for name in names if not re.search(rf"options\.{name}\b", source)] == []


def test_gif_and_png_hold_the_same_frames_and_metadata(folder, capsys):
    for ending in ("gif", "png"):
        assert run(folder, "--prompt", "Ein Mädchen.", "--format", ending) == 0
    written = sorted(path.name for path in (folder / "out/0001").iterdir())
    assert written == [f"{number:04d}.png" for number in range(8)]
    png = outputs.read_metadata(folder / "out/0001/0003.png")
    gif = outputs.read_metadata(folder / "out/0001.gif")
    assert png == gif
    assert png["request"]["prompt"] == "Ein Mädchen."
    with Image.open(folder / "out/0001.gif") as picture:
        assert picture.n_frames == 8
        assert picture.info["duration"] == 40  # 1000 / 24, in the format's steps of 10 ms


def test_one_frame_is_a_picture_without_rate_and_motion_in_its_text(folder):
    assert run(folder, "--prompt", "A tree.", "--num-frames", 1) == 0
    metadata = outputs.read_metadata(folder / "out/0001.png")
    assert metadata["request"]["text"] == "A tree."
    with Image.open(folder / "out/0001.png") as picture:
        assert picture.size == (64, 64)


def test_the_given_first_and_last_frames_are_used_each_at_its_place(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "videotrain_trainer.diffusion.sampler.Sampler.draw",
        lambda self, noise, text, kind, given, on_step: seen.append((kind, given)) or noise,
    )
    run(folder, "--prompt", "a", "--image", folder / "picture.png", "--last-image", folder / "last.png")
    run(folder, "--prompt", "b", "--image", folder / "last.png", "--condition", "i2v_tail")
    run(folder, "--prompt", "c", "--image", folder / "picture.png", "--condition", "i2v_loop")
    run(folder, "--prompt", "d", "--video", folder / "clip.mp4", "--num-frames", 40)
    run(folder, "--prompt", "e", "--video", folder / "clip.mp4", "--num-frames", 68, "--condition", "v2v_tail_easy")
    (loop, tail, same, head, easy) = seen
    assert [kind for kind, _ in seen] == ["i2v_loop", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail_easy"]
    assert torch.equal(tail[1].tail_CFHW, loop[1].tail_CFHW)
    assert not torch.equal(loop[1].head_CFHW, loop[1].tail_CFHW)
    assert torch.equal(same[1].head_CFHW, same[1].tail_CFHW)
    assert tail[1].head_CFHW is None
    assert head[1].head_CFHW.shape[1] == 8
    assert head[1].tail_CFHW is None
    assert easy[1].tail_CFHW.shape[1] == 16


def test_a_reference_that_is_no_picture_or_too_short_is_refused_by_name(folder, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    assert run(folder, "--prompt", "a", "--image", folder / "broken.png") != 0
    assert "broken.png: not a readable picture or video" in capsys.readouterr().err
    assert run(folder, "--prompt", "a", "--video", folder / "picture.png", "--num-frames", 40) != 0
    assert "picture.png: 1 frames at up to 24 per second, but 32 are to be given" in capsys.readouterr().err


def test_several_videos_of_a_prompt_have_seeds_that_follow_each_other(folder, capsys):
    run(folder, "--prompt", "A cat.", "--n", 2, "--seed", 10, "--json")
    assert [line["seed"] for line in lines(capsys)] == [10, 11]
    first, second = (pixels(folder / f"out/0001-{number}.mp4") for number in (1, 2))
    assert (first != second).any()


@pytest.mark.numeric
def test_the_best_of_several_candidates_is_kept_and_all_scores_are_told(folder, capsys):
    run(folder, "--prompt", "A cat.", "--best-of", 3, "--scorer", "sharpness", "--seed", 4, "--json")
    (line,) = lines(capsys)
    assert set(line["scores"]) == {"4", "5", "6"}
    assert line["scores"][str(line["seed"])] == max(line["scores"].values())
    run(folder, "--prompt", "A cat.", "--seed", line["seed"], "--output", folder / "alone")
    assert difference(folder / "out/0001.mp4", folder / "alone/0001.mp4") < 0.1


def test_a_scorer_of_ones_own_is_imported_and_gets_frames_and_prompt(folder, capsys, monkeypatch):
    seen = []
    module = types.ModuleType("my_scorers")
    module.last = lambda frames, prompt: seen.append((frames.shape, frames.dtype, prompt)) or len(seen)
    monkeypatch.setitem(sys.modules, "my_scorers", module)
    run(folder, "--prompt", "A cat.", "--best-of", 2, "--scorer", "my_scorers:last", "--seed", 4, "--json")
    assert lines(capsys)[0]["seed"] == 5
    assert seen == [((8, 64, 64, 3), np.uint8, "A cat.")] * 2


@pytest.mark.numeric
def test_offloading_changes_no_pixel_and_keeps_one_model_on_the_device(folder, monkeypatch):
    run(folder, "--prompt", "A cat.", "--image", folder / "picture.png")
    here, most = [], []
    plain = Models.on_device

    def watched(self, model):
        from contextlib import contextmanager

        @contextmanager
        def block():
            with plain(self, model):
                here.append(model)
                most.append(len(here))
                yield
            here.remove(model)

        return block()

    monkeypatch.setattr(Models, "on_device", watched)
    run(folder, "--prompt", "A cat.", "--image", folder / "picture.png", "--offload", "--output", folder / "small")
    assert max(most) == 1
    assert len(most) == 4  # text, reference, latent, pixels
    assert difference(folder / "out/0001.mp4", folder / "small/0001.mp4") < 0.1


def test_tiles_are_handed_to_the_autoencoder(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "videotrain_trainer.commands.sample_run.load_models", lambda sources, *_: seen.append(sources) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run(folder, "--prompt", "a", "--tile-pixels", 128, "--tile-frames", 16)
    assert (seen[0].autoencoder.tiling.pixels, seen[0].autoencoder.tiling.frames) == (128, 16)


@pytest.fixture
def image_model(folder, monkeypatch):
    """A distilled image model for pictures, and another autoencoder than the video's; flags that use them."""
    monkeypatch.setitem(
        TRANSFORMERS, "tiny-image", MODEL.model_copy(update={"cond_embed": False, "guidance_embed": True})
    )
    model = build_transformer(TRANSFORMERS["tiny-image"], AUTOENCODER, TEXT)
    initialize(model, 7)
    autoencoder = build_autoencoder(AUTOENCODER)
    initialize(autoencoder, 8)
    save_file(model.state_dict(), folder / "image.safetensors")
    save_file(autoencoder.state_dict(), folder / "image-autoencoder.safetensors", {"scaling_factor": "1.0"})
    flags = ["--image-model", "tiny-image", "--image-model-weights", folder / "image.safetensors"]
    flags += [
        "--image-autoencoder",
        "dc-ae-tiny",
        "--image-autoencoder-weights",
        folder / "image-autoencoder.safetensors",
    ]
    return [*flags, "--image-resolution", "96px", "--image-steps", 2]


def test_an_image_model_draws_the_first_frame_at_its_own_size(folder, image_model, capsys, monkeypatch):
    """The published high-compression pipeline draws it at half its size."""
    calls = []
    original = torch.nn.Module.__call__

    def counted(self, *arguments, **named):
        if type(self).__name__ == "MMDiT":
            calls.append((len(named["img_BNI"]), named["guidance_B"], named["timesteps_B"][0].item()))
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    assert run(folder, "--prompt", "A cat.", *image_model, "--image-model-guidance", 3.5, "--json") == 0
    (line,) = lines(capsys)
    with Image.open(folder / "out/0001-first-frame.png") as picture:
        assert picture.size == (96, 96)
    distilled = [rows for rows, guidance, _ in calls if guidance is not None]
    assert distilled == [1, 1]  # one branch per step
    assert [guidance.tolist() for _, guidance, _ in calls if guidance is not None] == [[3.5], [3.5]]
    picture = json.loads((folder / "out/0001-first-frame.json").read_text())["request"]
    assert picture["text"] == "A cat."  # without the suffix
    video = json.loads(Path(line["sidecar"]).read_text())["request"]
    assert video["condition"] == "i2v_head"
    assert video["image"].endswith("0001-first-frame.png")


def test_another_first_frame_makes_another_video_and_the_same_one_is_kept(folder, image_model, capsys):
    run(folder, "--prompt", "A cat.", *image_model, "--json")
    run(folder, "--prompt", "A cat.", *image_model, "--json")
    run(folder, "--prompt", "A cat.", *image_model, "--image-model-guidance", 2, "--json")
    assert [line["kept"] for line in lines(capsys)] == [False, True, False]


def test_an_image_model_and_a_reference_exclude_each_other(folder, image_model, capsys):
    assert run(folder, "--prompt", "A cat.", *image_model, "--image", folder / "picture.png") != 0
    assert "with an image model the first frame is drawn; leave references out" in capsys.readouterr().err


def test_every_video_of_a_batch_keeps_its_own_reference(folder, monkeypatch):
    """The published code writes the reference of the first item only."""
    (folder / "prompts.csv").write_text(f"text,image\na,{folder}/picture.png\nb,{folder}/last.png\n")
    decoded, given = [], []
    from videotrain_trainer.networks.autoencoders.dc_ae import DCAE
    from videotrain_trainer.sampling import draw

    decode_plain, given_plain = DCAE.decode, draw.given_of
    monkeypatch.setattr(DCAE, "decode", lambda self, z: decoded.append(z[0].clone()) or decode_plain(self, z))
    monkeypatch.setattr(draw, "given_of", lambda *a: given.append(given_plain(*a)) or given[-1])
    run(folder, "--prompts", folder / "prompts.csv")
    for latent_CTHW, expected in zip(decoded, given, strict=True):
        assert torch.equal(latent_CTHW[:, :1], expected.head_CFHW)
    assert not torch.equal(given[0].head_CFHW, given[1].head_CFHW)


def test_a_model_without_condition_input_refuses_a_reference(folder, capsys):
    plain = MODEL.model_copy(update={"cond_embed": False})
    config = {"model": plain, "autoencoder": AUTOENCODER, "textEncoder": TEXT}
    (folder / "models.json").write_text(json.dumps({name: spec.to_wire() for name, spec in config.items()}))
    weights = {name: t for name, t in load_file(folder / "model.safetensors").items() if "cond_in" not in name}
    save_file(weights, folder / "model.safetensors")
    assert run(folder, "--prompt", "a", "--image", folder / "picture.png") != 0
    assert "condition 'i2v_head': needs a model with spec.model.condEmbed" in capsys.readouterr().err
    assert run(folder, "--prompt", "a") == 0


def test_parsing_the_flags_needs_no_torch():
    import subprocess

    script = "import sys; from videotrain_trainer.commands import sample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_first_frames_are_decoded_by_the_picture_autoencoder_of_flux(folder, capsys, monkeypatch):
    spec = TRANSFORMERS["mmdit-tiny"].model_copy(update={"cond_embed": False, "guidance_embed": True})
    monkeypatch.setitem(TRANSFORMERS, "tiny-flux", spec)
    monkeypatch.setattr("videotrain_trainer.sampling.loaded.FLUX_PICTURES", PictureVAEConfig(width=32))
    model = build_transformer(spec, FLUX_PICTURE_SPEC, TEXT)
    initialize(model, 7)
    save_file(model.state_dict(), folder / "image.safetensors")
    save_file(PictureVAE(PictureVAEConfig(width=32)).state_dict(), folder / "ae.safetensors")
    flags = ["--image-model", "tiny-flux", "--image-model-weights", folder / "image.safetensors", "--image-steps", 2]
    flags += ["--image-autoencoder-weights", folder / "ae.safetensors", "--image-resolution", "64px"]
    assert run(folder, "--prompt", "A cat.", *flags, "--json") == 0
    with Image.open(folder / "out/0001-first-frame.png") as picture:
        assert picture.size == (64, 64)
    assert lines(capsys)[0]["file"].endswith("0001.mp4")
    tensors = load_file(folder / "ae.safetensors")
    tensors.pop("decoder.up.0.block.1.conv1.weight")
    save_file(tensors, folder / "ae.safetensors")
    assert run(folder, "--prompt", "A dog.", *flags) != 0
    assert "missing: decoder.up.0.block.1.conv1.weight" in capsys.readouterr().err


@pytest.fixture
def distilled(folder, monkeypatch):
    """The models of the folder with a guidance input."""
    spec = MODEL.model_copy(update={"guidance_embed": True})
    model = build_transformer(spec, AUTOENCODER, TEXT)
    initialize(model, 1)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = json.loads((folder / "models.json").read_text())
    (folder / "models.json").write_text(json.dumps(config | {"model": spec.to_wire()}))
    return folder


def test_a_distilled_model_has_its_own_usual_guidance_and_takes_no_negative_prompt(distilled, capsys):
    for flags, guidance in (([], 4.0), (["--guidance", 6], 6.0)):
        assert run(distilled, "--prompt", "a", *flags) == 0
        metadata = json.loads((distilled / "out/0001.json").read_text())
        assert metadata["request"]["settings"]["text_guidance"] == guidance
    assert run(distilled, "--prompt", "a", "--negative", "blurry") != 0
    assert "--prompt: negative 'blurry': the model is distilled" in capsys.readouterr().err


def test_a_seed_beyond_the_last_one_is_refused_in_flags_and_files(folder, capsys):
    with pytest.raises(SystemExit):
        run(folder, "--prompt", "a", "--seed", 2**64)
    assert "allowed: whole numbers from 0 to 18446744073709551615" in capsys.readouterr().err
    (folder / "prompts.csv").write_text(f"text,seed\na,{2**64}\n")
    assert run(folder, "--prompts", folder / "prompts.csv") != 0
    assert "prompts.csv:2: seed: '18446744073709551616'; allowed" in capsys.readouterr().err
    assert run(folder, "--prompt", "a", "--seed", 2**64 - 1, "--n", 2) == 0
