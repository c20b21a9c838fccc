"""`videotrain get` of a cluster: its runs in a table, or one with all that its status tells."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from videotrain.commands.cluster_runs import ClusterChoice, ask, find_run, list_runs
from videotrain.commands.formats import Output, write_runs
from videotrain.commands.get import print_run
from videotrain.commands.top import row_of
from videotrain.commands.top_table import print_runs_table
from videotrain_api.schema import Json
from videotrain_operator.kube.client import KubeClient


def print_runs(names: Sequence[str], where: ClusterChoice, output: Output) -> int:
    """Print runs of a cluster.

    Args:
        names: NAME or NAMESPACE/NAME of each; all runs if empty.
        where: the cluster.
        output: how.

    Raises:
        UsageError: one of them is not there, or the cluster cannot be asked.
    """

    async def read(client: KubeClient) -> list[Json]:
        return [await find_run(client, where, name) for name in names] or await list_runs(client, where)

    runs = ask(where, read)
    if output != "table":
        write_runs(runs, output)
    elif len(names) == 1:
        print_run(Console() if sys.stdout.isatty() else Console(width=160), runs[0])
    else:
        print_runs_table([row_of(run) for run in runs])
    return 0
