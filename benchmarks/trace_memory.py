"""What a block of the transformer keeps and needs on the way, traced on the project's model without memory or a GPU.

Every tensor of one forward and one backward pass on torch's meta device is counted from its birth to its death, and its
size is read as a product of what it depends on (image tokens, text tokens, hidden size, ...), so one trace at sizes
without a common factor is true for all sizes. `write` puts what was found into `videotrain_api.cost.traced`, from which
`videotrain plan` and the rules calculate without torch; `check` compares, `check --compiled` what Inductor makes, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from autoencoder_memory import LiveBytes
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.testing._internal.distributed.fake_pg import FakeStore

from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import DoubleBlock, MMDiT, SingleBlock
from videotrain_trainer.parallel.activation import KEPT, TrainedBlocks
from videotrain_trainer.parallel.context import SplitAttention

SHARED = ("heads", "ring3", "ring8")
POLICIES = ("none", "selective", "full")
FEATURES = (
    *(f"{stream}_{width}" for stream in ("image", "text") for width in ("hidden", "mlp", "heads", "head", "one")),
    "image_patch",
    "image_condition",
    "text_context",
    "sample_hidden",
    "hidden_hidden",
    "hidden_mlp",
    "one",
)
"""What bytes are proportional to; `videotrain_api.cost.memory` multiplies with it."""
IMAGE, TEXT, SAMPLES, HIDDEN, MLP, HEADS, HEAD = 2309, 509, 13, 3072, 9728, 24, 128
"""Sizes of the trace: products of them tell what they are made of."""
PATCH_SIZE, PATCH, CONTEXT, POOLED, AXES = 2, 68, 4099, 768, (16, 56, 56)
"""Features of an image token and of a text token before the model, of a text, and of a head by axis."""


def index(name: str) -> int:
    return FEATURES.index(name)


class Sizes:
    """Reads the number of a storage's elements as multiples of features.

    Args:
        scratch: take a number that fits nothing for partial sums of a kernel; an error otherwise.
    """

    def __init__(self, *, scratch: bool = False) -> None:
        self._known: dict[int, dict[str, int]] = {}
        self.scratch = scratch
        streams = {("image",): IMAGE, ("text",): TEXT, ("image", "text"): IMAGE + TEXT}
        widths = [({"hidden": i, "mlp": j}, i * HIDDEN + j * MLP) for i, j in product(range(8), range(3))][1:]
        # Exchanges between four ranks cut a token's width into quarters.
        widths += [({"hidden": quarters / 4}, quarters * HIDDEN // 4) for quarters in (1, 2, 3, 6)]
        widths += [({"heads": 1}, HEADS), ({"heads": 2}, 2 * HEADS)]
        widths += [({"head": n / HEAD}, n) for n in (*AXES, *(a // 2 for a in AXES), HEAD, HEAD // 2)]
        widths += [({"one": 1}, 1), ({"one": 3}, 3)]
        for (names, tokens), (counts, width) in product(streams.items(), widths):
            self._learn({f"{n}_{w}": c for n in names for w, c in counts.items() if c}, SAMPLES * tokens * width)
        condition = PATCH + PATCH_SIZE**2
        self._learn({"image_patch": 1}, SAMPLES * IMAGE * PATCH)
        self._learn({"image_condition": 1}, SAMPLES * IMAGE * condition)
        self._learn({"text_context": 1}, SAMPLES * TEXT * CONTEXT)
        for width in (PATCH, condition, CONTEXT, 256, POOLED):
            self._learn({"one": width * HIDDEN}, width * HIDDEN)
        for i, j in list(product(range(8), range(3)))[1:]:
            self._learn({"hidden_hidden": i, "hidden_mlp": j}, HIDDEN * (i * HIDDEN + j * MLP))
            self._learn({"one": i * HIDDEN + j * MLP}, i * HIDDEN + j * MLP)
            if not j:
                self._learn({"sample_hidden": i}, SAMPLES * HIDDEN * i)

    def _learn(self, counts: dict[str, float], elements: int) -> None:
        counts = {name: count for name, count in counts.items() if count}
        if self._known.setdefault(elements, counts) != counts:
            raise ValueError(f"{elements} elements may be {counts} or {self._known[elements]}: choose other sizes")

    def of(self, tensor: Tensor) -> np.ndarray:
        """Bytes of a tensor's storage, by feature."""
        itemsize = tensor.element_size()
        elements = tensor.untyped_storage().nbytes() // itemsize
        if elements not in self._known and tensor.numel() in self._known:
            elements = tensor.numel()  # with gaps between its rows
        found = np.zeros(len(FEATURES))
        if elements not in self._known and self.scratch and elements < SAMPLES * (IMAGE + TEXT) * HIDDEN:
            # Partial sums of a kernel: their number follows from the tokens in steps that nothing else needs to know.
            for name in ("image_one", "text_one"):
                found[index(name)] = elements * itemsize / (SAMPLES * (IMAGE + TEXT))
            return found
        if elements < 4 * HIDDEN and elements not in self._known:
            found[index("one")] = elements * itemsize
            return found
        if elements not in self._known:
            raise ValueError(f"{elements} elements are no product of the sizes of the trace")
        for name, count in self._known[elements].items():
            found[index(name)] = count * itemsize
        return found


