"""A run's first worker looks at all that later stages read, once, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from videotrain_api.frozen_config import config_data, stage_configs
from videotrain_api.storage import layout
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import FROZEN_SPEC_KEY
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.preflight import first_start
from videotrain_trainer.preflight.first_start import RunChecks, check_run
from videotrain_trainer.preflight.inputs import InputCheck
from videotrain_trainer.preflight.packages import Wanted

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def frozen(tmp_path):
    """Writes a run's frozen spec as a pod has it, and gives the configuration of a stage."""

    def freeze(manifest: dict[str, Any], stage: int = 0) -> tuple[Any, Path]:
        run = parse_run(manifest)
        file = tmp_path / FROZEN_SPEC_KEY
        file.write_text(config_data(run)[FROZEN_SPEC_KEY])
        return stage_configs(run)[stage], file

    return freeze


def checks(store, manifest) -> RunChecks:
    place = layout.run_checks(manifest["spec"]["storage"]["uri"], manifest["metadata"]["name"])
    return RunChecks.model_validate_json(store.get(place))


def test_weights_that_only_the_last_stage_reads_end_the_first_one(manifest, frozen, make_context, store, tmp_path):
    manifest["spec"]["stages"][3]["sample"]["prompts"] = [
        {"text": "x", "condition": "i2v_head", "image": f"file://{tmp_path}/none.png"}
    ]
    manifest["spec"]["model"]["weights"] = f"file://{tmp_path}/none.safetensors"
    config, file = frozen(manifest)
    with pytest.raises(ConfigError) as caught:
        check_run(make_context(config), file)
    for part in ("spec.model.weights", "there is no such weight file", "spec.stages[3].sample.prompts[0].image"):
        assert part in str(caught.value)
    assert not store.exists(layout.run_checks(config.storage.uri, "checked"))


def test_what_was_found_is_stored_and_not_asked_again(manifest, frozen, make_context, store, monkeypatch):
    config, file = frozen(manifest)
    check_run(make_context(config), file)
    assert {finding.verdict for finding in checks(store, manifest).findings} == {"ok"}
    monkeypatch.setattr(InputCheck, "findings", lambda _: pytest.fail("looked again"))
    check_run(make_context(config), file)


def test_another_frozen_spec_is_looked_at_from_the_stage_on_that_begins(
    manifest, frozen, make_context, store, tmp_path
):
    config, file = frozen(manifest)
    check_run(make_context(config), file)
    before = checks(store, manifest).digest
    manifest["spec"]["dataset"]["videos"] = f"file://{tmp_path}/gone"
    config, file = frozen(manifest, stage=2)
    check_run(make_context(config), file)
    assert checks(store, manifest).digest != before


def test_an_image_that_lacks_a_package_is_refused_though_another_had_it(
    manifest, frozen, make_context, store, monkeypatch
):
    manifest["spec"]["tracking"] = {"to": ["trackio"]}
    config, file = frozen(manifest)
    monkeypatch.setattr(Wanted, "there", True)
    check_run(make_context(config), file)
    monkeypatch.setattr(Wanted, "there", False)
    with pytest.raises(ConfigError, match=r"needs the Python package trackio"):
        check_run(make_context(config), file)


def test_another_version_of_the_trainer_looks_again(manifest, frozen, make_context, store, monkeypatch):
    config, file = frozen(manifest)
    check_run(make_context(config), file)
    before = checks(store, manifest).digest
    monkeypatch.setattr(first_start, "__version__", "another")
    check_run(make_context(config), file)
    assert checks(store, manifest).digest != before


def test_a_damaged_record_of_checks_is_no_obstacle(manifest, frozen, make_context, store):
    config, file = frozen(manifest)
    store.put(layout.run_checks(config.storage.uri, "checked"), b"{")
    check_run(make_context(config), file)
    assert checks(store, manifest).findings


def test_without_a_frozen_spec_nothing_is_looked_at(manifest, frozen, make_context, tmp_path):
    config, _ = frozen(manifest)
    check_run(make_context(config), tmp_path / "none.json")


def test_the_frozen_spec_lacks_what_may_change(manifest, frozen):
    """So that a new budget asks no question again."""
    spec = json.loads(frozen(manifest)[1].read_text())
    assert "budget" not in spec and "nodes" not in spec
