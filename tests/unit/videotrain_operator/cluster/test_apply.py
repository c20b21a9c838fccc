import pytest

from videotrain_operator.cluster import apply as applying
from videotrain_operator.cluster.apply import batches


def pod(index):
    return {"kind": "Pod", "metadata": {"name": f"w{index}"}, "spec": {}}


def roster(index, **head):
    return {"kind": "Pod", "metadata": {"name": f"w{index}", "uid": "u"} | head}


def test_pods_go_together_and_the_first_roster_of_a_generation_goes_alone():
    service, config = {"kind": "Service", "metadata": {}}, {"kind": "ConfigMap", "metadata": {}}
    first = roster(0, resourceVersion="7")
    found = list(batches([service, config, pod(0), pod(1), first, roster(1), roster(2), config]))
    assert found == [[service, config], [pod(0), pod(1)], [first], [roster(1), roster(2)], [config]]


async def test_a_failed_write_is_raised_when_its_neighbours_are_done():
    done = []

    async def good():
        done.append(1)

    async def bad():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await applying._together([bad(), good()])
    assert done == [1]
