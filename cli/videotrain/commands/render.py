"""`videotrain render`: the Kubernetes objects that the operator would create for a manifest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from videotrain.commands.formats import as_yaml
from videotrain.manifest_file import Source, load_run
from videotrain_api.render.objects import render_objects
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.rules.pod_security import PodPolicy
from videotrain_api.schema import Json


def print_objects(
    source: Path | Source,
    pod_policy: PodPolicy,
    defaults: RunDefaults,
    *,
    as_json: bool,
    one: bool = False,
    summary: bool = False,
) -> int:
    """Print the objects of the first stage on an empty cluster.

    Args:
        source: manifest.
        pod_policy: what its worker pods have to keep to.
        defaults: of the cluster.
        as_json: a List as JSON instead of YAML documents.
        one: of the worker pods, which differ in their index alone, only the first.
        summary: a line for each kind, instead of the objects.

    Returns:
        Exit code.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused.
    """
    run = load_run(source, pod_policy, defaults)
    objects = render_objects(run, defaults=defaults)
    pods = [each for each in objects if each["kind"] == "Pod"]
    if one:
        objects = [each for each in objects if each["kind"] != "Pod" or each is pods[0]]
    if summary:
        sys.stdout.write(_heading(run) + "".join(f"{line}\n" for line in _summary(objects)))
        return 0
    if as_json:
        document = {"apiVersion": "v1", "kind": "List", "items": objects}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return 0
    sys.stdout.write(_heading(run))
    if one and len(pods) > 1:
        sys.stdout.write(f"# Left out: {len(pods) - 1} worker pods like the one below.\n")
    for each in objects:
        sys.stdout.write("---\n" + as_yaml(each))
    return 0


def _summary(objects: Sequence[Json]) -> Iterator[str]:
    for kind in dict.fromkeys(each["kind"] for each in objects):
        names = [each["metadata"]["name"] for each in objects if each["kind"] == kind]
        shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" if kind == "Pod" else ", ".join(names)
        yield f"{len(names):>4} {kind:<14} {shown}"
    pod = next(each for each in objects if each["kind"] == "Pod")
    for container in pod["spec"]["containers"]:
        amounts = ", ".join(f"{name} {amount}" for name, amount in container["resources"].get("limits", {}).items())
        yield f"     each pod       image {container['image']}; limits: {amounts or 'none'}"


def _heading(run: VideoTrainingRun) -> str:
    first, *later = [(s.name, node_counts(node_bounds(run, s))[-1]) for s in run.spec.stages]
    lines = [f"# {run.metadata.name}: created for stage {first[0]}, up to {first[1]} worker pods, on an empty cluster."]
    lines += [f"# stage {name}: up to {nodes} worker pods." for name, nodes in later]
    lines.append(
        "# The network policy is that of the chart's defaults; the operator in a cluster names its own namespace."
    )
    return "\n".join([*lines, "# Labels with the run's uid are filled in once it exists.\n"])
