"""The `videotrain` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache

from videotrain import __version__
from videotrain.arguments import (
    bill,
    check,
    cluster,
    compare,
    completion,
    delete,
    describe,
    events,
    export,
    fetch,
    fork,
    get,
    local,
    logs,
    plan,
    profile,
    render,
    report,
    resume,
    sample,
    serve,
    simulate,
    suspend,
    top,
)
from videotrain.errors import UsageError, refuse

COMMANDS = (
    *(local, sample, export, serve, fetch, fork),
    *(plan, simulate, check, render),
    *(get, describe, logs, events, top, report, bill, compare, profile),
    *(suspend, resume, delete),
    *(cluster, completion),
)
"""Their arguments, in the order of the help."""
EPILOG = """\
examples:
  videotrain local manifests/examples/demo.yaml --workdir run1
  videotrain local manifests/examples/demo.yaml --workdir run1 --chaos kill-node@stage=train,step=20
  videotrain sample --workdir run1 --prompt 'A red ball rolls over grass.'
  videotrain export --workdir run1 --to diffusers exported
  videotrain plan manifests/examples/open-sora-2.yaml
  videotrain check manifests/examples/demo.yaml
  videotrain render manifests/examples/demo.yaml
  videotrain plan -f - --set nodes.max=4 < run.yaml
  videotrain get --workdir run1
  videotrain logs --follow demo --namespace video
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
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may stand at its cursor
        import argcomplete

        argcomplete.autocomplete(parser)
    options, further = parser.parse_known_args(arguments)
    if further and not options.passes_flags_on:
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    options.passed_on = further
    # Here, so that help and a wrong command line do not wait for pydantic and YAML.
    from videotrain.manifest_file import ManifestFileError
    from videotrain_api.schema import ManifestError

    handler: Handler = options.handler
    try:
        return handler(options)
    except (ManifestError, ManifestFileError, UsageError) as error:
        return refuse(error, options.file)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (`head`) has gone; Python would complain about it at exit
        return 1


@cache
def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; it imports no subcommand, so that `--help` is quick."""
    parser = argparse.ArgumentParser(
        prog="videotrain",
        description="Train video generation models and see what every GPU-second bought.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"videotrain {__version__}")
    parser.set_defaults(file=None, passes_flags_on=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(handler=_version)
    return parser


def _version(options: argparse.Namespace) -> int:  # noqa: ARG001 - every handler takes the options
    sys.stdout.write(f"videotrain {__version__}\n")
    return 0
