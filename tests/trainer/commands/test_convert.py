import io
import subprocess
import sys

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file, save_file

from videotrain_api.vocabulary import ExitCode
from videotrain_trainer import models
from videotrain_trainer.cli import main
from videotrain_trainer.commands.convert import parse_bytes
from videotrain_trainer.commands.progress import ProgressBar, human_bytes
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.weights import Destination, open_weights


@pytest.fixture
def source(tmp_path):
    """Weights of the tiny model in the released layout."""
    path = tmp_path / "source.safetensors"
    empty = models.build("mmdit-tiny", device="meta")
    models.write_initial(empty, 1, Destination(target=path), "open-sora-v2")
    return path


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def test_both_directions_give_the_file_back(source, tmp_path, capsys):
    there, back = tmp_path / "flux", tmp_path / "back.safetensors"
    assert convert(source, there, "--from", "open-sora-v2", "--to", "flux-dev", "--shard-size", "500KB") == 0
    assert (there / "model.safetensors.index.json").exists()
    told = capsys.readouterr()
    assert "tensors" in told.out
    assert "layout flux-dev" in told.out
    assert "converting [" in told.err
    assert "100%" in told.err
    assert convert(there, back, "--from", "flux-dev", "--to", "open-sora-v2", "--preset", "mmdit-tiny", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert source.read_bytes() == back.read_bytes()


def test_what_does_not_fit_is_listed_on_standard_error_and_nothing_is_written(source, tmp_path, capsys):
    state = load_file(source)
    del state["txt_in.weight"], state["double_blocks.1.txt_mlp.2.bias"]
    save_file(state, source)
    target = tmp_path / "out.safetensors"
    code = convert(source, target, "--from", "open-sora-v2", "--to", "diffusers", "--preset", "mmdit-tiny")
    assert code == ExitCode.CONFIG
    told = capsys.readouterr().err
    assert "2 of " in told
    assert "missing: txt_in.weight [64, 64]" in told
    assert "missing: double_blocks.1.txt_mlp.2.bias [64]" in told
    assert not target.exists()


def test_a_whole_block_that_is_missing_is_found_where_the_preset_is_named(source, tmp_path, capsys):
    state = {name: value for name, value in load_file(source).items() if not name.startswith("single_blocks.1.")}
    save_file(state, source)
    arguments = (source, tmp_path / "out.safetensors", "--from", "open-sora-v2", "--to", "flux-dev")
    assert convert(*arguments, "--preset", "mmdit-tiny") == ExitCode.CONFIG
    assert "missing: single_blocks.1.linear2.weight [64, 320]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--from", "open-sora-v3", "--to", "flux-dev"],
            "layout 'open-sora-v3' is unknown; did you mean 'open-sora-v2'",
        ),
        (["--from", "open-sora-v2", "--to", "hunyuan-vae"], "layout 'hunyuan-vae' cannot hold an MMDiT"),
        (["--from", "open-sora-v2", "--to", "flux-dev", "--preset", "mmdit-mini"], "preset 'mmdit-mini' is unknown"),
        (
            ["--from", "open-sora-v2", "--to", "flux-dev", "--shard-size", "4 apples"],
            "--shard-size '4 apples': not a size",
        ),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(source, tmp_path, capsys, options, message):
    assert convert(source, tmp_path / "out", *options) == ExitCode.CONFIG
    assert message in capsys.readouterr().err


def test_it_casts(source, tmp_path):
    target = tmp_path / "out.safetensors"
    convert(source, target, "--from", "open-sora-v2", "--to", "open-sora-v2", "--dtype", "fp16", "--quiet")
    assert {value.dtype for value in load_file(target).values()} == {torch.float16}


