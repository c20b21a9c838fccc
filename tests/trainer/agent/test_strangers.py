"""Whoever does not hold the run's key finds no way to the store by which a world's members meet."""

from __future__ import annotations

import contextlib
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from support.agent_pods import KEY, stage_config

from videotrain_api import vocabulary as names
from videotrain_api.signing import KEY_BYTES
from videotrain_api.vocabulary import ExitCode


def test_a_stranger_reads_and_writes_no_keys_of_a_running_world(worlds):
    first, second = worlds.pods
    roster = worlds.roster(first, second, config=stage_config())
    for pod in worlds.pods:
        pod.give(roster)
    first.until_step(roster.generation, 2)
    # The store is there, at the very address that every member of the roster can be asked at.
    socket.create_connection((first.address, roster.port), timeout=5).close()
    with pytest.raises(dist.DistError):  # whoever gets a TCPStore reads and writes every key in it
        dist.TCPStore(first.address, roster.port, is_master=False, timeout=timedelta(seconds=3))
    seen = first.progress().current
    assert second.until_step(roster.generation, seen.step + 5).state == "running"


def test_a_pod_with_another_key_does_not_join_and_is_told_why(worlds):
    first, second = worlds.pods
    first.until(lambda seen: seen.ready)
    second.close()
    other = worlds.replace(second)  # which has not heard of the run, and takes the roster of another one
    other.until(lambda seen: seen.ready)  # with the key that all pods of the run have, so that it can be asked
    config = stage_config().model_copy(update={"start_seconds": 10})
    roster = worlds.roster(first, other, config=config, run_uid="of another run")
    other.give(roster)
    first.give(roster.model_copy(update={"run_uid": "run"}))  # another key of the world on either side
    seen = other.until(lambda seen: bool(seen.error))
    assert "do not prove to each other" in seen.error
    assert other.until_ended(roster.generation).exit.code == ExitCode.PEER_LOST
    other.close()
    worlds.replace(other)


def test_a_member_tells_nothing_to_who_stands_in_the_leaders_place(worlds):
    first, second = worlds.pods
    first.close()
    config = stage_config().model_copy(update={"start_seconds": 10})
    roster = worlds.roster(first, second, config=config)
    with socket.create_server((first.address, roster.port)) as impostor:
        second.give(roster)
        connection, _ = impostor.accept()
        with connection:
            connection.settimeout(20)
            connection.sendall(bytes(32))  # the nonce of a host
            answer = connection.recv(1024)
            connection.sendall(bytes(32))  # what only a holder of the key can compute is missing
            rest = connection.recv(1024)
    assert len(answer) == 64
    assert rest == b""
    assert KEY not in answer
    assert second.until_ended(roster.generation).exit.code == ExitCode.PEER_LOST
    worlds.replace(first)


def test_neither_arguments_nor_environments_nor_logs_hold_a_key(worlds):
    first, second = worlds.pods
    generation = worlds.start(first, second)
    first.until_step(generation, 1)
    shown = b""
    for pod in worlds.pods:
        for process in (pod.worker(generation, 0), *pod.worker(generation, 0).parents()[:3]):
            with contextlib.suppress(PermissionError):
                for file in ("cmdline", "environ"):
                    shown += Path(f"/proc/{process.pid}/{file}").read_bytes()
        shown += pod.log.read_bytes()
    assert KEY not in shown
    assert KEY.hex().encode() not in shown
    assert len(KEY) == KEY_BYTES
    assert names.DIR_KEY.encode() not in shown
