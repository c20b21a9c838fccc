import pytest

from videotrain_operator.cluster import apply as applying
from videotrain_operator.cluster.apply import batches


def pod(index):
    return {"kind": "Pod", "metadata": {"name": f"w{index}"}, "spec": {}}


def test_pods_go_together_and_the_roster_goes_alone():
    service, config = {"kind": "Service", "metadata": {}}, {"kind": "ConfigMap", "metadata": {}}
    roster = {"kind": "ConfigMap", "metadata": {"resourceVersion": "7"}, "data": {"roster.json": "{}"}}
    found = list(batches([service, config, pod(0), pod(1), roster, config]))
    assert found == [[service, config], [pod(0), pod(1)], [roster], [config]]


async def test_a_failed_write_is_raised_when_its_neighbours_are_done():
    done = []

    async def good():
        done.append(1)

    async def bad():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await applying._together([bad(), good()])
    assert done == [1]
