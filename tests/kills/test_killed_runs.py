"""Random kills of everything that a local run consists of: the same order, an exact bill, nothing left running.

`VIDEOTRAIN_KILLS` and `VIDEOTRAIN_SEED` choose how many, and which; the seed is printed.
"""

import os
import random
from collections import Counter
from itertools import count

import pytest
import yaml
from support.kill_loop import run_killed
from support.local_process import LocalProcess
from support.storage_runs import EXAMPLE, bill_problems

KILLS = int(os.environ.get("VIDEOTRAIN_KILLS", "50"))
KILLS_EACH = 6
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """The tiny example with steps enough to be killed in."""
    data = yaml.safe_load(EXAMPLE.read_text())
    data["spec"]["checkpoint"] = {"everySteps": 20, "keepLast": 2}
    data["spec"]["failurePolicy"] = {
        "hangSeconds": 60, "startSeconds": 180, "graceSeconds": 30, "sameStepLimit": 50,
    }  # fmt: skip
    next(stage["train"] for stage in data["spec"]["stages"] if stage["name"] == "train")["steps"] = 300
    path = tmp_path_factory.mktemp("manifest") / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, manifest):
    """Summary of the run as it goes when nothing happens."""
    local = LocalProcess(manifest, tmp_path_factory.mktemp("undisturbed") / "w", "--device", "cpu")
    assert local.end() == 0, local.told()
    local.errors.close()
    local.stdout.close()
    return local.summary()


def test_killed_runs_end_as_if_nothing_had_been(tmp_path, manifest, undisturbed):
    seed = int(os.environ.get("VIDEOTRAIN_SEED", random.SystemRandom().randrange(10**6)))
    chance = random.Random(seed)
    print(f"\nVIDEOTRAIN_SEED={seed}")
    kills: Counter[str] = Counter()
    for number in count(1):
        killed = run_killed(manifest, tmp_path / f"run-{number}", min(KILLS_EACH, KILLS - kills.total()), chance)
        kills += killed.kills
        print(f"{killed}; bill {killed.summary['cost']['total']}, "
              f"order {killed.summary['samples']['order_sha256'][:12]}", flush=True)  # fmt: skip
        where = f"seed {seed}, {killed.workdir.name}: {killed.log}"
        assert killed.left == [], where
        assert killed.summary["phase"] == "Succeeded", where
        assert killed.summary["samples"] == undisturbed["samples"], where
        assert list(bill_problems(killed.summary)) == [], where
        if kills.total() >= KILLS:
            break
    print(f"{kills.total()} kills in {number} runs: {dict(kills)}")
