"""Process trees: everything below is found and killed, also what is stopped or orphaned."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from videotrain_trainer.agent import tree

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def start_family():
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    pids = next(line for line in lines if line != "up")
    return process, [int(pid) for pid in pids.split()]


def test_a_stopped_tree_is_found_and_killed():
    process, pids = start_family()
    for pid in pids:
        psutil.Process(pid).suspend()
    others = [child.pid for child in psutil.Process().children() if child.pid != process.pid]
    found = tree.members(process.pid, fork_server_pid=others[0] if others else -1)
    assert set(pids) <= {member.pid for member in found}
    tree.kill(member for member in found if member.pid in pids)
    process.wait()
    assert not [pid for pid in pids if pid in {member.pid for member in tree.members(process.pid, fork_server_pid=-1)}]
    process.stdout.close()


def test_stacks_of_a_stopped_process_are_read(tmp_path):
    process, pids = start_family()
    psutil.Process(pids[0]).suspend()
    stacks = tree.capture_stacks(pids[0], tmp_path / "stacks")
    assert "<module>" in stacks
    assert (tmp_path / "stacks").read_text() == stacks
    tree.kill(psutil.Process(pid) for pid in pids)
    process.wait()
    process.stdout.close()


def test_a_process_that_is_gone_has_no_stacks(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert "no stacks of process" in tree.capture_stacks(process.pid, tmp_path / "stacks")


def test_orphans_of_an_adopting_process_are_members(tmp_path):
    code = f"""
import os, subprocess, sys, psutil
from videotrain_trainer.agent import tree
from videotrain_trainer.worker.linux import adopt_orphans
adopt_orphans()
family = subprocess.Popen([sys.executable, "-c", {FAMILY!r}], stdout=subprocess.PIPE, text=True)
words = [family.stdout.readline().split() for _ in range(2)]
orphan = int(next(line for line in words if len(line) == 2)[1])
family.kill()
family.wait()
found = tree.members(None, fork_server_pid=-1)
assert [member.pid for member in found] == [orphan], found
tree.kill(found)
psutil.wait_procs(found, timeout=10)
assert tree.members(None, fork_server_pid=-1) == []
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HOME": str(Path(tmp_path))})
