"""The TorchX scheduler: VideoTrainingRuns of a cluster as applications.

An application is `NAMESPACE:NAME`. Cancelling one suspends the run: its state is saved, its nodes are released, and
`kubectl patch` with `spec.suspend: false` goes on where it was. Deleting one deletes the run.
"""

from __future__ import annotations

import builtins
import io
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final, cast

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.specs import AppDef, AppDryRunInfo, is_terminal, runopts

from videotrain.torchx.app import manifest_of
from videotrain.torchx.states import app_state, by_index, described, pod_index
from videotrain_api.cost.forecast import forecast
from videotrain_api.render.objects import render_objects
from videotrain_api.schema import Json
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import API_VERSION, CONTAINER_WORKER, GROUP, LABEL_RUN, PLURAL

NAME: Final = "videotrain"
VERSION: Final = API_VERSION.rpartition("/")[2]
LOOK_SECONDS: Final = 2.0
"""Between two looks for the pod that takes the place of one whose log has ended."""


class NoCluster(Exception):
    """Neither a kubeconfig nor a service account says where the cluster is."""


class RunRefused(Exception):
    """The cluster did not take a run; the message is its own."""


@dataclass(frozen=True)
class RunRequest:
    """What is sent to the API server."""

    run: Json
    """A VideoTrainingRun with a namespace."""

    def __str__(self) -> str:
        """The manifest, the objects that the operator will make of it, and the modelled price."""
        run = parse_run(self.run)
        planned = forecast(run)
        kinds = [f"{each['kind']} {each['metadata']['name']}" for each in render_objects(run)]
        bands = sorted(planned.cost_by_band.values(), key=float)
        unknown = "" if planned.complete else "; of some stages the work is not known, and they are left out"
        return "\n".join(
            [
                f"# The operator makes of it: {', '.join(kinds)}",
                f"# Price, modelled: {planned.total_cost} {planned.currency}; steps {bands[0]} to {bands[-1]}, "
                f"starts, checkpoints and failures {planned.overhead_cost}{unknown}",
                _as_yaml(self.run),
            ]
        )


