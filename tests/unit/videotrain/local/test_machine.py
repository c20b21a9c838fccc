"""What a machine can hold on its CPU."""

from pathlib import Path

import pytest
import yaml

from videotrain.errors import UsageError
from videotrain.local.machine import Machine, check_machine
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests" / "examples"
GB = 10**9


def run(name, **spec):
    manifest = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    manifest["spec"] |= spec
    return parse_run(manifest)


def wide():
    return run("demo", nodes={"min": 1, "max": 4}, pool={"gpusPerNode": 8, "pricePerGpuHour": "2.00"},
               stages=[{"name": "c", "task": "curate", "curate": {}}])  # fmt: skip


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_the_examples_fit_on_two_cores_with_eight_gigabytes(name):
    check_machine(run(name), Machine(2, 8 * GB))


def test_too_many_processes_for_the_cores_are_refused_with_the_fields_to_change():
    with pytest.raises(
        UsageError, match=r"32 worker processes \(4 nodes with 8 each\).* 2 cores.*lower spec\.nodes\.max"
    ):
        check_machine(wide(), Machine(2, 64 * GB))
    check_machine(wide(), Machine(4, 64 * GB))


def test_too_little_memory_for_the_processes_is_refused():
    with pytest.raises(UsageError, match=r"need about 1\.\d+ GB .*this machine has 1\.0 GB"):
        check_machine(run("demo"), Machine(2, GB))


def test_a_model_that_is_too_large_for_the_memory_is_refused():
    with pytest.raises(UsageError, match=r"stage '256px-t2v' has .*GB of memory on the CPU"):
        check_machine(run("open-sora-2"), Machine(4096, 1000 * GB))


def test_a_container_is_as_large_as_its_limits(tmp_path):
    whole = Machine.here(tmp_path)
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert Machine.here(tmp_path) == Machine(1, min(whole.memory, 3 * GB))
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert Machine.here(tmp_path) == whole
