"""The agent's own process does without torch; only its children import it."""

import subprocess
import sys


def test_the_agent_imports_no_torch():
    code = (
        "import sys, videotrain_trainer.cli, videotrain_trainer.agent.agent;"
        "print([name for name in ('torch', 'numpy', 'deepspeed', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_variable_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "videotrain_trainer.cli", "agent"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "VIDEOTRAIN_POD_ROOT": str(tmp_path)},
    )
    assert done.returncode == 64
    assert "VIDEOTRAIN_POD_NAME" in done.stderr
