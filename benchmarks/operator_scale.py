"""How the operator does at scale on a real control plane, beside JobSet and a bare Indexed Job, which is the floor.

    python benchmarks/operator_scale.py burst life --runs 200 --pods 8 --nodes 250 --profile raised
    python benchmarks/operator_scale.py burst --peer videotrain,jobset,job --rounds 3 --runs 200 --pods 8 --nodes 250

Several peers are measured in turns, in the opposite order every other round, since the seconds of one machine move more
from hour to hour than from peer to peer; each line has the ratios to the others of its round.

Each scenario starts a control plane of its own (etcd, API server, controller manager, scheduler, KWOK) in a network
namespace of its own, measures, and prints one JSON line; the lines are also appended to
benchmarks/results/operator_scale-<date>.jsonl. README.md of this folder says how each number is measured. Needs Linux,
`unshare` and `ip`, and root or user namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from scale import faults, load, network, outages
from scale.bench import Bench, Options, open_bench
from scale.jobset import JOBSET
from scale.numbers import rounded
from scale.progress import Progress
from scale.subjects import SUBJECTS, JobSets

from videotrain.controlplane import versions
from videotrain.controlplane.build import binary
from videotrain.controlplane.controllers import installation
from videotrain.controlplane.errors import ControlPlaneError
from videotrain.controlplane.settings import PROFILES

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Scenario:
    """A scenario and what it needs."""

    measure: Callable[[Bench], Awaitable[dict[str, Any]]]
    heartbeats: bool = False
    """Nodes with leases and the stock grace period."""
    replicas: int = 1
    operator_only: bool = False
    """A Job has no operator of its own that could be ended or idle."""
    agents: bool = False
    """Needs agents that answer."""
    step_seconds: float = 30.0
    """Of the simulated steps, if the command line does not say; 0 where every write but those of a fault is one too
    many, since a finished step changes the status."""


SCENARIOS = {
    "burst": Scenario(load.burst),
    "idle": Scenario(load.idle),
    "life": Scenario(load.life, agents=True),
    "pod-fail": Scenario(faults.pod_fail),
    "node-delete": Scenario(faults.node_delete, heartbeats=True),
    "node-silent": Scenario(faults.node_silent, heartbeats=True),
    "restart": Scenario(outages.restart, operator_only=True, step_seconds=0.0),
    "failover": Scenario(outages.failover, replicas=2, operator_only=True),
    "quiet": Scenario(load.quiet, operator_only=True),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+", choices=list(SCENARIOS), metavar="SCENARIO", help=" ".join(SCENARIOS))
    parser.add_argument("--runs", type=int, default=20, help="of burst, life, restart, failover, quiet (default 20)")
    parser.add_argument("--pods", type=int, default=8, help="of each run, on as many nodes (default 8)")
    parser.add_argument("--nodes", type=int, default=40, help="KWOK nodes of 8 GPUs (default 40)")
    parser.add_argument("--profile", choices=list(PROFILES), default="raised", help="request limits of the controllers")
    parser.add_argument(
        "--peer", type=_peers, default=["videotrain"], metavar="PEER[,PEER...]",
        help=f"what is measured, in turns if several: {', '.join(SUBJECTS)} (default videotrain)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1, help="of each scenario and peer (default 1)")
    parser.add_argument("--agents", choices=["simulated", "none"], default="simulated", help="whether agents answer")
    parser.add_argument("--start-seconds", type=float, default=0.5, help="from roster to first step of the agents")
    parser.add_argument("--step-seconds", type=float, help="of each further step, 0: none (default 30, restart 0)")
    parser.add_argument("--trials", type=int, default=5, help="of idle and of faults (default 5)")
    parser.add_argument("--kills", type=int, default=5, help="of failover (default 5)")
    parser.add_argument("--quiet-seconds", type=float, default=60.0, help="of quiet (default 60)")
    parser.add_argument("--timeout", type=float, default=900.0, help="of any one wait, seconds (default 900)")
    parser.add_argument("--out", type=Path, default=RESULTS / f"operator_scale-{date.today()}.jsonl")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of the control plane")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _peers(text: str) -> list[str]:
    peers = text.split(",")
    if unknown := [peer for peer in peers if peer not in SUBJECTS]:
        raise argparse.ArgumentTypeError(f"unknown peer {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    return peers


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name in options.scenarios:
        scenario = SCENARIOS[name]
        if scenario.operator_only and options.peer != ["videotrain"]:
            parser.error(f"{name} is about our operator's process; measure it without --peer")
        if scenario.agents and "videotrain" in options.peer and options.agents == "none":
            parser.error(f"{name}: a run ends when its agents say so; use --agents simulated")
    if "videotrain" in options.peer and options.pods > options.nodes:
        parser.error(f"--pods {options.pods} --nodes {options.nodes}: each pod of a run needs a node of its own")
    runs = options.runs + (options.kills + 4 if "failover" in options.scenarios else 1)
    if runs * options.pods > options.nodes * 8:
        parser.error(f"{runs} x {options.pods} pods of one GPU do not fit on {options.nodes} nodes of 8 GPUs")


def chosen(options: argparse.Namespace, scenario: Scenario, peer: str) -> Options:
    """The options of one scenario and peer."""
    values = {item.name: getattr(options, item.name) for item in fields(Options)} | {"peer": peer}
    step = scenario.step_seconds if options.step_seconds is None else options.step_seconds
    return Options(**values | {"agents": options.agents == "simulated", "step_seconds": step})


async def measure(options: argparse.Namespace) -> int:
    failed = 0
    with Progress(len(options.scenarios) * len(options.peer) * options.rounds) as progress:
        for name in options.scenarios:
            for number in range(options.rounds):
                lines = []
                for peer in options.peer if number % 2 == 0 else reversed(options.peer):
                    progress.begin(f"{name} ({peer})")
                    lines.append(await one(name, chosen(options, SCENARIOS[name], peer), progress))
                    failed += "error" in lines[-1]
                    progress.end()
                for line in lines:
                    write(line | beside(line, lines), options.out)
    return 1 if failed else 0


def beside(line: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The line's figures as ratios to those of the other peers of its round; nothing if there are none."""
    ratios = {}
    for other in lines:
        if other is line or "error" in other or "error" in line:
            continue
        own, theirs = figures(line["result"]), figures(other["result"])
        ratios[other["peer"]] = {key: rounded(own[key] / theirs[key]) for key in own if theirs.get(key)}
    return {"beside": ratios} if ratios else {}