class LiveVectors(LiveBytes):
    """Bytes alive after each operation, by feature."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.live, self.events = sizes, np.zeros(len(FEATURES)), []
        self._vectors: dict[int, np.ndarray] = {}
        self.outside: set[int] = set()

    def leave_out(self, tensors):
        """Do not count what is there before: weights and inputs."""
        self.outside = {tensor.untyped_storage()._cdata for tensor in tensors}

    def hold(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.outside:
            return
        if key not in self._known:
            self._vectors[key] = self.sizes.of(tensor)
            self.live = self.live + self._vectors[key]
        super().hold(tensor)

    def _forget(self, key, size):
        super()._forget(key, size)
        self.live = self.live - self._vectors.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(function, types, args, kwargs)
        self.events.append(self.live)
        return out


class Trace(NamedTuple):
    """One block or layer; vectors of bytes by feature."""

    kept: np.ndarray
    """From its forward to its backward pass, its output with it."""
    forward: list[np.ndarray]
    """Most that is alive in its forward pass, whatever the sizes: the largest of these."""
    backward: list[np.ndarray]
    """The same in its backward pass. A weight's gradient goes as soon as it is there: engines have their own room."""


def config(double: int = 1, single: int = 1) -> MMDiTConfig:
    return MMDiTConfig(
        in_channels=PATCH,
        context_dim=CONTEXT,
        pooled_dim=POOLED,
        hidden_size=HIDDEN,
        num_heads=HEADS,
        double_blocks=double,
        single_blocks=single,
        mlp_ratio=MLP / HIDDEN,
        rope_axes=AXES,
        patch_size=PATCH_SIZE,
        cond_embed=True,
        guidance_embed=False,
    )


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention as a GPU runs it: one operation that keeps queries, keys, values, result and a number per row."""
    return torch.ops.aten._scaled_dot_product_cudnn_attention(queries, keys, values, None, True)[0]


def free_gradients(module: nn.Module) -> None:
    for parameter in (p for p in module.parameters() if p.requires_grad):
        parameter.register_post_accumulate_grad_hook(lambda x: setattr(x, "grad", None))


def shared_attention(name: str, tokens: int = IMAGE + TEXT) -> SplitAttention:
    """Attention of one of several ranks that share a sequence, by `heads` or in so many parts of a `ring`.

    The ranks are pretended: a group of processes that never exchanges anything.
    """
    ranks = 4 if name == "heads" else int(name.removeprefix("ring"))
    if not dist.is_initialized():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    group = dist.group.WORLD.group_name
    return SplitAttention(
        attend=fused_attention,
        lengths=(tokens,) * ranks,
        place=0,
        head_ranks=ranks if name == "heads" else 1,
        head_group=group,
        ring_group=group,
    )


def trace_eager(kind: str, how: str, attend: Callable[..., Tensor] = fused_attention) -> Trace:
    """One block as torch runs it operation by operation."""
    with torch.device("meta"):
        block = (DoubleBlock if kind == "double" else SingleBlock)(config()).to(torch.bfloat16)
        TrainedBlocks([block]).recompute(how)
        free_gradients(block)
        streams, vec, rope = inputs(kind)
        live = LiveVectors(Sizes())
        live.leave_out((*block.parameters(), *streams, vec, *rope))
        with live:
            out = block(*streams, vec, rope, attend)
            outs = list(out) if isinstance(out, tuple) else [out]
            forward, kept = live.events, live.live
            live.events = []
            edges = [get_gradient_edge(x) for x in outs]
            gradients = [torch.empty_like(x) for x in outs]
            del out, outs
            torch.autograd.backward(edges, gradients)
            backward = live.events
    return Trace(kept, largest(forward), largest(backward))


def trace_compiled(kind: str, how: str) -> Trace:
    """One block as torch.compile runs it: the same count over Inductor's own code, with its kernels left out."""
    import inductor_for_h200 as inductor

    with torch.device("meta"):
        block = (DoubleBlock if kind == "double" else SingleBlock)(config()).to(torch.bfloat16)
        streams, vec, rope = inputs(kind)
    lowered = inductor.lower(block, (*streams, vec, rope), fused_attention, how, KEPT)
    outside = [*block.parameters(), *streams, vec, *rope]
    live = LiveVectors(Sizes(scratch=True))
    live.leave_out(outside)
    with live, torch.no_grad():
        results = list(inductor.runnable(lowered.forward.text)([x.detach() for x in outside]))
        forward, kept = live.events, live.live
        live.events = []
        outs, saved = results[: lowered.outputs], results[lowered.outputs :]
        gradients = [torch.empty_like(x) for x in outs]
        del results, outs
        arguments = [*saved, *gradients]
        del saved, gradients
        inductor.runnable(lowered.backward.text)(arguments)
    return Trace(kept, largest(forward), largest(live.events))