class VideoTrainScheduler(Scheduler[Mapping[str, Any]]):  # type: ignore[misc]  # TorchX has no types
    """VideoTrainingRuns of the cluster that the kubeconfig's current context names, or of the one around this pod."""

    def __init__(self, session_name: str) -> None:
        super().__init__(NAME, session_name)

    @cached_property
    def _api(self) -> client.ApiClient:
        try:
            config.load_kube_config()
        except config.ConfigException as error:
            try:
                config.load_incluster_config()
            except config.ConfigException:
                raise NoCluster(f"{error} Set KUBECONFIG, or run this in a pod with a service account.") from None
        return client.ApiClient()

    @property
    def _runs(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi(self._api)

    @property
    def _pods(self) -> client.CoreV1Api:
        return client.CoreV1Api(self._api)

    def close(self) -> None:
        """Close connections, if any was made."""
        if "_api" in self.__dict__:
            self._api.close()

    def _run_opts(self) -> runopts:
        opts = runopts()
        opts.add("namespace", type_=str, default=None, help="namespace of a run whose manifest names none")
        return opts

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[RunRequest]:
        document = manifest_of(app)
        metadata = document["metadata"]
        namespace = metadata.get("namespace") or cfg.get("namespace") or _namespace_here()
        return AppDryRunInfo(RunRequest({**document, "metadata": {**metadata, "namespace": namespace}}), str)

    def schedule(self, dryrun_info: AppDryRunInfo[RunRequest]) -> str:
        """Create the run.

        Raises:
            RunRefused: the API server or its admission refuses the run, or it exists.
        """
        run = dryrun_info.request.run
        app_id = _app_id(run)
        try:
            self._runs.create_namespaced_custom_object(GROUP, VERSION, run["metadata"]["namespace"], PLURAL, run)
        except ApiException as error:
            raise RunRefused(f"run {app_id.replace(':', '/')}: {_told(error)}") from error
        return app_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """State, restarts and worker pods of a run; None if there is none."""
        run = self._read(app_id)
        return described(app_id, run, self._pods_of(app_id)) if run else None

    def describe_native(self, app_id: str) -> AppDryRunInfo[RunRequest] | None:
        """The VideoTrainingRun as it is in the cluster; None if there is none."""
        run = self._read(app_id)
        return AppDryRunInfo(RunRequest(run), lambda request: _as_yaml(request.run)) if run else None

    def list(self, cfg: Mapping[str, Any] | None = None) -> builtins.list[ListAppResponse]:
        """All runs of the cluster; of one namespace if `cfg` names it or others may not be read."""
        namespace = (cfg or {}).get("namespace")
        try:
            found = self._list_in(namespace)
        except ApiException as error:
            if error.status != HTTPStatus.FORBIDDEN or namespace:
                raise
            found = self._list_in(_namespace_here())
        return [ListAppResponse(_app_id(run), app_state(run)) for run in found["items"]]

    def _list_in(self, namespace: str | None) -> Json:
        arguments = (GROUP, VERSION, namespace, PLURAL) if namespace else (GROUP, VERSION, PLURAL)
        read = self._runs.list_namespaced_custom_object if namespace else self._runs.list_cluster_custom_object
        return cast(Json, read(*arguments))

    def _cancel_existing(self, app_id: str) -> None:
        # A patch of one field: the run's other fields may have been edited since it was read.
        self._runs.patch_namespaced_custom_object(GROUP, VERSION, *_place(app_id), {"spec": {"suspend": True}})

    def _delete_existing(self, app_id: str) -> None:
        self._runs.delete_namespaced_custom_object(GROUP, VERSION, *_place(app_id))

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines of worker pod `k`; tailed, also of the pods that take its place, until the run has ended.

        Raises:
            ValueError: the run has no such role, or a single stream is asked for: a container's log holds both.
        """
        if role_name != CONTAINER_WORKER:
            raise ValueError(f"role {role_name!r} of {app_id}: a run has one role, {CONTAINER_WORKER!r}")
        if streams not in (None, Stream.COMBINED):
            raise ValueError(f"stream {streams.value!r}: the log of a container holds both streams; use combined")
        wanted = re.compile(regex or "")
        for stamp, line in self._stamped_lines(app_id, k, since, tail=should_tail):
            if until and stamp > until.astimezone(UTC):
                return
            if wanted.search(line):
                yield line

    def _stamped_lines(
        self, app_id: str, index: int, since: datetime | None, *, tail: bool
    ) -> Iterator[tuple[datetime, str]]:
        last = since.astimezone(UTC) if since else datetime.min.replace(tzinfo=UTC)
        done: str | None = None
        while True:
            run = self._read(app_id)  # before its pods, so that the last one of a run that has ended is not missed
            over = not tail or run is None or is_terminal(app_state(run))
            pod = next((pod for pod in by_index(self._pods_of(app_id)) if pod_index(pod) == index), None)
            if pod and pod["metadata"]["uid"] != done and _has_log(pod):
                for stamp, line in self._lines_of(pod, follow=tail):
                    if stamp >= last:
                        yield stamp, line
                done = pod["metadata"]["uid"]
            if over:
                return
            time.sleep(LOOK_SECONDS)

    def _lines_of(self, pod: Json, *, follow: bool) -> Iterator[tuple[datetime, str]]:
        response = self._pods.read_namespaced_pod_log(
            pod["metadata"]["name"],
            pod["metadata"]["namespace"],
            container=CONTAINER_WORKER,
            follow=follow,
            timestamps=True,
            _preload_content=False,
        )
        response.auto_close = False  # or urllib3 closes it before the text reader has looked for its end
        for line in io.TextIOWrapper(response, encoding="utf-8", errors="replace"):
            stamp, _, text = line.partition(" ")
            yield datetime.fromisoformat(stamp), text

    def _read(self, app_id: str) -> Json | None:
        try:
            return cast(Json, self._runs.get_namespaced_custom_object(GROUP, VERSION, *_place(app_id)))
        except ApiException as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def _pods_of(self, app_id: str) -> builtins.list[Json]:
        namespace, _, name = _place(app_id)
        found = self._pods.list_namespaced_pod(namespace, label_selector=f"{LABEL_RUN}={name}", _preload_content=False)
        return cast("builtins.list[Json]", json.loads(found.data)["items"])


def create_scheduler(session_name: str, **_: object) -> VideoTrainScheduler:
    """What TorchX calls, whichever way it found us."""
    return VideoTrainScheduler(session_name)


def _place(app_id: str) -> tuple[str, str, str]:
    """Namespace, plural and name, as the client wants them."""
    namespace, _, name = app_id.partition(":")
    if not namespace or not name:
        raise ValueError(f"application {app_id!r}: NAMESPACE:NAME is needed, such as default:demo")
    return namespace, PLURAL, name


def _app_id(run: Json) -> str:
    return f"{run['metadata']['namespace']}:{run['metadata']['name']}"


def _namespace_here() -> str:
    """Namespace of the kubeconfig's current context, as kubectl takes it."""
    try:
        _, current = config.list_kube_config_contexts()
    except config.ConfigException:
        return "default"
    return str((current.get("context") or {}).get("namespace") or "default")


def _told(error: ApiException) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"HTTP {error.status} {error.reason}"


def _has_log(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") not in (None, "Pending")


def _as_yaml(run: Json) -> str:
    return yaml.safe_dump(run, sort_keys=False, allow_unicode=True)
