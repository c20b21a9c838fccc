"""Applications that components make of manifests, and what the scheduler would send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from torchx import specs
from torchx.specs import AppDef, Resource

from videotrain.manifest_file import ManifestFileError
from videotrain.torchx import components, resources
from videotrain.torchx.app import MANIFEST, NotARun
from videotrain.torchx.scheduler import RunRequest, create_scheduler
from videotrain_api.resource.trainrun import TRAINER_IMAGE
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests/examples"
DEMO, TINY, FLAGSHIP = (str(EXAMPLES / f"{name}.yaml") for name in ("demo", "tiny", "open-sora-2"))


def document(app):
    return json.loads(app.metadata[MANIFEST])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_runs_as_it_is(path):
    app = components.run(str(path))
    assert document(app) == yaml.safe_load(path.read_text())
    (role,) = app.roles
    assert (role.name, role.image) == ("worker", parse_run(document(app)).spec.image or TRAINER_IMAGE)


def test_nodes_of_the_flagship_are_the_bounds_of_its_stages():
    (role,) = components.run(FLAGSHIP).roles
    assert (role.min_replicas, role.num_replicas, role.resource.gpu) == (12, 28, 8)


def test_a_run_is_renamed_moved_and_put_on_named_nodes(tmp_path):
    body = yaml.safe_load(Path(DEMO).read_text())
    body["spec"]["nodes"]["max"] = 1
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(body))
    made = document(components.run(str(tmp_path / "run.yaml"), name="mine", namespace="team", h="videotrain_h200_2"))
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("mine", "team")
    assert made["spec"]["pool"]["gpusPerNode"] == 2
    assert made["spec"]["pool"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert made["spec"]["pool"]["pricePerGpuHour"] == "2.00", "what is not named stays"


@pytest.mark.parametrize("node", [resources.videotrain_h100, resources.videotrain_h200, resources.videotrain_b200])
def test_half_a_node_is_half_of_everything(node):
    whole, half = node(), node(0.5)
    assert (half.gpu, half.cpu, half.memMB) == (whole.gpu // 2, whole.cpu // 2, whole.memMB // 2)


def test_own_videos_take_the_place_of_the_data_and_of_nothing_else():
    before = yaml.safe_load(Path(DEMO).read_text())
    made = document(components.finetune(DEMO, "s3://mine/videos", storage="s3://mine/run", weights="s3://mine/base"))
    assert made["spec"]["dataset"] == {"videos": "s3://mine/videos"}
    assert made["spec"]["storage"] == {"uri": "s3://mine/run"}
    assert made["spec"]["model"].pop("weights") == "s3://mine/base"
    made["spec"] |= {"dataset": before["spec"]["dataset"], "storage": before["spec"]["storage"]}
    assert made == before


@pytest.mark.parametrize(
    ("steps", "rates"), [(9, [None]), (100, [None]), (101, [100, None]), (150, [100, None])], ids=str
)
def test_fewer_steps_keep_the_learning_rates_that_they_reach(steps, rates):
    made = document(components.finetune(DEMO, "s3://mine/videos", steps=steps))
    train = next(stage["train"] for stage in made["spec"]["stages"] if stage["name"] == "i2v-64px")
    assert train["steps"] == steps
    assert [piece.get("untilStep") for piece in train["optimizer"]["learningRate"]] == rates


def test_an_adapter_is_trained_on_given_weights_only():
    made = document(components.finetune(DEMO, "s3://mine/videos", weights="s3://mine/base", rank=4))
    trained = [stage["train"] for stage in made["spec"]["stages"] if stage["task"] == "train"]
    assert [stage["lora"] for stage in trained] == [{"rank": 4}] * 2
    with pytest.raises(ManifestError, match=r"an adapter needs a trained model"):
        components.finetune(DEMO, "s3://mine/videos", rank=4)


def test_own_videos_need_stages_that_read_them():
    with pytest.raises(ManifestFileError, match=r"open-sora-2: .*own videos are read by a `curate` stage"):
        components.finetune(FLAGSHIP, "s3://mine/videos")


def test_samples_are_drawn_from_what_the_run_has_trained():
    made = document(components.sample(DEMO, ["a red car", "a blue one"]))
    assert made["metadata"]["name"] == "demo-sample"
    assert made["spec"]["model"]["weights"] == "s3://videotrain/demo/demo/i2v-16-frames/weights/model.safetensors"
    assert made["spec"]["autoencoder"]["weights"] == "s3://videotrain/demo/demo/autoencoder/weights/model.safetensors"
    (stage,) = made["spec"]["stages"]
    assert stage["sample"]["prompts"] == [{"text": "a red car"}, {"text": "a blue one"}]
    assert "fromDataset" not in stage["sample"]


def test_samples_need_a_run_that_trains_and_draws():
    with pytest.raises(ManifestFileError, match="open-sora-2: needs a `train` stage"):
        components.sample(FLAGSHIP, ["a red car"])


def test_a_wrong_manifest_and_one_with_a_secret_are_refused_before_anything_is_sent(tmp_path):
    wrong = yaml.safe_load(Path(DEMO).read_text())
    wrong["spec"]["pool"]["gpusPerNode"] = 0
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ManifestError, match=r"gpusPerNode"):
        components.run(str(file))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"k": "hush"}}
    file.write_text(Path(DEMO).read_text() + "\n---\n" + yaml.safe_dump(secret))
    with pytest.raises(ManifestFileError, match="Secret") as refused:
        components.run(str(file))
    assert "hush" not in str(refused.value)


def test_a_dry_run_shows_objects_price_and_manifest():
    scheduler = create_scheduler("test")
    info = scheduler.submit_dryrun(components.run(FLAGSHIP), {"namespace": "team"})
    shown = repr(info)
    assert "Price, modelled: " in shown
    assert "USD" in shown
    assert "ConfigMap" in shown
    assert "Pod" in shown
    assert "namespace: team" in shown
    assert yaml.safe_load(shown)["metadata"]["name"] == "open-sora-2", "the rest is the manifest itself"
    assert isinstance(info.request, RunRequest)


def test_the_namespace_of_the_manifest_goes_before_the_option():
    info = create_scheduler("test").submit_dryrun(components.run(DEMO, namespace="mine"), {"namespace": "team"})
    assert info.request.run["metadata"]["namespace"] == "mine"


def test_an_application_of_another_component_is_refused():
    other = AppDef("ddp", [specs.Role("trainer", image="x", resource=Resource(1, 0, 1))])
    with pytest.raises(NotARun, match=r"ddp.*use vtr\.run, vtr\.finetune or vtr\.sample"):
        create_scheduler("test").submit_dryrun(other, {})
