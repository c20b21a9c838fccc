"""Real processes under the supervisor."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from videotrain.processes.leftovers import end_leftovers
from videotrain.processes.process import SupervisedProcess, read_ending
from videotrain_api.vocabulary import ENV_POD_ROOT

TREE = """
import os, subprocess, sys, time
# A grandchild in a session of its own whose parent ends: only a subreaper still finds it.
python, sleep = [sys.executable, "-S", "-c"], "import time; time.sleep(1000)"
subprocess.run(python + [f"import subprocess; subprocess.Popen({python + [sleep]}, start_new_session=True)"])
subprocess.Popen(python + ["import signal; signal.signal(15, signal.SIG_IGN);" + sleep])
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def start(tmp_path):
    async def start_process(*command):
        env = {"PATH": os.environ["PATH"], ENV_POD_ROOT: str(tmp_path)}
        return await SupervisedProcess.start(
            command, env=env, cwd=tmp_path, log=tmp_path / "log", exit_file=tmp_path / "exit.json"
        )

    return start_process


async def until(condition):
    while not (found := condition()):
        await asyncio.sleep(0.01)
    return found


def marked(tmp_path):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ENV_POD_ROOT) == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def log_has(tmp_path, text):
    return lambda: (tmp_path / "log").is_file() and text in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (3, "Error")])
async def test_the_exit_code_of_the_command_is_told_and_written(start, tmp_path, code, reason):
    process = await start(sys.executable, "-S", "-c", f"print('hello'); raise SystemExit({code})")
    ending = await process.wait()
    assert (ending.exit_code, ending.reason) == (code, reason)
    assert ending.started_at <= ending.finished_at
    assert read_ending(tmp_path / "exit.json") == ending
    assert (tmp_path / "log").read_text() == "hello\n"


async def test_a_command_that_dies_by_a_signal_gets_128_plus_its_number(start):
    process = await start(sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 15)")
    assert (await process.wait()).exit_code == 128 + signal.SIGTERM


async def test_a_missing_program_is_a_start_error_that_names_it(start):
    ending = await (await start("no-such-program")).wait()
    assert (ending.exit_code, ending.reason) == (128, "StartError")
    assert "no-such-program" in ending.message


async def test_terminate_reaches_the_command_which_may_end_in_its_own_way(start, tmp_path):
    code = (
        "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(1000)"
    )
    process = await start(sys.executable, "-S", "-c", code)
    await until(log_has(tmp_path, "up"))
    process.terminate()
    assert (await process.wait()).exit_code == 7


async def test_what_the_command_leaves_behind_is_killed_when_it_ends(start, tmp_path):
    process = await start(sys.executable, "-S", "-c", TREE.rpartition("time.sleep")[0])
    assert (await process.wait()).exit_code == 0
    assert marked(tmp_path) == []


async def test_kill_ends_the_whole_tree_even_what_was_reparented_or_ignores_sigterm(start, tmp_path):
    process = await start(sys.executable, "-S", "-c", TREE)
    await until(log_has(tmp_path, "ready"))
    assert len(marked(tmp_path)) == 4
    process.kill()
    ending = await process.wait()
    assert (ending.exit_code, ending.reason) == (137, "Killed")
    assert marked(tmp_path) == []


async def test_orphans_are_reaped_while_the_command_runs(start, tmp_path):
    code = (
        "import os,time\n"
        "for _ in range(5):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0: os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "print('ready', flush=True); time.sleep(1000)"
    )
    process = await start(sys.executable, "-S", "-c", code)
    await until(log_has(tmp_path, "ready"))
    supervisor = psutil.Process(process.supervisor_pid)
    await until(lambda: [child.pid for child in supervisor.children()] == [process.pid])
    process.kill()
    await process.wait()


PARENT = """
import asyncio, sys
from pathlib import Path
from videotrain.processes.process import SupervisedProcess
async def main():
    folder = Path(sys.argv[1])
    process = await SupervisedProcess.start([sys.executable, "-S", "-c", sys.argv[2]], cwd=folder,
        env={"VIDEOTRAIN_POD_ROOT": str(folder)}, log=folder / "log", exit_file=folder / "exit.json")
    await process.wait()
asyncio.run(main())
"""


async def test_no_descendant_survives_the_kill_of_the_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), TREE])
    await until(log_has(tmp_path, "ready"))
    assert len(marked(tmp_path)) == 4
    parent.kill()
    parent.wait()
    await until((tmp_path / "exit.json").is_file)
    await until(lambda: not marked(tmp_path))
    assert json.loads((tmp_path / "exit.json").read_text())["exitCode"] == 137


async def test_a_killed_supervisor_is_noticed_and_its_leftovers_can_be_ended(start, tmp_path):
    process = await start(sys.executable, "-S", "-c", TREE)
    await until(log_has(tmp_path, "ready"))
    os.kill(process.supervisor_pid, signal.SIGKILL)
    ending = await process.wait()
    assert (ending.exit_code, ending.reason) == (137, "SupervisorLost")
    assert len(end_leftovers(tmp_path, patience_seconds=0.0)) == 3
    assert marked(tmp_path) == []
