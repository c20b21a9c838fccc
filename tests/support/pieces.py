"""How parameters are shared among ranks where no engine does it."""

from videotrain_trainer.sharded_state import numel, pack


def even_share(shapes, ranks, rank):
    """The pieces of `rank` if all parameters, one behind the other, are cut into `ranks` equal runs."""
    total = sum(numel(shape) for shape in shapes.values())
    share = -(-total // ranks)
    low, high = rank * share, min((rank + 1) * share, total)
    spans, begin = [], 0
    for name, shape in shapes.items():
        end = begin + numel(shape)
        start, stop = max(begin, low), min(end, high)
        spans.append((name, start - begin, stop - start))
        begin = end
    return pack(spans)
