"""What copies in memory take, against the shares of a checkpoint."""

from videotrain_api.cost.peer_copies import copies_bytes

FLAGSHIP = 11_891_390_528
"""Parameters of the 11B transformer."""


def test_a_node_holds_its_own_share_and_another_ones_twice():
    # 28 nodes: a node's share of a checkpoint of 142.7 GB is 5.1 GB.
    assert copies_bytes(FLAGSHIP, 28, average=False) == 4 * 12 * -(-FLAGSHIP // 28)
    assert round(copies_bytes(FLAGSHIP, 28, average=False) / 1e9, 1) == 20.4
    assert round(copies_bytes(FLAGSHIP, 28, average=True) / 1e9, 1) == 27.2


def test_a_node_alone_holds_its_own_share_only():
    assert copies_bytes(FLAGSHIP, 1, average=False) == 2 * 12 * FLAGSHIP
    assert copies_bytes(FLAGSHIP, 2, average=False) == 2 * 12 * FLAGSHIP
