"""The trainer's image, run as a worker pod runs it: user 1000, read-only root, one place to write."""

from __future__ import annotations

import json

import pytest
from support.images import ROOT, Image

pytestmark = pytest.mark.timeout(3600)
LARGEST = 9_000_000_000
"""Bytes above the base; torch's CUDA libraries are 4 GB of them."""
CACHE = "/tmp/cache"


def program(image: Image, name: str) -> list[str]:
    """Last line that a program of trainer_programs.py prints, in words."""
    environment = ["env", f"TORCHINDUCTOR_CACHE_DIR={CACHE}/inductor", "OMP_NUM_THREADS=1"]
    done = image.run_as_a_pod(*environment, "python", "/tmp/tests/images/trainer_programs.py", name)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1].split()


def test_it_runs_as_user_1000_and_can_write_to_no_part_of_itself(trainer_image: Image) -> None:
    assert trainer_image.config["User"] == "1000:1000"
    done = trainer_image.run_as_a_pod("sh", "-c", "id -u; touch /opt/videotrain/x /x || touch /tmp/x && echo kept")
    assert done.stdout.split() == ["1000", "kept"]
    assert done.stderr.count("Read-only file system") == 2


def test_it_starts_the_agent_by_itself(trainer_image: Image) -> None:
    assert trainer_image.config["Cmd"] == ["videotrain-trainer", "agent"]
    done = trainer_image.run_as_a_pod("videotrain-trainer", "--help")
    assert done.returncode == 0, done.stderr


def test_a_tiny_stage_is_trained(trainer_image: Image) -> None:
    assert program(trainer_image, "step")[:3] == ["['completed']", "[1,", "2]"]


def test_a_block_is_compiled_and_kept_on_the_cache_volume(trainer_image: Image) -> None:
    assert program(trainer_image, "compiled_block") == ["True", "True"]


def test_triton_finds_its_compiler_and_headers(trainer_image: Image) -> None:
    assert program(trainer_image, "triton_launcher") == ["True", "True"]


def test_flash_attention_4_takes_the_place_of_torchs_own(trainer_image: Image) -> None:
    assert program(trainer_image, "flash_attention") == ["flash_attn_func", "FA4"]


def test_versions_are_the_locked_ones(trainer_image: Image) -> None:
    script = "import importlib.metadata as m; [print(d.name, d.version, sep='==') for d in m.distributions()]"
    installed = trainer_image.run_as_a_pod("python", "-c", script).stdout.lower().replace("_", "-").split()
    locked = {
        line.split()[0] for line in (ROOT / "images/trainer-flash4.lock").read_text().splitlines() if "==" in line
    }
    ours = {item for item in installed if item.startswith("videotrain-")}
    assert {item.partition("==")[0] for item in ours} == {"videotrain-api", "videotrain-trainer"}
    assert {item.partition("+")[0] for item in set(installed) - ours} == locked


def test_it_lists_its_parts(trainer_image: Image) -> None:
    listed = json.loads(trainer_image.run_as_a_pod("cat", "/opt/videotrain/sbom.cdx.json").stdout)
    assert listed["bomFormat"] == "CycloneDX"
    assert {"torch", "triton", "deepspeed", "flash-attn-4"} <= {part["name"] for part in listed["components"]}


def test_it_is_no_larger_than_it_was(trainer_image: Image, base_bytes: int) -> None:
    assert trainer_image.size - base_bytes < LARGEST