def figures(result: dict[str, Any]) -> dict[str, float]:
    """What is compared between peers: seconds until training can begin, CPU per run until then, recoveries."""
    cpu = result.get("cpuUntilBegin") or {}
    found = {
        "trainingCanBeginSeconds": result.get("trainingCanBeginSeconds"),
        "allPodsExistSeconds": result.get("allPodsExistSeconds"),
        "clusterCpuUntilBegin": cpu.get("cluster"),
        "operatorCpuUntilBegin": cpu.get("operator"),
        "replacedSeconds": (result.get("replacedSeconds") or {}).get("p50"),
    }
    return {key: value for key, value in found.items() if value is not None}


async def one(name: str, options: Options, progress: Progress) -> dict[str, Any]:
    """Measure one scenario; a failure is a result too."""
    scenario = SCENARIOS[name]
    before = os.getloadavg()
    began = datetime.now(UTC).isoformat(timespec="seconds")
    head: dict[str, Any] = {"benchmark": "operator_scale", "scenario": name, "at": began} | asdict(options)
    del head["keep"], head["timeout"]
    try:
        async with open_bench(options, progress, heartbeats=scenario.heartbeats, replicas=scenario.replicas) as bench:
            result: dict[str, Any] = {"result": await scenario.measure(bench)}
    except (TimeoutError, RuntimeError, ControlPlaneError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    return head | result | {"how": how(scenario), "machine": machine(before), "versions": software()}


def how(scenario: Scenario) -> str:
    """The docstring of the scenario, in one line."""
    return " ".join((scenario.measure.__doc__ or "").split())


def machine(before: tuple[float, float, float]) -> dict[str, Any]:
    told = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    loads = {"before": [round(item, 1) for item in before], "after": [round(item, 1) for item in os.getloadavg()]}
    return {"cores": os.cpu_count(), "cpu": cpu, "memoryGiB": round(memory), "load": loads}


def software() -> dict[str, str]:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    found = {name: version(name) for name in ("videotrain-operator", "kopf", "aiohttp", "pydantic")}
    commit = {"commit": described.stdout.strip()} if described.returncode == 0 else {}
    return {"kubernetes": versions.KUBERNETES, "python": platform.python_version()} | found | commit


def write(line: dict[str, Any], path: Path) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text + "\n")


def main() -> int:
    options = parse(sys.argv[1:])
    if not network.inside():
        binary()  # it may have to be built, which needs the machine's network
        if JobSets.name in options.peer:
            installation(JOBSET)
        network.enter(sys.argv)
    return asyncio.run(measure(options))


if __name__ == "__main__":
    sys.exit(main())
