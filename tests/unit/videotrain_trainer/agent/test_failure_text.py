"""What workers print is passed on whole and its end kept; which pods tell the end of a generation, and no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from videotrain_api.records import Roster
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.agent.exits import silent_exit
from videotrain_trainer.agent.failure_text import (
    HIDDEN,
    STACK_BYTES,
    WorkerEnd,
    failure_text,
    is_telling,
    without_secrets,
)
from videotrain_trainer.agent.output import KEPT_BYTES, LONGEST_LINE, WorkerOutput

ROSTER = Roster(
    run_uid="u",
    generation=7,
    action="run",
    stage="walk",
    config_hash="h",
    reason="Started",
    members=[],
    port=1,
    processes_per_node=2,
)


def end(code, local_rank=0, message="why"):
    return silent_exit(ROSTER, local_rank, 12, datetime(2026, 11, 30, tzinfo=UTC), code, message)


@pytest.fixture
def target(tmp_path):
    descriptor = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def printed(target):
    return os.pread(target, 1 << 24, 0)


def run(path, program):
    """A process that prints as a worker does, with children and native code."""
    start = (
        "import sys; from pathlib import Path; from videotrain_trainer.worker.main import print_into; "
        f"print_into(Path({str(path)!r})); import os, subprocess\n"
    )
    return subprocess.Popen([sys.executable, "-c", start + program], stderr=subprocess.DEVNULL)


def test_lines_of_several_workers_come_whole_and_in_order(tmp_path, target):
    paths = [tmp_path / "0.pipe", tmp_path / "1.pipe"]
    output = WorkerOutput(paths, target)
    pieces = "[(print({n} * 200, end=' ', flush=True), print(i, flush=True)) for i in range(500)]"
    workers = [run(path, pieces.format(n=f"'{n}'")) for n, path in enumerate(paths)]
    assert [worker.wait() for worker in workers] == [0, 0]
    output.close()
    lines = printed(target).decode().splitlines()
    for number in (0, 1):
        assert [line for line in lines if line[:1] == str(number)] == [f"{number}" * 200 + f" {i}" for i in range(500)]
    assert len(lines) == 1000
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_all_is_kept_of_what_is_shorter_than_what_is_kept(tmp_path, target, share):
    output = WorkerOutput([tmp_path / "0.pipe"], target)
    text = "".join(f"line {i}\n" for i in range(KEPT_BYTES))[: int(share * KEPT_BYTES)] + "\n"
    assert run(tmp_path / "0.pipe", f"print({text!r}, end='', flush=True)").wait() == 0
    output.close()
    assert output.tail(0).decode() == text == printed(target).decode()


def test_a_line_that_is_not_whole_yet_waits_and_lets_others_pass(tmp_path, target):
    paths = [tmp_path / "0.pipe", tmp_path / "1.pipe"]
    output = WorkerOutput(paths, target)
    pipes = [os.open(path, os.O_WRONLY) for path in paths]
    seen = [b"", b""]
    for rank, text in ((0, b"first half, "), (1, b"another rank\n"), (0, b"second half\n")):
        os.write(pipes[rank], text)
        seen[rank] += text
        while output.tail(rank) != seen[rank]:
            pass
    output.close()
    assert printed(target) == b"another rank\nfirst half, second half\n"
    for pipe in pipes:
        os.close(pipe)


def test_the_end_is_kept_from_the_beginning_of_a_line(tmp_path, target):
    output = WorkerOutput([tmp_path / "0.pipe"], target)
    program = "[print('x' * 90, i) for i in range(1000)]; sys.stdout.flush(); os.system('echo of a child'); os.abort()"
    assert run(tmp_path / "0.pipe", program).wait() == -6
    output.close()
    tail = output.tail(0).decode()
    assert KEPT_BYTES - 100 < len(tail) <= KEPT_BYTES
    lines = tail.splitlines()
    assert lines[0].startswith("x" * 90) and "x" * 90 + " 999" in lines
    assert "of a child" in lines and "Fatal Python error: Aborted" in tail, "native crashes say where"
    assert printed(target).count(b"\n") == 1000 + 1 + tail.partition("of a child\n")[2].count("\n")


def test_a_line_without_an_end_is_passed_on(tmp_path, target):
    output = WorkerOutput([tmp_path / "0.pipe"], target)
    assert run(tmp_path / "0.pipe", f"sys.stdout.write('y' * {3 * LONGEST_LINE}); sys.stdout.flush()").wait() == 0
    output.close()
    assert printed(target).replace(b"\n", b"") == b"y" * 3 * LONGEST_LINE
    assert output.tail(0) == b"y" * KEPT_BYTES


def test_nobody_waits_for_a_log_that_cannot_be_written(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    output = WorkerOutput([tmp_path / "0.pipe"], writer)
    assert run(tmp_path / "0.pipe", "[print('z' * 1000) for _ in range(3000)]").wait() == 0
    output.close()
    assert output.tail(0)
    os.close(writer)


@pytest.mark.parametrize(
    ("codes", "first", "telling"),
    [
        ([ExitCode.OK, ExitCode.OK], 0, False),
        ([ExitCode.PEER_LOST, ExitCode.TERMINATED], 8, False),
        ([ExitCode.PEER_LOST, ExitCode.TERMINATED], 0, True),
        ([ExitCode.FENCED, ExitCode.FENCED], 0, False),
        ([ExitCode.TERMINATED, 137], 8, True),
        ([ExitCode.HANG, ExitCode.HANG], 8, True),
        ([ExitCode.CONFIG, ExitCode.CONFIG], 8, False),
        ([ExitCode.CONFIG, ExitCode.CONFIG], 0, True),
    ],
)
def test_pods_tell_what_no_other_pod_knows(codes, first, telling):
    assert is_telling([end(code, rank) for rank, code in enumerate(codes)], first) is telling


def test_the_text_has_every_worker_with_its_end_output_and_stacks():
    words = [WorkerEnd(2, end(137), b"line\n", b"s" * 2 * STACK_BYTES), WorkerEnd(3, end(143, 1), b"", b"")]
    text = failure_text(ROSTER, "run-w1", "node-7", words)
    assert text.splitlines()[0] == "generation 7 of stage walk, pod run-w1 on node node-7"
    assert "==== rank 2: failed, code 137, after step 12: why" in text
    assert "==== rank 3: failed, code 143, after step 12: why" in text
    assert "(nothing was printed)" in text and text.count("s" * STACK_BYTES) == 1
    assert len(text) < STACK_BYTES + 1000


def test_the_text_is_bounded_whatever_was_printed():
    words = [WorkerEnd(n, end(137, n), b"o" * KEPT_BYTES, b"s" * 10 * STACK_BYTES) for n in range(8)]
    assert len(failure_text(ROSTER, "pod", "node", words)) < 8 * (KEPT_BYTES + STACK_BYTES) + 2000


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("key wJalrXUtnFEMI denied", f"key {HIDDEN} denied"),
        ("GET /x?X-Amz-Signature=abcdef&y=1", f"GET /x?X-Amz-Signature={HIDDEN}&y=1"),
        ("authorization: Bearer hf_abc", f"authorization: Bearer {HIDDEN}"),
        ("http://user:hunter22@proxy:3128/", f"http://user:{HIDDEN}@proxy:3128/"),
        ("http://127.0.0.1:9000/bucket", "http://127.0.0.1:9000/bucket"),
        ("at 10:42:07 in /var/run/token", "at 10:42:07 in /var/run/token"),
    ],
)
def test_secrets_are_hidden(text, left):
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
        "SHORT_KEY": "x",
        "TOKEN_FILE": "/var/run/token",
        "PLAIN": "denied",
    }
    assert without_secrets(text, environment) == left
