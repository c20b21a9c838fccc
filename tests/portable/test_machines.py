"""The numeric tests on other CPUs than this one: older instructions, Intel's kernels, more threads.

A bound that only this machine meets fails here before it fails on somebody else's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.machines import MACHINES, probed

ROOT = Path(__file__).parents[2]
NUMERIC = ["tests/trainer", "tests/unit/videotrain_trainer"]
ONEDNN = {"SSE41": "Intel SSE4.1", "AVX2": "Intel AVX2"}
MKL = {"AVX2": "(Intel(R) AVX2)", "AVX512": "(Intel(R) AVX-512)"}


@pytest.fixture(params=MACHINES, ids=str)
def machine(request):
    """Machines which this CPU can pass for; of the others the summary says what is missing."""
    missing = request.param.lacks()
    if missing:
        pytest.skip(missing)
    return request.param


def test_a_process_computes_as_the_machine_says(machine, tmp_path):
    found = probed(machine.environment(tmp_path))
    assert (found["aten"], found["threads"]) == (machine.aten, str(machine.threads))
    if machine.onednn:
        assert found["onednn"] == ONEDNN[machine.onednn]
    if machine.mkl == "COMPATIBLE":
        assert found["cbwr"] == "COMPATIBLE"
    elif machine.mkl:
        assert MKL[machine.mkl] in found["mkl"]


@pytest.mark.timeout(3600)  # minutes on two idle cores; a busy machine is slow, not wrong
def test_the_numeric_tests_pass_on_it(machine, tmp_path):
    chosen = ["-m", "numeric and not at_length"]
    command = [sys.executable, "-m", "pytest", *NUMERIC, *chosen, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=machine.environment(tmp_path), check=False)
    assert done.returncode == 0
