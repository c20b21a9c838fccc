"""All objects of a run as they are first created, for `videotrain render`."""

from __future__ import annotations

from videotrain_api.crd.wire import Manifest
from videotrain_api.frozen_config import config_data, data_hash
from videotrain_api.render.config import render_config_map
from videotrain_api.render.defaults import NO_DEFAULTS
from videotrain_api.render.names import config_map_name
from videotrain_api.render.network import NetworkRules, render_network_policy
from videotrain_api.render.pod import render_pod
from videotrain_api.render.roster import render_roster
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds


def render_objects(
    run: VideoTrainingRun, network: NetworkRules | None = None, defaults: RunDefaults = NO_DEFAULTS
) -> list[Manifest]:
    """The config maps, the network policy and the worker pods of the first stage.

    Args:
        run: the run.
        network: what who installed the operator decided about networks; the chart's defaults if unset.
        defaults: what they set for every run.

    Raises:
        ManifestError: the run cannot be resolved.
    """
    data = config_data(run)
    name = config_map_name(run, data_hash(data))
    pods = node_counts(node_bounds(run, run.spec.stages[0]))[-1]
    fixed = [render_config_map(run, name, data), render_roster(run, None, None)]
    fixed.append(render_network_policy(run, network or NetworkRules()))
    return fixed + [render_pod(run, index, name, defaults=defaults) for index in range(pods)]