class TestObjectStore:
    @pytest.fixture
    def bucket(self, monkeypatch):
        """An S3 server of this environment, and a client to look into it."""
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "AK"),
            ("AWS_SECRET_ACCESS_KEY", "SK"),
        ):
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="weights")
        yield client
        server.stop()

    def names(self, bucket):
        return sorted(found["Key"] for found in bucket.list_objects_v2(Bucket="weights").get("Contents", []))

    def test_shards_go_there_and_come_back(self, source, tmp_path, bucket):
        options = ("--from", "open-sora-v2", "--to", "diffusers", "--shard-size", "300KB", "--quiet")
        assert convert(source, "s3://weights/a/diffusers", *options) == 0
        names = self.names(bucket)
        assert names[-1] == "a/diffusers/model.safetensors.index.json"
        assert len(names) > 3
        back = tmp_path / "back.safetensors"
        options = ("--from", "diffusers", "--to", "open-sora-v2", "--quiet")
        assert convert("s3://weights/a/diffusers", back, *options) == 0
        assert source.read_bytes() == back.read_bytes()
        assert (
            convert("s3://weights/a/diffusers/model.safetensors.index.json", "s3://weights/b.safetensors", *options)
            == 0
        )
        stored = bucket.get_object(Bucket="weights", Key="b.safetensors")["Body"].read()
        assert stored == source.read_bytes()
        model = models.load("s3://weights/b.safetensors")
        assert torch.equal(model.img_in.weight, load_file(source)["img_in.weight"])

    def test_what_a_stage_wrote_and_what_is_not_there(self, source, tmp_path, bucket):
        bucket.put_object(Bucket="weights", Key="run/train/weights/model.safetensors", Body=source.read_bytes())
        bucket.put_object(Bucket="weights", Key="run/train/checkpoints/step-1/x.safetensors", Body=b"other")
        assert "img_in.weight" in open_weights("s3://weights/run/train").shapes
        with pytest.raises(ConfigError, match=r"s3://weights/none\.safetensors: there is no such weight file"):
            open_weights("s3://weights/none.safetensors")
        bucket.put_object(Bucket="weights", Key="cut.safetensors", Body=source.read_bytes()[:-7])
        with pytest.raises(ConfigError, match=r"s3://weights/cut\.safetensors: truncated: \d+ bytes expected"):
            open_weights("s3://weights/cut.safetensors")


def test_the_bar_is_redrawn_on_a_terminal_and_written_in_tenths_elsewhere():
    plain = io.StringIO()
    bar = ProgressBar("converting", plain)
    for done in range(0, 101, 2):
        bar(done * 10**7, 10**9)
    lines = plain.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("converting [################----------------]  50% 500 MB of 1 GB, ")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    ProgressBar("converting", terminal)(5, 5)
    assert terminal.getvalue().startswith("\rconverting [################################] 100% 5 B of 5 B")
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize(("text", "count"), [("4GB", 4 * 10**9), ("1.5 MiB", 3 * 2**19), ("700", 700), ("2kib", 2048)])
def test_sizes_are_read_with_their_units(text, count):
    assert parse_bytes(text, "--shard-size") == count


@pytest.mark.parametrize("text", ["", "0", "-1GB", "4TB", "many"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="not a size; write a positive number and KB, MB, GB"):
        parse_bytes(text, "--shard-size")


def test_bytes_are_told_as_people_read_them():
    assert [human_bytes(count) for count in (5, 1500, 23.8e9)] == ["5 B", "1.5 kB", "23.8 GB"]


def test_export_writes_a_folder_that_can_be_read(source, tmp_path, capsys):
    vae = models.build("hunyuan-vae-tiny")
    save_file(vae.state_dict(), tmp_path / "vae.safetensors", metadata={"scaling_factor": "0.5"})
    target = tmp_path / "pipeline"
    options = ["--transformer-preset", "mmdit-tiny", "--autoencoder-preset", "hunyuan-vae-tiny"]
    code = main(
        [
            "export",
            str(target),
            "--transformer",
            str(source),
            "--autoencoder",
            str(tmp_path / "vae.safetensors"),
            *options,
        ]
    )
    assert code == 0, capsys.readouterr().err
    back = models.import_diffusers(target)
    assert torch.equal(back.transformer.img_in.weight, load_file(source)["img_in.weight"])


def test_the_agent_starts_without_torch_although_it_shares_the_command_with_convert():
    code = "import sys, videotrain_trainer.cli as c; c._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
