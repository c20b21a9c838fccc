"""`videotrain fork`: a new run that begins from what another one made, in a cluster or on this machine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from botocore.exceptions import BotoCoreError, ClientError

from videotrain.commands.cluster_runs import ClusterChoice, ask, list_runs, named
from videotrain.commands.formats import as_yaml
from videotrain.commands.get import local_runs
from videotrain.commands.local import LocalOptions, run_local
from videotrain.embedded.database import DATABASE_FILE, read_objects
from videotrain.errors import UsageError
from videotrain.files import replace_file
from videotrain.local.workdir_lock import locked
from videotrain.locks import DirectoryError
from videotrain.manifest_file import read_manifest
from videotrain.objectstore.copies import Store, copy_checkpoint, copy_objects
from videotrain.objectstore.s3_client import StorageError, external_credentials, s3_client
from videotrain.objectstore.s3_server import ObjectServer, ObjectServerError
from videotrain.overrides import set_field
from videotrain.processes.devices import Device
from videotrain.results.folder import MANIFEST, manifest_of
from videotrain_api.config.fork import continuation_problems, forked, needed_stages
from videotrain_api.config.resolve import resolve
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import Storage, VideoTrainingRun
from videotrain_api.schema import Json, ManifestError
from videotrain_api.storage import layout
from videotrain_api.validation import parse_run
from videotrain_operator.kube.client import KubeClient
from videotrain_operator.kube.kinds import RUN

TIMEOUT_SECONDS: Final = 60.0
"""Without a byte of an answer from the object store."""
_FORKING: Final = "a run is being forked"
MANAGER: Final = "videotrain-fork"
"""Field manager of the new run."""


@dataclass(frozen=True, kw_only=True)
class Fork:
    """What the user asked for."""

    stage: str
    """First stage of the new run."""
    name: str | None
    """Of the new run; unset: that of the other one with -2 or a higher number."""
    changes: tuple[str, ...]
    """Assignments of `--set`."""
    optimizer: bool
    """Go on within the stage, from its newest checkpoint with the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class LocalFork:
    """What a fork on this machine needs besides."""

    workdir: Path
    """Of the run that is forked."""
    to: Path
    """Of the new run."""
    device: Device
    json: bool


def fork_in_cluster(name: str, where: ClusterChoice, fork: Fork, *, dry_run: bool, endpoint_url: str | None) -> int:
    """Create the new run beside the other one, or print it.

    Raises:
        ManifestError: the new run is refused.
        UsageError: the run cannot be forked there, or the cluster or the object store refuses.
    """
    namespace = name.rpartition("/")[0] or where.namespace
    runs = ask(where, lambda client: list_runs(client, where._replace(namespace=namespace)))
    run = named(runs, name)
    names = {each["metadata"]["name"] for each in runs}
    path = RUN.path(run["metadata"]["namespace"])
    query = {"dryRun": "All", "fieldManager": MANAGER}
    try:
        store = _store(run, endpoint_url) if fork.optimizer and not dry_run else None
        document, old, new = plan_fork(
            run, fork, lambda new: new in names or (store is not None and _holds(store, new))
        )
        if dry_run:
            sys.stdout.write(as_yaml(document))
            return 0
        # Before anything is copied, so that a refused run leaves nothing behind.
        ask(where, lambda client: client.raw("POST", path, document, query))
        if store is not None:
            _continue(store, store, old, new, fork)
    except (StorageError, BotoCoreError, ClientError) as error:
        raise UsageError(f"--optimizer: the checkpoint was not copied: {error}; see --endpoint-url") from error

    async def create(cluster: KubeClient) -> Json:
        return await cluster.create(document, MANAGER, new.metadata.namespace)

    ask(where, create)
    sys.stdout.write(f"run {new.metadata.namespace}/{new.metadata.name} begins from {name}, at stage {fork.stage}\n")
    return 0


