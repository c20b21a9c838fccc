"""The `videotrain` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from videotrain import __version__
from videotrain.argument_types import amount, count, folder, port, seed, stage_seconds, utilisation, world
from videotrain.errors import UsageError
from videotrain.extras import brought_by

EXIT_USAGE = 2
"""A wrong command line or manifest."""
CHAOS_HELP = """\
break something on purpose, as often as given:
  kill-node@stage=NAME,step=N    a node dies with everything on it
  kill-worker@stage=NAME,step=N  one worker process dies
  hang@stage=NAME,step=N         one worker process stands still"""
EPILOG = """\
examples:
  videotrain local manifests/examples/demo.yaml --workdir run1
  videotrain local manifests/examples/demo.yaml --workdir run1 --chaos kill-node@stage=train,step=20
  videotrain plan manifests/examples/open-sora-2.yaml
  videotrain check manifests/examples/demo.yaml
  videotrain render manifests/examples/demo.yaml
  videotrain get --workdir run1
  videotrain bill demo --workdir run1
  videotrain bill --since 2026-11-01 --by team
  videotrain profile --workdir run1 --steps 3 --ranks 0,1
  videotrain cluster up --nodes 2 --gpus-per-node 8
"""
Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 for success, 1 for a failed run, 2 for a wrong command line or manifest.
    """
    options = build_parser().parse_args(arguments)
    # Here, so that help and a wrong command line do not wait for pydantic and YAML.
    from videotrain.manifest_file import ManifestFileError
    from videotrain_api.schema import ManifestError

    handler: Handler = options.handler
    try:
        return handler(options)
    except ManifestError as error:
        return _refuse(f"{options.file}: the manifest is refused:", *(f"  {problem}" for problem in error.problems))
    except (ManifestFileError, UsageError) as error:
        return _refuse(str(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (`head`) has gone; Python would complain about it at exit
        return 1


def _refuse(*lines: str) -> int:
    for line in lines:
        sys.stderr.write(f"videotrain: {line}\n" if line is lines[0] else f"{line}\n")
    return EXIT_USAGE


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; it imports no subcommand, so that `--help` is quick."""
    parser = argparse.ArgumentParser(
        prog="videotrain",
        description="Train video generation models and see what every GPU-second bought.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(file=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_local(commands)
    _add_plan(commands)
    _add_simulate(commands)
    _add_check(commands)
    _add_render(commands)
    _add_get(commands)
    _add_bill(commands)
    _add_top(commands)
    _add_compare(commands)
    _add_profile(commands)
    _add_cluster(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(handler=_version)
    return parser


def _add_local(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "local",
        help="run a manifest on this machine, without Kubernetes",
        description="Run a manifest on this machine, without Kubernetes: every pod is a child process, the object "
        "store a server on 127.0.0.1. Ctrl-C saves and suspends; the same command goes on where it ended. "
        "Leaves summary.json, report.html and samples/ in the working directory.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="RUN.yaml", help="manifest with one VideoTrainingRun")
    parser.add_argument("--workdir", type=folder, required=True, metavar="W", help="working directory; made if needed")
    parser.add_argument("--data", type=folder, metavar="DIR", help="folder of videos, instead of spec.dataset.videos")
    parser.add_argument("--chaos", action="append", default=[], metavar="SPEC", help=CHAOS_HELP)
    parser.add_argument("--seed", type=seed, metavar="S", help="instead of spec.seed")
    _add_device(parser, "worker processes")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines")
    parser.add_argument("--metrics-port", type=port, metavar="P", help="port of the operator's /metrics on 127.0.0.1")
    parser.set_defaults(handler=_local)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="say what a manifest would cost",
        description="Say what a manifest would cost, stage by stage: tokens and FLOPs by formula, time and money "
        "modelled from stated rates in a low, a mid and a high band, or from a stated MFU or measured seconds.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest with one VideoTrainingRun")
    _add_assumptions(parser)
    parser.add_argument(
        "--failures",
        type=amount,
        metavar="N",
        help="unexpected interruptions per 1,000 GPU-days (default 0.47, as in the training of Llama 3)",
    )
    parser.add_argument(
        "--gpus",
        type=world,
        action="append",
        default=[],
        metavar="N",
        help="tell the memory of a world of so many GPUs, too; may be repeated",
    )
    parser.add_argument(
        "--data-wait",
        action="store_true",
        help="replay the loaders: what train stages wait for their data, and what that costs; takes seconds",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="look for the fastest micro-batch, recomputation, degree and engine of every row that fit, instead",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    _add_pod_policy(parser)
    parser.set_defaults(handler=_plan)


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "simulate",
        help="live possible futures of a run in virtual time",
        description="Live possible futures of a run in virtual time: the real planner, bill and forecast, with "
        "failures that are drawn or read from a trace, and prices of a spot market.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest with one VideoTrainingRun")
    parser.add_argument("--gpus", type=world, required=True, metavar="N", help="GPUs of the cluster")
    parser.add_argument("--days", type=amount, required=True, metavar="D", help="when the simulation ends")
    parser.add_argument(
        "--failures",
        default="llama3",
        metavar="TRACE|RATE",
        help="llama3 (the default), interruptions per 1,000 GPU-days, or a CSV file with hours, node, kind, hours_away",
    )
    parser.add_argument(
        "--spot",
        type=Path,
        metavar="PRICES",
        help="CSV with hours, price_per_gpu_hour, nodes, or the JSON of `aws ec2 describe-spot-price-history`",
    )
    parser.add_argument("--runs", type=count, default=1, metavar="R", help="how many futures (default 1)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="draws other futures (default 0)")
    parser.add_argument(
        "--interval",
        type=count,
        action="append",
        default=[],
        metavar="STEPS",
        help="compare checkpoints every so many steps; repeat, at least three tell which is best",
    )
    parser.add_argument("--repair-hours", type=amount, default=1.0, metavar="H", help="until a lost node is back")
    parser.add_argument("--save-seconds", type=amount, metavar="S", help="for which a checkpoint stops training")
    parser.add_argument("--start-seconds", type=amount, default=180.0, metavar="S", help="roster to first step")
    _add_assumptions(parser)
    parser.add_argument("--page", type=Path, metavar="OUT.html", help="write a page with plots, too")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    _add_pod_policy(parser)
    parser.set_defaults(handler=_simulate)


def _add_assumptions(parser: argparse.ArgumentParser) -> None:
    """What modelled times rest on."""
    parser.add_argument("--mfu", type=utilisation, help="model FLOPs utilisation, 0 to 1, instead of modelled rates")
    parser.add_argument(
        "--seconds-per-step",
        type=stage_seconds,
        action="append",
        default=[],
        metavar="STAGE=SECONDS",
        help="measured time of one step of a stage, instead of modelling it",
    )
    parser.add_argument(
        "--hours-of-video",
        type=amount,
        metavar="H",
        help="hours of raw video, by which curate and encode stages are modelled",
    )


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "check",
        help="say everything that is wrong with a manifest",
        description="Check a manifest by the rules of the cluster, and print every problem. Exit code 0 "
        "if it can be accepted, 2 if not.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest with one VideoTrainingRun")
    parser.add_argument("--json", action="store_true", help="machine-readable output, also for a refused manifest")
    _add_pod_policy(parser)
    parser.set_defaults(handler=_check)


def _add_render(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "render",
        help="print the Kubernetes objects that would be created",
        description="Print the Kubernetes objects that the operator would create for a manifest on an empty cluster.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="manifest with one VideoTrainingRun")
    parser.add_argument("--json", action="store_true", help="a Kubernetes List as JSON instead of YAML documents")
    _add_pod_policy(parser)
    parser.set_defaults(handler=_render)


def _add_get(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("get", help="show the state of a local run", description="Show a local run's state.")
    parser.add_argument("--workdir", type=folder, required=True, metavar="W", help="working directory of `local`")
    parser.add_argument("--json", action="store_true", help="the VideoTrainingRun as JSON")
    parser.set_defaults(handler=_get)


def _add_bill(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bill",
        help="say what a run cost, or all runs by team, stage, node or cause",
        description="What runs cost: those that a cluster has and those whose bill its operator has kept, those of a "
        "local working directory, or those whose bills lie in a bucket. Without RUN, all of them.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="name of one run: its whole bill")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--workdir", type=folder, metavar="W", help="working directory of `local`")
    place.add_argument("--bucket", metavar="URI", help="spec.storage.uri of runs, such as s3://videotrain/runs")
    place.add_argument("--context", metavar="C", help="context of the kubeconfig (default: the current one)")
    parser.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig (default: the usual files)")
    parser.add_argument("-n", "--namespace", metavar="N", help="only runs of this namespace (default: of all)")
    parser.add_argument(
        "--operator-namespace",
        default="videotrain-system",
        metavar="N",
        help="where the operator keeps the bills of runs that are gone (default videotrain-system)",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of the bucket's object store (default: AWS)")
    parser.add_argument("--since", metavar="TIME", help="only what was held from then on, such as 2026-11-01 (UTC)")
    parser.add_argument("--until", metavar="TIME", help="only what was held before then")
    parser.add_argument(
        "--by",
        choices=("team", "namespace", "run", "stage", "node", "cause", "bucket"),
        help="a line for each (default run); with --since and --until, the money of those that were held then",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print (default table)")
    form.add_argument("--csv", action="store_const", const="csv", dest="output", help="print CSV")
    form.add_argument("--focus", action="store_const", const="focus", dest="output", help="print FOCUS 1.3 rows as CSV")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="write a Parquet file instead of printing")
    parser.set_defaults(handler=_bill)


def _add_top(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "top",
        help="the runs of a cluster, live",
        description="Show the runs of a cluster, live: phase, step, rate, MFU, goodput, spend, forecast and alerts.",
    )
    _add_cluster_choice(parser)
    parser.add_argument("--every", type=amount, default=2.0, metavar="S", help="seconds between looks (default 2)")
    parser.add_argument("--once", action="store_true", help="print the table once")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="json: once, for machines")
    parser.set_defaults(handler=_top)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="two runs side by side",
        description="Compare two runs: the fields in which their manifests differ, their plans, bills and curves. "
        "Each is a working directory of `local`, or NAME or NAMESPACE/NAME of a run in the cluster.",
    )
    parser.add_argument("a", metavar="A", help="working directory, NAME or NAMESPACE/NAME")
    parser.add_argument("b", metavar="B", help="the other one")
    _add_cluster_choice(parser)
    parser.add_argument("--page", type=Path, metavar="OUT.html", help="write a page with their curves, too")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(handler=_compare)


def _add_cluster_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", default="", metavar="NS", help="of these runs alone (default: of all)")
    parser.add_argument("--kubeconfig", metavar="FILE", help="instead of the usual ones")
    parser.add_argument("--context", metavar="NAME", help="in the kubeconfig, instead of its current one")


def _add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "profile",
        help="trace some training steps of a local run",
        description="Ask a local run for a trace of its next training steps by torch's profiler. It is stored in the "
        "stage's folder of the run's object store; `videotrain get` shows where. On a cluster, set the annotation "
        "videotrain.dev/profile of the run, such as 'steps=3 ranks=0,8'.",
    )
    parser.add_argument("--workdir", type=folder, required=True, metavar="W", help="working directory of `local`")
    parser.add_argument("--steps", default="3", metavar="N", help="steps to trace (default 3)")
    parser.add_argument("--ranks", default="0", metavar="N,N", help="ranks that do so (default 0)")
    parser.set_defaults(handler=_profile)


def _add_cluster(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "cluster",
        help="a real Kubernetes on this machine, to try the operator on",
        description="A real Kubernetes control plane on this machine, with nodes whose pods are processes and an "
        "S3 object store. Objects and data stay in the directory; starting again there goes on with them.",
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    up = verbs.add_parser("up", help="start it", description="Start the cluster and show it until Ctrl-C ends it.")
    up.add_argument("--nodes", type=count, default=2, metavar="N", help="number of nodes (default 2)")
    up.add_argument("--gpus-per-node", type=count, default=8, metavar="K", help="GPUs that a node offers (default 8)")
    _add_device(up, "pods")
    up.add_argument("--detach", action="store_true", help="come back when it is ready, and leave it running")
    up.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    up.set_defaults(handler=_cluster_up)
    down = verbs.add_parser("down", help="end it", description="End the cluster; its objects and data stay.")
    down.set_defaults(handler=_cluster_down)
    status = verbs.add_parser("status", help="show it", description="Show the cluster; exit code 1 if none is ready.")
    status.add_argument("--json", action="store_true", help="machine-readable output")
    status.set_defaults(handler=_cluster_status)
    for verb in (up, down, status):
        verb.add_argument(
            "--directory",
            type=folder,
            metavar="D",
            help="where it lives (default: in the user's state)",
        )


def _add_device(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help=f"what the {what} compute on: a GPU each if there are enough of them, else the CPU (auto, the default); "
        "the CPU; or a GPU each and nothing else (cuda)",
    )


def _add_pod_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pod-policy",
        choices=("baseline", "restricted", "any"),
        default="restricted",
        help="Pod Security Standard that worker pods have to keep to: the value podTemplate.policy of the operator's "
        "chart (default restricted)",
    )


def _local(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.local import LocalOptions, run_local

    return run_local(
        LocalOptions(
            manifest=options.file,
            workdir=options.workdir,
            data=options.data,
            chaos=tuple(options.chaos),
            seed=options.seed,
            json=options.json,
            device=options.device,
            metrics_port=options.metrics_port,
        )
    )


def _plan(options: argparse.Namespace) -> int:
    from videotrain.commands.plan import Assumptions, print_plan
    from videotrain.commands.plan_search import print_search

    if options.search:
        return print_search(options.file, options.pod_policy, as_json=options.json)
    failures = {} if options.failures is None else {"failures": options.failures}
    assumptions = Assumptions(
        mfu=options.mfu,
        seconds_per_step=dict(options.seconds_per_step),
        hours_of_video=options.hours_of_video,
        gpus=frozenset(options.gpus),
        data_wait=options.data_wait,
        **failures,
    )
    return print_plan(options.file, assumptions, options.pod_policy, as_json=options.json)


def _simulate(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.simulate import SimulateOptions, simulate

    return simulate(
        SimulateOptions(
            manifest=options.file,
            gpus=options.gpus,
            days=options.days,
            failures=options.failures,
            spot=options.spot,
            runs=options.runs,
            seed=options.seed,
            intervals=tuple(dict.fromkeys(options.interval)),
            repair_hours=options.repair_hours,
            save_seconds=options.save_seconds,
            start_seconds=options.start_seconds,
            mfu=options.mfu,
            hours_of_video=options.hours_of_video,
            seconds_per_step=dict(options.seconds_per_step),
            page=options.page,
            json=options.json,
        ),
        options.pod_policy,
    )


def _check(options: argparse.Namespace) -> int:
    from videotrain.commands.check import check_manifest

    return check_manifest(options.file, options.pod_policy, as_json=options.json)


def _render(options: argparse.Namespace) -> int:
    from videotrain.commands.render import print_objects

    return print_objects(options.file, options.pod_policy, as_json=options.json)


def _get(options: argparse.Namespace) -> int:
    from videotrain.commands.get import print_state

    return print_state(options.workdir, as_json=options.json)


def _bill(options: argparse.Namespace) -> int:
    from videotrain.commands.bill import BillOptions, moment, print_bill

    return print_bill(
        BillOptions(
            run=options.run,
            workdir=options.workdir,
            bucket=options.bucket,
            endpoint_url=options.endpoint_url,
            kubeconfig=options.kubeconfig,
            context=options.context,
            namespace=options.namespace,
            operator_namespace=options.operator_namespace,
            since=moment(options.since) if options.since else None,
            until=moment(options.until) if options.until else None,
            by=options.by,
            output=options.output,
            parquet=options.parquet,
        )
    )


def _top(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.top import ClusterChoice, TopOptions, top

    where = ClusterChoice(options.namespace, options.kubeconfig, options.context)
    return top(TopOptions(where=where, seconds=options.every, once=options.once, json=options.output == "json"))


def _compare(options: argparse.Namespace) -> int:
    with brought_by("local"):
        from videotrain.commands.compare import compare
        from videotrain.commands.top import ClusterChoice

    where = ClusterChoice(options.namespace, options.kubeconfig, options.context)
    return compare((options.a, options.b), where, options.page, as_json=options.json)


def _profile(options: argparse.Namespace) -> int:
    from videotrain.commands.profile import ask_for_profile

    return ask_for_profile(options.workdir, options.steps, options.ranks)


def _cluster_up(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.cluster import ClusterOptions, default_directory, up

    return up(
        ClusterOptions(
            directory=options.directory or default_directory(),
            nodes=options.nodes,
            gpus_per_node=options.gpus_per_node,
            device=options.device,
            detach=options.detach,
            child=options.child,
        )
    )


def _cluster_down(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.cluster import default_directory, down

    return down(options.directory or default_directory())


def _cluster_status(options: argparse.Namespace) -> int:
    with brought_by("cluster"):
        from videotrain.commands.cluster import default_directory, status

    return status(options.directory or default_directory(), as_json=options.json)


def _version(options: argparse.Namespace) -> int:  # noqa: ARG001 - every handler takes the options
    sys.stdout.write(f"videotrain {__version__}\n")
    return 0
