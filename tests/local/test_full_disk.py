"""A disk that is full in the middle of a run: one clear message, and the run goes on once there is room."""

import contextlib
import shutil
import signal
import subprocess

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own where the working directory will be."""
    place = tmp_path / "w"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(place):
    """Take every byte that is left."""
    with (place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
    assert shutil.disk_usage(place).free < 65536


def test_a_full_disk_ends_in_one_message_and_the_run_goes_on_when_there_is_room(small_disk, start, manifest):
    local = start(manifest, "--device", "cpu")
    local.until_step("train", 30)
    fill(small_disk)
    assert local.end() == 1
    result = local.lines[-1]
    assert (result["type"], result["exit_code"]) == ("result", 1)
    assert "full" in result["message"] or "no space" in result["message"]
    assert "Traceback" not in local.told()
    assert local.processes() == []

    (small_disk / "filler").unlink()
    again = start(manifest, "--device", "cpu")
    again.until_step("train", 40)
    again.send(signal.SIGINT)
    assert again.end() == 130