def trace_edges() -> Trace:
    """Everything but the blocks: inputs, embeddings, rotary tables, last layer and loss."""
    with torch.device("meta"):
        model = MMDiT(config(0, 0)).to(torch.bfloat16)
        live = LiveVectors(Sizes())
        live.leave_out(model.parameters())

        def loss() -> Tensor:
            image, text = (SAMPLES, IMAGE), (SAMPLES, TEXT)
            latents = torch.empty(*image, PATCH)
            target = torch.empty_like(latents) - latents
            condition = torch.empty(*image, PATCH + PATCH_SIZE**2)
            words = torch.empty(*text, CONTEXT)
            ids = torch.empty(*image, 3), torch.empty(*text, 3)
            vectors = torch.empty(SAMPLES), torch.empty(SAMPLES, POOLED)
            return F.mse_loss(model(latents, ids[0], words, ids[1], *vectors, condition).float(), target)

        with live:
            before: list[np.ndarray] = []
            # Each block keeps the rotary tables.
            tables = [torch.empty(SAMPLES, 1, IMAGE + TEXT, HEAD // 2) for _ in range(2)]
            model.final_layer.register_forward_pre_hook(lambda *_: before.extend(live.events))
            free_gradients(model)
            loss().backward()
            del tables
    kept = before[-1].copy()
    # The streams, joined, take the place of what the last two-stream block gave, which is kept there.
    kept[[index("image_hidden"), index("text_hidden")]] -= 2
    return Trace(kept, largest(before), largest(live.events[len(before) :]))


def inputs(kind: str):
    new = partial(torch.empty, dtype=torch.bfloat16, requires_grad=True)
    tokens = IMAGE + TEXT
    rope = tuple(torch.empty(SAMPLES, 1, tokens, HEAD // 2, dtype=torch.float32) for _ in range(2))
    lengths = (IMAGE, TEXT) if kind == "double" else (tokens,)
    return [new(SAMPLES, n, HIDDEN) for n in lengths], new(SAMPLES, HIDDEN), rope


def grid() -> np.ndarray:
    """Features at many sizes, one a row."""
    rows = []
    for image, text, hidden, ratio, samples in product(
        (16, 256, 2304, 20736, 131072), (16, 128, 512), (64, 1024, 3072, 6144), (1, 2, 4, 8), (1, 4, 64)
    ):
        widths = (hidden, ratio * hidden, hidden // 64, 64, 1)
        rows.append(
            [
                *(samples * image * w for w in widths),
                *(samples * text * w for w in widths),
                *(samples * image * w for w in (64, 68)),
                samples * text * 4096,
                samples * hidden,
                hidden**2,
                ratio * hidden**2,
                1,
            ]
        )
    return np.array(rows, dtype=float)


def largest(events: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The few of the events that are the largest at some size."""
    table, sizes = np.array(events), grid()
    chosen: list[int] = []
    best = np.zeros(len(sizes))
    values = sizes @ table.T
    # Within a thousandth of the largest everywhere; the likeliest first.
    while True:
        lacking = values.max(axis=1) > best * 1.001
        if not lacking.any():
            return [table[i] for i in sorted(chosen)]
        winners = values[lacking].argmax(axis=1)
        chosen.append(int(np.bincount(winners).argmax()))
        best = np.maximum(best, values[:, chosen[-1]])


FILE = Path("api/videotrain_api/cost/traced.py")
HEADER = '''"""Memory of the transformer's blocks, traced by `python benchmarks/trace_memory.py write`; do not edit."""

from typing import Final, Literal, NamedTuple

Kernels = Literal["eager", "compiled"]
Kind = Literal["double", "single"]
Shared = Literal["heads", "ring3", "ring8"]
Vector = tuple[float, ...]
"""Bytes per unit of each of FEATURES."""


class Trace(NamedTuple):
    """Memory of one block in bfloat16, its inputs left out. A maximum is the largest of its vectors at any sizes."""

    kept: Vector
    """From its forward to its backward pass, its output with it."""
    forward: tuple[Vector, ...]
    """Most in its forward pass."""
    backward: tuple[Vector, ...]
    """Most in its backward pass. Gradients of weights go as soon as they are there: engines have their own room."""


'''


def traces(kernels: str) -> dict[tuple[str, str, str], Trace]:
    """Every block under every policy."""
    trace = trace_eager if kernels == "eager" else trace_compiled
    return {(kernels, how, kind): trace(kind, how) for how, kind in product(POLICIES, ("double", "single"))}


def shared_traces() -> dict[tuple[str, str, str], Trace]:
    """Every block under every policy where ranks share sequences."""
    return {
        (name, how, kind): trace_eager(kind, how, shared_attention(name))
        for name, how, kind in product(SHARED, POLICIES, ("double", "single"))
    }


def text_of(edges: Trace, blocks: dict[tuple[str, str, str], Trace], shared: dict[tuple[str, str, str], Trace]) -> str:
    lines = ["FEATURES: Final = (", *(f'    "{name}",' for name in FEATURES), ")"]
    lines += ['"""Tokens of image and text by the width of what a token has; see `videotrain_api.cost.memory`."""']
    lines += ["", "# fmt: off", f"EDGES: Final = {code(edges)}"]
    lines += ['"""Everything but the blocks: inputs, embeddings and rotary tables, which stay; last layer and loss."""']
    lines += [
        "BLOCKS: Final = {",
        *(f"    {key!r}: {code(trace)},".replace("'", '"') for key, trace in blocks.items()),
        "}",
    ]
    lines += ['"""By kernels, policy of recomputation and kind of block."""']
    lines += [
        "SHARED: Final = {",
        *(f"    {key!r}: {code(trace)},".replace("'", '"') for key, trace in shared.items()),
        "}",
    ]
    lines += [
        '"""Eager blocks where ranks share a sequence, by heads or in parts of a ring, by one rank\'s tokens."""',
        "# fmt: on",
    ]
    return HEADER + "\n".join(lines) + "\n"


def code(trace: Trace) -> str:
    def vector(values: np.ndarray) -> str:
        return "(" + ", ".join(f"{value:g}" for value in np.round(values, 3)) + ")"

    def vectors(many: Sequence[np.ndarray]) -> str:
        return "(" + "".join(f"\n        {vector(values)}," for values in many) + "\n    )"

    return f"Trace(\n    {vector(trace.kept)},\n    {vectors(trace.forward)},\n    {vectors(trace.backward)},\n)"


def stale(edges: Trace, blocks: dict[tuple[str, str, str], Trace]) -> list[str]:
    """Names of traces that the file tells otherwise."""
    from videotrain_api.cost import traced

    found = [] if traced.FEATURES == FEATURES else ["FEATURES"]
    told = {"EDGES": traced.EDGES, **traced.BLOCKS, **traced.SHARED}
    for name, trace in {"EDGES": edges, **blocks}.items():
        if eval(code(trace), {"Trace": traced.Trace}) != told.get(name):
            found.append(str(name))
    return found


def main() -> int:
    """Exit code: 1 if the file says otherwise than the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("--compiled", action="store_true", help="check compiled blocks, too; takes minutes")
    options = parser.parse_args()
    edges, blocks, shared = trace_edges(), traces("eager"), shared_traces()
    if options.compiled or options.action == "write":
        import inductor_for_h200

        dist.destroy_process_group()
        inductor_for_h200.pretend()
        blocks |= traces("compiled")
    if options.action == "write":
        FILE.write_text(text_of(edges, blocks, shared), "utf-8")
        return 0
    old = stale(edges, {**blocks, **shared})
    sys.stderr.writelines(
        f"{FILE}: {name} is not what the model does; run: python {sys.argv[0]} write\n" for name in old
    )
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