def fork_here(options: LocalFork, fork: Fork) -> int:
    """Copy what the new run needs into a working directory of its own, and run it there. Given again, it goes on.

    Returns:
        Exit code of `videotrain local`.

    Raises:
        ManifestError: the new run is refused.
        UsageError: the run cannot be forked there, or a directory cannot be used.
    """
    if options.to.resolve() == options.workdir.resolve():
        raise UsageError(f"--to {options.to}: is the working directory of the run itself; name another one")
    manifest = options.to / MANIFEST
    run, embedded = _held_run(options.workdir)
    document, old, new = plan_fork(run, fork, lambda _: False)
    if (options.to / DATABASE_FILE).is_file():
        _check_same_fork(manifest, document)
        return _run_fork(options, manifest)
    try:
        with locked(options.workdir, _FORKING) as source, locked(options.to, _FORKING) as target:
            if embedded:
                asyncio.run(_copy(source, target, old, new, fork))
            elif fork.optimizer:
                raise UsageError("--optimizer: not with an object store of the manifest's own; fork in a cluster")
            secrets = [] if embedded else read_objects(source / DATABASE_FILE, "Secret")
            text = yaml.safe_dump_all([document, *secrets], sort_keys=False, allow_unicode=True)
            replace_file(target / MANIFEST, text, private=True)
    except (DirectoryError, ObjectServerError, StorageError) as error:
        raise UsageError(str(error)) from None
    return _run_fork(options, manifest)


def _run_fork(options: LocalFork, manifest: Path) -> int:
    return run_local(LocalOptions(manifest=manifest, workdir=options.to, device=options.device, json=options.json))


def _check_same_fork(manifest: Path, document: Json) -> None:
    """Refuse to go on with another fork than the one that was made there.

    Raises:
        ManifestFileError: there is no manifest of a fork.
        UsageError: it is another one.
    """
    there = read_manifest(manifest).run
    if there != document:
        fields = [key for key in ("metadata", "spec") if there.get(key) != document.get(key)]
        raise UsageError(
            f"--to {manifest.parent}: holds a fork with another {' and another '.join(fields)}; give the same --from, "
            f"--name and --set, edit {manifest} and run `videotrain local {manifest} --workdir {manifest.parent}`, or "
            "name another --to"
        )


def plan_fork(run: Json, fork: Fork, taken: Callable[[str], bool]) -> tuple[Json, VideoTrainingRun, VideoTrainingRun]:
    """The document of the new run, the other run, and the new one.

    Args:
        run: the other one.
        fork: what the user asked for.
        taken: whether there is a run of a name, or something of one in the store.

    Raises:
        ManifestError: the new run is refused.
        UsageError: there is no such stage, what it reads is not complete, it cannot go on from its checkpoint, or its
            name is taken.
    """
    old = VideoTrainingRun.from_wire({key: value for key, value in run.items() if key != "status"})
    name = fork.name or _next_name(old.metadata.name)
    while fork.name is None and taken(name):
        name = _next_name(name)
    names = ", ".join(stage.name for stage in old.spec.stages)
    if name == old.metadata.name:
        raise UsageError(f"--name {name}: is the name of the run itself; both would write to the same place")
    if fork.name is not None and taken(name):
        raise UsageError(f"--name {name}: there is a run of this name, or something of one in the store; name another")
    try:
        document = forked(old, manifest_of(run), fork.stage, name)
    except KeyError:
        raise UsageError(f"--from {fork.stage}: the run has no such stage; allowed: {names}") from None
    states = {stage.name: stage.state for stage in read_status(run.get("status")).status.stages}
    for stage in needed_stages(old, fork.stage):
        state = states.get(stage.name, "Pending")
        if state != "Succeeded":
            raise UsageError(
                f"--from {fork.stage}: reads what stage {stage.name!r} makes, which is {state}; wait for it, or begin "
                "at that stage"
            )
    for change in fork.changes:
        set_field(document, change)
    new = parse_run(document)
    if fork.optimizer:
        _check_continuation(old, new, fork.stage)
    return document, old, new


def _check_continuation(old: VideoTrainingRun, new: VideoTrainingRun, name: str) -> None:
    configs = [next(each for each in resolve(run) if each.stage.name == name) for run in (old, new)]
    if configs[0].stage.task not in ("train", "autoencoder"):
        raise UsageError(f"--optimizer: stage {name!r} has task {configs[0].stage.task}; allowed: train, autoencoder")
    if problems := continuation_problems(*configs):
        raise ManifestError(problems)


