"""`videotrain plan` tells what every row needs of a GPU, under every engine and in several worlds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from videotrain.cli import main
from videotrain_api.cost.memory import RESERVE

RECIPE = Path(__file__).parents[4] / "manifests/examples/open-sora-2.yaml"


def planned(capsys, *arguments: str) -> dict:
    assert main(["plan", str(RECIPE), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_row_fits_under_both_engines_in_small_and_large_worlds(capsys):
    rows = planned(capsys, *(part for gpus in (8, 112, 192, 224) for part in ("--gpus", str(gpus))))["memory"]
    stages = yaml.safe_load(RECIPE.read_text())["spec"]["stages"]
    assert [row["stage"] for row in rows] == [s["name"] for s in stages for _ in s["train"]["buckets"]]
    for row in rows:
        assert row["limit"] == 141 * 10**9
        assert {(e["engine"], e["gpus"]) for e in row["elsewhere"]} >= {
            (engine, gpus) for engine in ("deepspeed", "fsdp2") for gpus in (8, 112, 192, 224)
        }
        assert all(other["fits"] and other["total"] <= row["limit"] for other in row["elsewhere"])


def test_the_parts_are_the_total_and_name_what_is_held(capsys):
    for row in planned(capsys)["memory"]:
        assert sum(row["memory"].values()) == row["total"]
        assert row["memory"]["reserve"] == RESERVE
        assert row["memory"]["weights"] == pytest.approx(2 * 11_891_390_528, rel=1e-6)


def test_more_gpus_hold_less_each(capsys):
    row = planned(capsys, "--gpus", "8", "--gpus", "64")["memory"][0]
    totals = {e["gpus"]: e["total"] for e in row["elsewhere"] if e["engine"] == "fsdp2"}
    assert totals[8] - totals[64] == pytest.approx((16 / 8 - 16 / 64) * 11_891_390_528, rel=1e-6)


def test_the_tables_show_rows_worlds_and_what_does_not_fit(capsys):
    assert main(["plan", str(RECIPE), "--gpus", "1"]) == 0
    shown = capsys.readouterr().out
    assert "GB of a GPU's 141.0" in shown
    assert "256px 101-129f" in shown
    assert "deepspeed / fsdp2" in shown
    assert "1 GPUs" in shown
    assert "* /" in shown


def test_a_manifest_that_does_not_fit_is_refused(capsys, tmp_path):
    manifest = yaml.safe_load(RECIPE.read_text())
    manifest["spec"]["stages"][0]["train"]["buckets"][1]["batchSize"] *= 4
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(manifest))
    assert main(["plan", str(changed)]) == 2
    assert "row 256px 5-33f needs" in capsys.readouterr().err


def test_what_a_search_prints_can_be_pasted_into_the_manifest(capsys, tmp_path):
    """The manifest does not fit, so nothing but the search takes it."""
    manifest = yaml.safe_load(RECIPE.read_text())
    manifest["spec"]["stages"][0]["train"]["buckets"][1]["batchSize"] *= 4
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(manifest))
    assert main(["plan", str(file), "--search"]) == 0
    shown = capsys.readouterr().out
    assert "now fits" in shown
    found = yaml.safe_load(shown[shown.index("# Modelled") :])["stages"]
    for stage, parts in zip(manifest["spec"]["stages"], found, strict=True):
        assert stage["name"] == parts["name"]
        stage["train"] |= parts["train"]
    file.write_text(yaml.safe_dump(manifest))
    assert main(["plan", str(file)]) == 0


def test_a_search_tells_machines_what_it_changes(capsys):
    assert main(["plan", str(RECIPE), "--search", "--json"]) == 0
    for stage in json.loads(capsys.readouterr().out):
        for before, after in zip(stage["before"], stage["after"], strict=True):
            assert after["fits"]
            assert after["modelledSamplesPerSecond"] >= before["modelledSamplesPerSecond"] / 1.02


def test_a_search_says_which_stage_fits_in_no_way(capsys, tmp_path):
    manifest = yaml.safe_load(RECIPE.read_text())
    manifest["spec"]["pool"]["gpuMemoryGigabytes"] = 5
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(manifest))
    assert main(["plan", str(file), "--search"]) == 2
    assert "'256px-t2v' has a row that fits 5 GB in no way" in capsys.readouterr().err


def test_the_memory_of_a_node_is_told_at_start_and_in_training(capsys):
    for host in planned(capsys)["hostMemory"]:
        share = 12 * 11_891_390_528 / host["gpus"]
        assert host["checkpoints"] == pytest.approx(8 * share, rel=1e-6)
        assert host["start"] == pytest.approx(8 * (share + 10**9), rel=1e-6)
        # The weights in float32 in each of eight processes would be 381 GB alone.
        assert host["atStart"] < 200 * 10**9
        assert host["inTraining"] >= host["processes"] + host["checkpoints"] + host["batches"]
