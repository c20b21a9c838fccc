"""Worker pods as child processes: real agents, real torchelastic worlds, a task of small steps."""

import contextlib
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from videotrain_api import vocabulary as names
from videotrain_api.config.stage_config import StageConfig, StagePaths
from videotrain_api.records import AgentProgress, Roster, RosterMember, RosterNotice
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket, LearningRatePiece, Optimizer, Stage, TrainTask
from videotrain_api.resource.trainrun import CheckpointPolicy, Dataset, Storage
from videotrain_api.signing import KEY_BYTES, Request

KEY = b"k" * KEY_BYTES
"""The signing key of the run."""
INJECTED = Path(__file__).with_name("injected")
"""Folder for PYTHONPATH that puts a task of small steps in the place of `train`."""


def stage_config(*, steps=100_000, grace_seconds=20):
    train = TrainTask(
        steps=steps,
        buckets=[Bucket(resolution="256px", frames=1, batch_size=1)],
        optimizer=Optimizer(learning_rate=[LearningRatePiece(value=1e-3)]),
    )
    return StageConfig(
        run="default/tiny",
        stage=Stage(name="walk", task="train", train=train),
        model=TransformerSpec(),
        autoencoder=AutoencoderSpec(),
        text_encoder=TextEncoderSpec(),
        dataset=Dataset(),
        storage=Storage(uri="s3://bucket"),
        checkpoint=CheckpointPolicy(),
        paths=StagePaths(output="s3://bucket/tiny/walk"),
        seed=1,
        gpus_per_node=2,
        hang_seconds=60,
        start_seconds=60,
        grace_seconds=grace_seconds,
    )


class AgentPod:
    """One pod: its directory, its address and its agent process."""

    def __init__(self, name, root, address, injected=INJECTED):
        self.name, self.root, self.address, self.uid = name, root, address, f"uid-{name}"
        (root / names.DIR_ROSTER).mkdir(parents=True)
        (root / names.DIR_KEY).mkdir(parents=True)
        (root / names.DIR_KEY / names.SIGNING_KEY).write_bytes(KEY)
        self.environment = os.environ | {
            names.ENV_POD_ROOT: str(root),
            names.ENV_POD_NAME: name,
            names.ENV_POD_UID: self.uid,
            names.ENV_POD_IP: address,
            names.ENV_RUN: "tiny",
            names.ENV_NAMESPACE: "default",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(injected or ""), os.environ.get("PYTHONPATH")])),
        }
        self.log = root / "log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "videotrain_trainer.cli", "agent"]
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def mount(self, config):
        (self.root / names.DIR_CONFIG / f"{config.stage.name}.json").write_text(config.canonical_json())

    def give(self, roster):
        part = self.root / "roster.part"
        part.write_text(json.dumps(roster.to_wire()))
        part.replace(self.root / names.DIR_ROSTER / names.ROSTER_KEY)

    def tell(self, roster, *to):
        """Send a roster to this agent, and through it to others; the addresses that it says have it."""
        notice = RosterNotice(roster=roster, to=[pod.address for pod in to], seconds=5)
        body = json.dumps(notice.to_wire()).encode()
        signed = Request(recipient=self.address, method="POST", target=names.PATH_ROSTER, body=body)
        headers = signed.sign(KEY, time_us=time.time_ns() // 1000, nonce=secrets.token_hex(16))
        url = f"http://{self.address}:{names.PORT_AGENT}{names.PATH_ROSTER}"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            return json.loads(answer.read())["told"]

    def behave(self, behaviour, local_rank):
        (self.root / f"behaviour-{local_rank}").write_text(behaviour)

    def get(self, page):
        signed = Request(recipient=self.address, method="GET", target=page)
        nonce = secrets.token_hex(16)
        headers = signed.sign(KEY, time_us=time.time_ns() // 1000, nonce=nonce)
        url = f"http://{self.address}:{names.PORT_AGENT}{page}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.read().decode()

    def progress(self):
        return AgentProgress.from_wire(json.loads(self.get("/progress")))

    def file(self, name):
        return self.root / names.DIR_RUN / name

    def worker(self, generation, local_rank):
        return psutil.Process(int(self.file(f"worker-{generation}-{local_rank}.pid").read_text()))

    def descendants(self):
        """Names of all processes below the agent."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.name())
        return sorted(found)

    def until(self, condition, seconds=60):
        """Poll /progress until the condition holds; the progress then."""
        deadline = time.monotonic() + seconds
        seen = None
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                seen = self.progress()
                if condition(seen):
                    return seen
            time.sleep(0.05)
        raise AssertionError(f"{self.name}: waited {seconds} s; last {seen}\n{self.log.read_text()[-6000:]}")

    def until_state(self, generation, state):
        def holds(progress):
            current = progress.current
            return current is not None and current.generation == generation and current.state == state

        return self.until(holds).current

    def until_step(self, generation, step):
        def holds(progress):
            current = progress.current
            return current is not None and current.generation == generation and current.step >= step

        return self.until(holds).current

    def until_ended(self, generation):
        def holds(progress):
            current = progress.current
            return current is not None and current.generation == generation and current.ended_at is not None

        return self.until(holds).current

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


class Worlds:
    """Pods and the operator's part: rosters."""

    def __init__(self, folder, injected=INJECTED, pods=2):
        self._folder, self._injected = folder, injected
        self._block = f"127.{random.randint(64, 127)}.{random.randint(0, 255)}"
        self._addresses = itertools.count(1)
        self._generations = itertools.count(1)
        self.pods = [self.new_pod() for _ in range(pods)]

    def new_pod(self):
        number = next(self._addresses)
        name = f"tiny-w{number - 1}"
        return AgentPod(name, self._folder / name, f"{self._block}.{number}", self._injected)

    def replace(self, pod):
        """Put a new pod in the place of a dead one."""
        self.pods[self.pods.index(pod)] = fresh = self.new_pod()
        return fresh

    def start(self, *pods, config=None, processes=2, to=None, **changes):
        """Give all pods, or those in `to`, the roster of a new generation with these members; its number."""
        roster = self.roster(*pods, config=config, processes=processes, to=to, **changes)
        for pod in to or self.pods:
            pod.give(roster)
        return roster.generation

    def roster(self, *pods, config=None, processes=2, to=None, sent=None, **changes):
        """The roster of a new generation, whose configuration all pods, or those in `to`, have mounted; `sent` is one
        that it brings along."""
        config = config or stage_config()
        generation = next(self._generations)
        roster = Roster(
            **{
                "run_uid": "run",
                "generation": generation,
                "action": "run",
                "stage": config.stage.name,
                "config_hash": config.hash(),
                "reason": "Started",
                "members": [RosterMember(pod=pod.name, address=pod.address, uid=pod.uid) for pod in pods],
                "port": names.PORT_RENDEZVOUS + generation % names.RENDEZVOUS_PORTS,
                "processes_per_node": processes,
                "config": sent,
            }
            | changes
        )
        for pod in to or self.pods:
            for file in pod.root.glob("behaviour-*"):
                file.unlink()
            pod.mount(config)
        return roster

    def close(self):
        for pod in self.pods:
            pod.close()
