"""Short ways to say what the planner sees, for its tests."""

from __future__ import annotations

import copy
import json
from datetime import datetime, timedelta
from typing import Any

from videotrain_api.records import AgentProgress, GenerationProgress, Roster, SavedPoint, WorkerExit
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.signing import derive_signing_key
from videotrain_operator.planner.decision import Plan
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.simulation.cluster import MASTER_KEY, START

RUN_UID = "11111111-2222-3333-4444-555555555555"
SIGNING_KEY = derive_signing_key(MASTER_KEY, RUN_UID)

_TRAIN = {
    "steps": 100,
    "buckets": [{"resolution": "64px", "frames": 8, "batchSize": 1, "aspectRatios": ["1:1"]}],
    "optimizer": {"learningRate": [{"value": 1e-3}]},
    "precision": "fp32",
    "parallel": {"microBatchesPerStep": 8},
}


def at(seconds: float) -> datetime:
    """So many seconds after noon."""
    return START + timedelta(seconds=seconds)


def train_stage(name: str = "train", steps: int = 100, **more: Any) -> dict[str, Any]:
    return {"name": name, "task": "train", "train": {**_TRAIN, "steps": steps}, **more}


def manifest(**spec: Any) -> dict[str, Any]:
    """A small run: one train stage on one to three nodes of two GPUs."""
    base: dict[str, Any] = {
        "model": {"preset": "mmdit-tiny-dcae"},
        "autoencoder": {"preset": "dc-ae-tiny", "weights": "s3://videotrain/ae.safetensors"},
        "textEncoder": {"maxTokens": 32, "contextDim": 32, "pooledDim": 16},
        "dataset": {"latents": "s3://videotrain/latents", "clips": "s3://videotrain/clips"},
        "storage": {"uri": "s3://videotrain/demo"},
        "nodes": {"min": 1, "max": 3},
        "pool": {"gpusPerNode": 2, "pricePerGpuHour": "3.60"},
        "checkpoint": {"everySteps": 10},
        "elasticity": {"waitForMaxSeconds": 30, "minGainSeconds": 0},
        "failurePolicy": {"hangSeconds": 60, "startSeconds": 300, "graceSeconds": 20},
        "stages": [train_stage()],
    }
    meta = {"name": "demo", "namespace": "default", "uid": RUN_UID, "generation": 1}
    return {
        "apiVersion": "videotrain.dev/v1alpha1",
        "kind": "VideoTrainingRun",
        "metadata": meta,
        "spec": copy.deepcopy(base | spec),
    }


def run_of(body: dict[str, Any]) -> VideoTrainingRun:
    return VideoTrainingRun.from_wire(body)


def pod(index: int, **more: Any) -> PodView:
    """A worker pod that runs since noon."""
    facts: dict[str, Any] = {
        "name": f"demo-w{index}",
        "uid": f"uid-{index}",
        "index": index,
        "phase": "Running",
        "created_at": at(-3),
        "bound_at": at(-2),
        "started_at": at(0),
        "node": f"node-{index}",
        "address": f"10.0.0.{index + 1}",
        "running": True,
        "gpus": 2,
        "price": "3.60 USD",
    }
    return PodView(**(facts | more))


def progress(generation: int = 1, step: int = 0, state: str = "running", **more: Any) -> GenerationProgress:
    facts: dict[str, Any] = {
        "generation": generation,
        "stage": "train",
        "state": state,
        "world_size": 4,
        "resumed_step": 0,
        "total_steps": 100,
        "step": step,
        "launched_at": at(1),
    }
    if step or "started_at" in more:
        facts |= {"started_at": at(5)}
    if step:
        facts |= {"first_step_at": at(6), "last_step_at": at(5 + step)}
    return GenerationProgress(**(facts | more))


def agent(index: int, facts: GenerationProgress | None, now: datetime, **more: Any) -> AgentProgress:
    generation = facts.generation if facts else None
    fields = {"pod": f"demo-w{index}", "pod_uid": f"uid-{index}", "at": now, "current": facts}
    return AgentProgress(**(fields | {"roster_generation": generation} | more))


def failed(generation: int, step: int, code: int, when: datetime, message: str = "", **more: Any) -> GenerationProgress:
    end = WorkerExit(
        generation=generation,
        stage="train",
        local_rank=0,
        at=when,
        code=code,
        outcome="failed",
        step=step,
        message=message,
    )
    return progress(generation, step, "failed", exit=end, ended_at=when, **more)


def saved(step: int, seconds: float) -> SavedPoint:
    return SavedPoint(
        step=step,
        captured_at=at(seconds),
        committed_at=at(seconds + 1),
        uri=f"s3://videotrain/demo/step-{step}",
        data_stall_us=0,
        checkpoint_us=0,
    )


def roster_in(plan: Plan) -> Roster | None:
    """The roster that a plan publishes."""
    for item in plan.apply:
        text = item.get("data", {}).get("roster.json")
        if text:
            return Roster.from_wire(json.loads(text))
    return None


def condition(plan: Plan, kind: str) -> Any:
    return next((c for c in plan.status.conditions if c.type == kind), None)


def seen(*pods: PodView, **more: Any) -> Observed:
    facts = {"signing_key": SIGNING_KEY, "roster_resource_version": "7"}
    return Observed(pods=tuple(pods), **(facts | more))
