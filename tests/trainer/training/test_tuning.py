"""Settings are measured with the real model, engines and exchanges, and memory that runs out is a result."""

from __future__ import annotations

import pytest
import torch
import yaml
from support.engine_worlds import in_world
from support.tuning_worlds import STAGE, TINY, manifest, measure_all, table_of

from videotrain_api.cost.search import choices
from videotrain_api.validation import parse_run
from videotrain_trainer import cli
from videotrain_trainer.training import tuning
from videotrain_trainer.training.tuning import Measured, Tuner, described
from videotrain_trainer.worker.stage_context import World


def test_a_manifest_is_tuned_into_yaml_that_it_takes(tmp_path, capsys):
    file, output = tmp_path / "run.yaml", tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(manifest(parallel={"engine": "fsdp2"})))
    arguments = ["tune", str(file), "--tries", "2", "--micro-batches", "1", "--output", str(output)]
    assert cli.main(arguments) == 0
    measured = [yaml.safe_load(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [m["row"] for m in measured] == ["32px 8f", "32px 8f", "64px 16f", "64px 16f"]
    assert all(m["samplesPerSecond"] > 0 and m["peakBytes"] > 0 and not m["outOfMemory"] for m in measured)
    (found,) = yaml.safe_load(output.read_text())["stages"]
    assert found["name"] == "train"
    document = manifest()
    document["spec"]["stages"][STAGE]["train"] |= found["train"]
    layout = parse_run(document).spec.stages[STAGE].train.parallel
    assert layout.engine == "fsdp2"
    for row, samples in zip(parse_run(document).spec.stages[STAGE].train.buckets, (16, 4), strict=True):
        assert row.batch_size * layout.micro_batches_of(row) == samples


def test_stages_and_files_that_are_not_there_are_told(tmp_path, capsys):
    assert cli.main(["tune", str(TINY), "--stage", "curate"]) != 0
    assert "no such train stage; the manifest has: train" in capsys.readouterr().err
    assert cli.main(["tune", str(tmp_path / "none.yaml")]) != 0
    assert "none.yaml" in capsys.readouterr().err


def test_memory_that_runs_out_is_a_result_and_the_next_setting_is_measured(alone, monkeypatch):
    table = table_of(manifest())
    layout, real = table.task.parallel, tuning.micro_batch_loss

    def short(engine, inputs, group):
        loss = real(engine, inputs, group)
        if len(inputs.x_t_BNI) == 16:
            raise torch.OutOfMemoryError("as CUDA would")
        return loss

    monkeypatch.setattr(tuning, "micro_batch_loss", short)
    tuner = Tuner(table, layout, World(rank=0, size=1, local_rank=0, device=torch.device("cpu")), {1})
    large, *_, small = sorted(choices(table, layout, 0, 1), key=lambda c: -c.setting.batch_size)
    assert tuner.measure(large, 1) == Measured(large)
    assert tuner.measure(large, 1).step_seconds(1) is None
    assert tuner.measure(small, 2).step_seconds(1) > 0


def test_two_ranks_measure_every_degree_under_both_engines_and_agree(tmp_path):
    first, second = in_world(tmp_path, 2, measure_all)
    assert first == second
    assert {(engine, degree, policy) for engine, degree, policy, _ in first} == {
        (engine, degree, policy)
        for engine in ("deepspeed", "fsdp2")
        for degree in (1, 2)
        for policy in ("none", "selective", "full")
    }
    assert all(seconds > 0 for *_, seconds in first)


@pytest.mark.parametrize(("text", "captions"), [("stored", []), ("online", [4, 4, 4])])
def test_captions_are_encoded_beside_every_micro_batch_where_training_does_so(alone, monkeypatch, text, captions):
    asked = []

    class Counted(tuning.TextBeside):
        def encode(self, captions):
            asked.append(captions)
            super().encode(captions)

    monkeypatch.setattr(tuning, "TextBeside", Counted)
    # DeepSpeed remembers the world of the test before.
    table = table_of(manifest(text=text, parallel={"engine": "fsdp2"}))
    tuner = Tuner(table, table.task.parallel, World(rank=0, size=1, local_rank=0, device=torch.device("cpu")), {1})
    choice = next(c for c in choices(table, table.task.parallel, 0, 1) if c.setting.batch_size == 4)
    measured = tuner.measure(choice, 2)
    assert measured.step_seconds(1) > 0
    assert asked == captions
    assert described(measured, 1)["text"] == text


@pytest.mark.parametrize(("degree", "rounds"), [(1, 2), (2, 4)])
def test_a_step_has_as_many_rounds_as_the_fullest_group(degree, rounds):
    table = table_of(manifest())
    choice = next(choices(table, table.task.parallel, 0, 1))
    setting = choice.setting.__class__(**(vars(choice.setting) | {"micro_batches": 7, "context_parallel": degree}))
    measured = Measured(choice.__class__(**(vars(choice) | {"setting": setting})), 0.5, 0.25)
    assert measured.step_seconds(4) == rounds * 0.5 + 0.25
