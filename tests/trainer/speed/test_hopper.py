"""What Inductor makes of the blocks for a Hopper GPU; lowered without one, see `support.sm90_blocks`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import support
from support.speed_counts import check

PROGRAM = Path(support.__path__[0]) / "sm90_blocks.py"
MOST_KEPT = {"double, selective": 11.1, "single, selective": 10.1}


@pytest.mark.timeout(900)
def test_kernels_traffic_and_kept_values_of_the_11b_blocks():
    wanted = [f"{kind}/{policy}" for kind in ("double", "single") for policy in ("none", "selective")]
    done = subprocess.run([sys.executable, str(PROGRAM), *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout.splitlines()[-1])
    for name, most in MOST_KEPT.items():
        kind = name.split(",")[0]
        assert counted[name]["saved"] <= most
        assert counted[name]["backward"]["products"] == counted[f"{kind}, none"]["backward"]["products"]
        assert counted[name]["backward"]["attention forward"] == 0
    check("blocks for sm_90", counted)
