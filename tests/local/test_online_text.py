"""A whole run that encodes captions beside training and loses a worker trains what one with stored features does."""

import copy
import json

import pytest
import yaml
from safetensors.torch import load_file
from support.local_process import store_of

from videotrain_api.storage import layout
from videotrain_trainer.checksums import unsealed_json
from videotrain_trainer.data.sets import EncodedSetInfo, set_info_uri

pytestmark = [pytest.mark.slow, pytest.mark.at_length, pytest.mark.timeout(900)]


def trained(start, folder, tiny, text, *options):
    """Summary, losses by step, weights and the set of a run with this form of text."""
    data = copy.deepcopy(tiny)
    data["metadata"]["name"] = "text"
    train = next(stage["train"] for stage in data["spec"]["stages"] if stage["name"] == "train")
    train |= {"text": text, "steps": 40}
    path = folder / f"{text}.yaml"
    path.write_text(yaml.safe_dump(data))
    local = start(path, *options, name=text)
    local.until(lambda line: line.get("status", {}).get("stage") == "train")
    objects, _ = store_of(local.workdir)
    prefix = layout.stage_prefix(data["spec"]["storage"]["uri"], "text", "encode")
    info = EncodedSetInfo.from_wire(unsealed_json(objects.get(set_info_uri(prefix))))
    assert local.end() == 0, local.told()
    assert local.processes() == []
    losses = {}
    for file in sorted(local.workdir.glob("pods/*/run/videotrain/records-*-0.jsonl"), key=lambda file: file.name):
        records = map(json.loads, file.read_text().splitlines())
        losses |= {one["step"]: one["loss"] for one in records if (one["stage"], one["kind"]) == ("train", "step")}
    return local.summary(), losses, load_file(local.workdir / "results" / "transformer.safetensors"), info


def test_a_run_with_online_text_whose_worker_is_killed_trains_what_one_with_stored_text_does(start, tmp_path, tiny):
    calm, losses, weights, stored = trained(start, tmp_path, tiny, "stored")
    killed = ("--chaos", "kill-worker@stage=train,step=15")
    summary, found, same, captions = trained(start, tmp_path, tiny, "online", *killed)
    assert (bool(stored.prompts), bool(stored.captions)) == (True, False)
    assert (bool(captions.prompts), bool(captions.captions)) == (False, True)
    train = next(stage for stage in summary["stages"] if stage["name"] == "train")
    assert len(train["generations"]) == 2
    assert (summary["phase"], summary["samples"]["lost"], summary["samples"]["problems"]) == ("Succeeded", 0, [])
    assert summary["samples"]["order_sha256"] == calm["samples"]["order_sha256"]
    assert sorted(found) == list(range(1, 41))
    assert found == losses
    assert all((same[name] == weights[name]).all() for name in weights)
    assert same.keys() == weights.keys()
