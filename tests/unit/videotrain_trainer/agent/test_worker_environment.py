"""What the agent sets for its workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from videotrain_trainer.agent.forkserver_client import worker_environment

CACHE = Path("/var/cache/videotrain")
# Whoever compiled in this process has been given places of its own by torch.
AS_STARTED = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHINDUCTOR", "TRITON"))}


def test_compiled_code_is_kept_on_the_cache_volume():
    told = worker_environment(AS_STARTED, CACHE)
    program = "import torch._inductor.runtime.cache_dir_utils as d; print(d.cache_dir(), d.triton_cache_dir(0))"
    done = subprocess.run([sys.executable, "-c", program], env=told, capture_output=True, text=True, check=True)
    assert all(path.startswith(f"{CACHE}/inductor") for path in done.stdout.split()), done.stdout


def test_memory_is_taken_in_segments_that_grow():
    program = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=worker_environment(os.environ, CACHE), capture_output=True, text=True
    )
    assert "expandable_segments:True" in done.stdout, done.stderr


def test_what_the_pod_sets_stays():
    told = worker_environment({"PYTORCH_ALLOC_CONF": "backend:native", "OMP_NUM_THREADS": "4"}, CACHE)
    assert (told["PYTORCH_ALLOC_CONF"], told["OMP_NUM_THREADS"]) == ("backend:native", "4")
