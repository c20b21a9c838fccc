"""`videotrain local`."""

from __future__ import annotations

import argparse

from videotrain.arguments.shared import add_device, add_manifests, one_manifest
from videotrain.arguments.types import folder, port, seed
from videotrain.extras import brought_by

CHAOS_HELP = """\
break something on purpose, as often as given:
  kill-node@stage=NAME,step=N    a node dies with everything on it
  kill-worker@stage=NAME,step=N  one worker process dies
  hang@stage=NAME,step=N         one worker process stands still"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "local",
        help="run a manifest on this machine, without Kubernetes",
        description="Run a manifest on this machine, without Kubernetes: every pod is a child process, the object "
        "store a server on 127.0.0.1. Ctrl-C saves and suspends; the same command goes on where it ended. "
        "Leaves weights, samples, report, bill and manifest in W/results/.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add_manifests(parser, several=False)
    parser.add_argument("--workdir", type=folder, required=True, metavar="W", help="working directory; made if needed")
    parser.add_argument("--data", type=folder, metavar="DIR", help="folder of videos, instead of spec.dataset.videos")
    parser.add_argument("--chaos", action="append", default=[], metavar="SPEC", help=CHAOS_HELP)
    parser.add_argument("--seed", type=seed, metavar="S", help="instead of spec.seed")
    add_device(parser, "worker processes")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines")
    parser.add_argument("--metrics-port", type=port, metavar="P", help="port of the operator's /metrics on 127.0.0.1")
    parser.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.local import LocalOptions, run_local

    return run_local(
        LocalOptions(
            manifest=one_manifest(options),
            workdir=options.workdir,
            data=options.data,
            chaos=tuple(options.chaos),
            seed=options.seed,
            json=options.json,
            device=options.device,
            metrics_port=options.metrics_port,
        )
    )
