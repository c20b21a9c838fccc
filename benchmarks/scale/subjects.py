"""What is measured: runs of our operator, JobSets, or bare Indexed Jobs as the floor."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from scale.agent_process import AgentProcess
from scale.nodes import MANAGER
from scale.tracker import RunSeen
from videotrain_api.vocabulary import API_VERSION, KIND, LABEL_RUN
from videotrain_operator.kube.client import MERGE, KubeClient

NAMESPACE: Final = "scale"
LARGEST_ELASTIC: Final = 64
JOB_LABEL: Final = "batch.kubernetes.io/job-name"
_JOBS: Final = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
_JOBSETS: Final = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"
Json = dict[str, Any]


class Subject(Protocol):
    """One way to run a number of pods."""

    name: str
    label: str
    """On each pod: the name of its run."""
    has_operator: bool
    """Ours, which tells agents their roster; another controller tells nobody anything."""

    async def create(self, client: KubeClient, name: str, pods: int, *, elastic: bool) -> None:
        """Create a run."""

    async def finish(self, client: KubeClient, agents: AgentProcess | None, runs: Iterable[RunSeen]) -> None:
        """Let the workers of the runs succeed."""

    async def finished(self, client: KubeClient) -> int:
        """How many runs are complete, with nothing left to be released."""

    async def delete(self, client: KubeClient, name: str) -> None:
        """Delete a run."""

    async def settled(self, client: KubeClient) -> int:
        """How many runs do their work, and nothing is left to be done for them."""

    async def leftovers(self, client: KubeClient) -> int:
        """Whether something of the deleted runs is still there (0: nothing)."""


def run_manifest(name: str, pods: int, *, elastic: bool) -> Json:
    """A run of so many nodes; two fewer will do if it is elastic and small: a step of every world's multiple of samples
    is too large for a thousand nodes, so a large world waits for its replacement."""
    least = max(1, pods - 2) if elastic and pods <= LARGEST_ELASTIC else pods
    train = {
        "steps": 100_000,
        "buckets": [{"resolution": "256px", "frames": 129, "batchSize": 1}],
        "optimizer": {"learningRate": [{"value": 1e-4}]},
        "parallel": {"microBatchesPerStep": math.lcm(*range(least, pods + 1))},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"preset": "mmdit-11b"},
            "autoencoder": {"preset": "hunyuan-vae", "weights": "s3://weights/vae.safetensors"},
            "dataset": {"latents": "s3://datasets/latents"},
            "storage": {"uri": "s3://training/scale"},
            "nodes": {"min": least, "max": pods},
            "pool": {"gpusPerNode": 1, "pricePerGpuHour": "2.00"},
            "failurePolicy": {"hangSeconds": 86400, "startSeconds": 86400},
            "stages": [{"name": "train", "task": "train", "train": train}],
        },
    }


class Runs:
    """VideoTrainingRuns."""

    name = "videotrain"
    label = LABEL_RUN
    has_operator = True

    async def create(self, client: KubeClient, name: str, pods: int, *, elastic: bool) -> None:
        await client.create(run_manifest(name, pods, elastic=elastic), MANAGER)

    async def finish(
        self,
        client: KubeClient,  # noqa: ARG002 - the agents say it
        agents: AgentProcess | None,
        runs: Iterable[RunSeen],  # noqa: ARG002
    ) -> None:
        if agents is None:
            raise ValueError("a run ends when its agents say so; use --agents simulated for the scenario life")
        await agents.finish()

    async def finished(self, client: KubeClient) -> int:
        pods = await client.list_page("Pod", NAMESPACE, labelSelector=LABEL_RUN, limit="1")
        if pods["items"]:
            return 0  # the operator is still releasing them
        return (await self._phases(client)).count("Succeeded")

    async def delete(self, client: KubeClient, name: str) -> None:
        await client.delete(KIND, NAMESPACE, name, propagation="Background")

    async def settled(self, client: KubeClient) -> int:
        return (await self._phases(client)).count("Running")

    async def _phases(self, client: KubeClient) -> list[str]:
        phases = [str((run.get("status") or {}).get("phase")) for run in await client.list(KIND, NAMESPACE)]
        if failed := phases.count("Failed"):
            raise RuntimeError(f"{failed} of {len(phases)} runs failed; --keep keeps the operator's log")
        return phases

    async def leftovers(self, client: KubeClient) -> int:
        kinds = (KIND, "Pod", "ConfigMap", "NetworkPolicy")
        pages = [await client.list_page(kind, NAMESPACE, limit="2") for kind in kinds[:1]]
        pages += [await client.list_page(kind, NAMESPACE, labelSelector=LABEL_RUN, limit="1") for kind in kinds[1:]]
        return sum(len(page["items"]) for page in pages)


class Jobs:
    """Indexed Jobs: what Kubernetes itself does for the same pods."""

    name = "job"
    label = JOB_LABEL
    has_operator = False

    async def create(self, client: KubeClient, name: str, pods: int, *, elastic: bool) -> None:  # noqa: ARG002 - a Job cannot be
        await client.raw("POST", _JOBS, job_manifest(name, pods), {"fieldManager": MANAGER})

    async def finish(self, client: KubeClient, agents: AgentProcess | None, runs: Iterable[RunSeen]) -> None:  # noqa: ARG002
        pods = [pod for run in runs for pod in run.live()]
        await asyncio.gather(*(end_pod(client, pod.name, 0) for pod in pods))

    async def finished(self, client: KubeClient) -> int:
        jobs = (await client.raw("GET", _JOBS))["items"]
        return sum((job.get("status") or {}).get("completionTime") is not None for job in jobs)

    async def delete(self, client: KubeClient, name: str) -> None:
        await client.raw("DELETE", f"{_JOBS}/{name}", {"propagationPolicy": "Background"})

    async def settled(self, client: KubeClient) -> int:
        jobs = (await client.raw("GET", _JOBS))["items"]
        return sum((job.get("status") or {}).get("ready") == job["spec"]["parallelism"] for job in jobs)

    async def leftovers(self, client: KubeClient) -> int:
        pods = await client.list_page("Pod", NAMESPACE, labelSelector=JOB_LABEL, limit="1")
        return len(pods["items"]) + len((await client.raw("GET", _JOBS, query={"limit": "1"}))["items"])


class JobSets:
    """JobSets of one replicated Job, with the headless Service and stable host names of its defaults."""

    name = "jobset"
    label = "jobset.sigs.k8s.io/jobset-name"
    has_operator = False

    async def create(self, client: KubeClient, name: str, pods: int, *, elastic: bool) -> None:  # noqa: ARG002 - a Job cannot be
        await client.raw("POST", _JOBSETS, jobset_manifest(name, pods), {"fieldManager": MANAGER})

    async def finish(self, client: KubeClient, agents: AgentProcess | None, runs: Iterable[RunSeen]) -> None:
        await Jobs().finish(client, agents, runs)

    async def finished(self, client: KubeClient) -> int:
        sets = (await client.raw("GET", _JOBSETS))["items"]
        return sum((item.get("status") or {}).get("terminalState") == "Completed" for item in sets)

    async def delete(self, client: KubeClient, name: str) -> None:
        await client.raw("DELETE", f"{_JOBSETS}/{name}", {"propagationPolicy": "Background"})

    async def settled(self, client: KubeClient) -> int:
        sets = (await client.raw("GET", _JOBSETS))["items"]
        told = ((item.get("status") or {}).get("replicatedJobsStatus") or [{}] for item in sets)
        return sum(status[0].get("ready") == 1 for status in told)

    async def leftovers(self, client: KubeClient) -> int:
        pods = await client.list_page("Pod", NAMESPACE, labelSelector=self.label, limit="1")
        pages = [await client.raw("GET", path, query={"limit": "1"}) for path in (_JOBSETS, _JOBS)]
        return sum(len(page["items"]) for page in (pods, *pages))


def job_manifest(name: str, pods: int) -> Json:
    """An Indexed Job of so many pods at once."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": job_spec(pods),
    }


