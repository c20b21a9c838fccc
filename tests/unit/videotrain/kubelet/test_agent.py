"""The node agent as a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from videotrain.locks import held


def test_a_directory_in_which_another_agent_works_is_refused(tmp_path: Path):
    options = ["--kubeconfig", "absent", "--workdir", str(tmp_path), "--nodes", "a", "--gpus-per-node", "0"]
    with held(tmp_path, "--workdir", "a node agent works", ""):
        command = [sys.executable, "-m", "videotrain.kubelet.agent", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"--workdir {tmp_path}: a node agent works here (process " in done.stderr
    assert done.stderr.endswith("); end it or use another directory\n")
