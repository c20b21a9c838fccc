"""Which node a waiting pod gets."""

import pytest

from videotrain.embedded.scheduler import place

GPU = "nvidia.com/gpu"


def node(name, ready="True", labels=None, gpus=4, cordoned=False):
    conditions = [{"type": "Ready", "status": ready}]
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"unschedulable": cordoned},
        "status": {"conditions": conditions, "allocatable": {GPU: str(gpus)}},
    }


def pod(run="r", gpus=2, on=None, phase="Pending", **spec):
    body = {"containers": [{"resources": {"limits": {GPU: str(gpus), "cpu": "64"}}}], **spec}
    body |= {"nodeName": on} if on else {}
    return {"metadata": {"labels": {"videotrain.dev/run": run}}, "spec": body, "status": {"phase": phase}}


def avoiding(*names):
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in names]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


@pytest.mark.parametrize(
    ("waiting", "others", "expected"),
    [
        (pod(), [], "a"),
        (pod(), [pod(on="a", phase="Running")], "b"),
        (pod(), [pod(on="a", phase="Failed")], "a"),
        (pod(), [pod("other", on="a", phase="Running")], "a"),
        (pod(gpus=3), [pod("other", on="a", phase="Running")], "b"),
        (pod(gpus=5), [], None),
        (pod(nodeSelector={"pool": "x"}), [], "b"),
        (pod(nodeSelector={"pool": "y"}), [], None),
        (pod(affinity=avoiding("a")), [], "b"),
        (pod(affinity=avoiding("a", "b")), [], None),
    ],
)
def test_the_first_fitting_node_is_taken(waiting, others, expected):
    assert place(waiting, [*others, waiting], [node("a"), node("b", labels={"pool": "x"})]) == expected


def test_nodes_that_are_not_ready_or_cordoned_take_nothing():
    assert place(pod(), [], [node("a", ready="False"), node("b", cordoned=True)]) is None