def job_spec(pods: int) -> Json:
    """Of a Job of so many pods at once, a GPU each."""
    resources = {"nvidia.com/gpu": "1", "cpu": "4"}
    worker = {"name": "worker", "image": "worker", "resources": {"limits": resources, "requests": resources}}
    return {
        "completions": pods,
        "parallelism": pods,
        "completionMode": "Indexed",
        "backoffLimit": 1000,
        "template": {"spec": {"restartPolicy": "Never", "containers": [worker]}},
    }


def jobset_manifest(name: str, pods: int) -> Json:
    """A JobSet of one such Job; one failed pod restarts it, since a training world cannot go on without."""
    job = {"name": "worker", "replicas": 1, "template": {"spec": job_spec(pods) | {"backoffLimit": 0}}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"failurePolicy": {"maxRestarts": 1000}, "replicatedJobs": [job]},
    }


async def end_pod(client: KubeClient, name: str, code: int) -> None:
    """The kubelet's word that the worker container has ended."""
    phase, reason = ("Failed", "Error") if code else ("Succeeded", "Completed")
    pod = await client.get("Pod", NAMESPACE, name)
    seen = pod["status"]["containerStatuses"][0]
    started = seen["state"]["running"]["startedAt"]
    ended = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": utc_text()}
    container = seen | {"ready": False, "started": False, "state": {"terminated": ended}}
    patch = {"status": {"phase": phase, "containerStatuses": [container]}}
    await client.patch("Pod", NAMESPACE, name, patch, content=MERGE, subresource="status", manager=MANAGER)


def utc_text() -> str:
    """Now, as the API writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


SUBJECTS: Final[dict[str, type[Runs] | type[JobSets] | type[Jobs]]] = {
    "videotrain": Runs,
    "jobset": JobSets,
    "job": Jobs,
}