def _next_name(name: str) -> str:
    stem, _, number = name.rpartition("-")
    return f"{stem}-{int(number) + 1}" if stem and number.isdecimal() else f"{name}-2"


def _store(run: Json, endpoint_url: str | None) -> Store:
    """That of a run in a cluster, with the AWS keys of this account."""
    storage = Storage.from_wire(run["spec"]["storage"])
    keys = external_credentials(storage.model_copy(update={"credentials_secret": None}), ())
    return Store(s3_client(endpoint_url or storage.endpoint_url, keys, storage.region, TIMEOUT_SECONDS), storage.uri)


def _holds(store: Store, name: str) -> bool:
    """Whether a store has anything of a run of that name."""
    bucket, _, prefix = f"{store.name.rstrip('/')}/{name}/".removeprefix("s3://").partition("/")
    return bool(store.client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))


def _held_run(workdir: Path) -> tuple[Json, bool]:
    """The run of a working directory, and whether the object store is that of the directory, whose address and keys
    are then no part of the manifest.
    """
    run = local_runs(workdir)[0]
    embedded = (workdir / "s3" / "credentials.json").is_file()
    if not embedded:
        return run, False
    filled = ("endpointUrl", "credentialsSecret")
    storage = {key: value for key, value in run["spec"]["storage"].items() if key not in filled}
    return run | {"spec": run["spec"] | {"storage": storage}}, True


async def _copy(source: Path, target: Path, old: VideoTrainingRun, new: VideoTrainingRun, fork: Fork) -> None:
    uri = old.spec.storage.uri
    servers = [await ObjectServer.start(source, uri)]
    try:
        servers.append(await ObjectServer.start(target, new.spec.storage.uri))
        clients = [s3_client(each.endpoint_url, each.credentials, "us-east-1", TIMEOUT_SECONDS) for each in servers]
        named = zip(clients, (source, target), strict=True)
        stores = [Store(client, f"the store of {folder}") for client, folder in named]
        await asyncio.to_thread(_copy_inputs, stores[0], stores[1], new)
        if fork.optimizer:
            await asyncio.to_thread(_continue, stores[0], stores[1], old, new, fork)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"copying from {source} to {target}: {error}") from None
    finally:
        for server in servers:
            await server.stop()


def _copy_inputs(source: Store, target: Store, new: VideoTrainingRun) -> None:
    """Bring everything that the new run names in the bucket of its own store, under the same URIs."""
    for uri in _inputs(new):
        copied: list[int] = []
        count = copy_objects(source, target, uri, copied.append)
        sys.stderr.write(f"{uri}: {count} objects, {sum(copied) / 2**20:.1f} MiB copied\n")


def _inputs(run: VideoTrainingRun) -> Sequence[str]:
    spec = run.spec
    tasks = [task for stage in spec.stages if (task := stage.train or stage.autoencoder)]
    named = [spec.dataset.clips, *spec.dataset.encoded.values(), spec.autoencoder.weights, spec.model.weights]
    named += [task.init_from.uri for task in tasks if task.init_from]
    measured = [stage.evaluate for stage in spec.stages if stage.evaluate]
    named += [task.videos_uri for task in measured]
    named += [task.preference.videos for task in measured if task.preference]
    bucket = f"{'/'.join(spec.storage.uri.split('/')[:3])}/"
    return list(dict.fromkeys(uri for uri in named if uri and uri.startswith(bucket)))


def _continue(source: Store, target: Store, old: VideoTrainingRun, new: VideoTrainingRun, fork: Fork) -> None:
    places = [layout.stage_prefix(run.spec.storage.uri, run.metadata.name, fork.stage) for run in (old, new)]
    head = new.metadata
    order = f"{places[0]}/order"
    if source is not target:
        copy_objects(source, target, order, lambda _: None)
    step = copy_checkpoint(source, target, places[0], places[1], f"{head.namespace}/{head.name}")
    sys.stderr.write(f"stage {fork.stage} goes on after step {step}, with the state of its optimizer\n")
