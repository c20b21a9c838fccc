"""A disk that is full in the middle of a run: one clear message, and the run goes on once there is room."""

import contextlib
import shlex
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own at the working directory of commands that enter it."""

    seen: Path
    """Its root, as this process sees it."""
    entering: tuple[str, ...] = ()
    """A command that starts another one where the file system is mounted."""


MOUNT = ("mount", "-t", "tmpfs", "-o", "size=640m", "tmpfs")


@pytest.fixture
def small_disk(tmp_path):
    """Mounted for everybody where that is allowed, else in a user and mount namespace that one process holds open."""
    place = tmp_path / "w"
    place.mkdir()
    done = subprocess.run([*MOUNT, place], capture_output=True, check=False)
    if done.returncode == 0:
        yield SmallDisk(place)
        subprocess.run(["umount", "--lazy", place], check=True)
        return
    script = f"{shlex.join([*MOUNT, str(place)])} && echo mounted && exec cat"
    held = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no file system may be mounted here: {done.stderr.decode()}{holder.stderr.read().decode()}")
        inside = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")
        yield SmallDisk(Path(f"/proc/{holder.pid}/root{place}"), inside)
        holder.stdin.close()


def fill(place):
    """Take every byte that is left."""
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    assert shutil.disk_usage(place).free < 65536


def test_a_full_disk_ends_in_one_message_and_the_run_goes_on_when_there_is_room(
    small_disk, start, start_training, manifest
):
    local = start_training(manifest, "--device", "cpu", entering=small_disk.entering, seen=small_disk.seen)
    local.until_step("train", 60)
    fill(small_disk.seen)
    assert local.end() == 1
    result = local.lines[-1]
    assert (result["type"], result["exit_code"]) == ("result", 1)
    assert "full" in result["message"] or "no space" in result["message"]
    assert "Traceback" not in local.told()
    assert local.processes() == []

    (small_disk.seen / "filler").unlink()
    again = start(manifest, "--device", "cpu", entering=small_disk.entering)
    again.until_step("train", 120)
    again.send(signal.SIGINT)
    assert again.end() == 130
