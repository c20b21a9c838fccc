"""What Inductor makes of the transformer's blocks for a Hopper GPU, on a machine that has none.

Run as a program, since it makes torch, Triton and Inductor believe in an H200: fake tensors on a faked device are
lowered and code is generated; nothing is compiled to a binary or run. Prints counts as JSON. Bound to the internals of
the torch that the trainer pins.

A unit is hidden size x 2 bytes, what a bfloat16 stream takes per token.
"""

from __future__ import annotations

import copy
import json
import operator
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch._dynamo
from torch._dynamo import device_interface
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy

WIDTH, HEADS, IMAGE, TEXT = 3072, 24, 20_736, 512
"""Of the 11B model, and of a 768px clip of 33 frames."""
UNIT = 2 * WIDTH
aten = torch.ops.aten


class Hopper:
    """Properties of an H200, as torch tells them."""

    name, gcnArchName = "NVIDIA H200", ""
    major, minor, multi_processor_count, total_memory = 9, 0, 132, 150_000_000_000
    max_threads_per_multi_processor, warp_size, regs_per_multiprocessor = 2048, 32, 65_536
    L2_cache_size, is_integrated = 50 << 20, False
    shared_memory_per_block, shared_memory_per_block_optin, shared_memory_per_multiprocessor = 49_152, 232_448, 233_472


class Target:
    """Triton's driver of it."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, *_: Any) -> int:
        return 0


def always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def pretend() -> None:
    """One H200, as far as torch, Triton and Inductor ask."""
    import torch._inductor.async_compile as async_compile
    import torch._inductor.fx_passes.reinplace as reinplace
    import torch.utils._triton as triton_facts
    from triton.runtime.driver import driver

    answers = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": Hopper()}
    answers |= {"get_device_capability": (9, 0), "get_device_name": Hopper.name, "is_initialized": False}
    answers |= {"_lazy_init": None, "synchronize": None, "set_rng_state": None}
    answers |= {"get_rng_state": torch.zeros(16, dtype=torch.uint8)}
    for name, value in answers.items():
        setattr(torch.cuda, name, always(value))
    face = device_interface.CudaInterface
    answers = {"is_available": True, "is_triton_capable": True, "get_compute_capability": 90, "current_device": 0}
    for name, value in (answers | {"device_count": 1, "get_device_properties": Hopper()}).items():
        setattr(face, name, staticmethod(always(value)))
    face.Worker.get_device_properties = staticmethod(always(Hopper()))
    face.Worker.current_device = staticmethod(always(0))
    triton_facts.has_triton, triton_facts.triton_hash_with_backend = always(True), always("x")
    driver._active = driver._default = Target()
    async_compile.AsyncCompile.triton = always(None)  # would compile to a binary
    reinplace._inplace_generalized_scatter = lambda inp, _src, _views: inp


def lowered(gm: Any, inputs: list[Any], backward: bool, mode: FakeTensorMode) -> dict[str, Any]:
    """Kernels of one graph, and elementwise traffic in bytes."""
    from torch._inductor.compile_fx import _recursive_post_grad_passes, fake_tensor_prop
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    for node in gm.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    gm.recompile()
    with mode:
        inputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0")
            if isinstance(x, torch.Tensor)
            else x
            for x in inputs
        ]
    view_to_reshape(gm)
    with V.set_fake_mode(mode), torch.no_grad():
        fake_tensor_prop(gm, inputs, True)
        _recursive_post_grad_passes(gm, is_inference=False)
        graph = GraphLowering(gm, example_inputs=inputs, is_inference=False, is_backward=backward)
        with V.set_graph_handler(graph), V.set_debug_handler(DebugContext()):
            graph.run(*inputs)
            code = graph.codegen()[0]
            traffic = graph.count_bytes()[1]
    text = "\n".join(line for line in code.value.splitlines() if not line.strip().startswith("#"))
    words = sum(count for node, count in traffic if "Extern" not in type(node).__name__)
    return {
        "elementwise kernels": len(re.findall(r"triton_\w+?\.run\(", text)),
        "products": len(re.findall(r"extern_kernels\.\w+\(", text)),
        "attention forward": len(re.findall(r"_scaled_dot_product_cudnn_attention\.default\(", text)),
        "attention backward": len(re.findall(r"_scaled_dot_product_cudnn_attention_backward\.default\(", text)),
        "traffic": round(4 * words / (IMAGE + TEXT) / UNIT, 1),  # counted in words of 4 bytes
    }


def tagged(joint: Any, policy: str) -> None:
    """Mark the nodes of the joint graph as the checkpoint of the policy does when it is traced."""
    from videotrain_trainer.parallel.activation import KEPT

    def kept(node: Any) -> bool:
        if node.target is operator.getitem:
            return kept(node.args[0])
        return str(getattr(node.target, "overloadpacket", "")) in KEPT

    for node in joint.graph.nodes:
        forward = node.meta.get("partitioner_tag") != "is_backward" and "backward" not in node.name
        if node.op == "call_function" and forward and not node.meta.get("autograd_backward"):
            keep = policy == "selective" and kept(node)
            node.meta["ac_graph_id"] = 1
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


class Lowered(Exception):
    """The forward graph is lowered; it is not to be run."""


def counts(kind: str, policy: str) -> dict[str, Any]:
    """Of one block with one sample, forward and backward."""
    from torch._inductor.decomposition import select_decomp_table

    mode = FakeTensorMode(allow_non_fake_inputs=False)
    block = made(kind)
    parameters = dict(block.named_parameters())
    found: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    with mode:
        streams = [IMAGE, TEXT] if kind == "double" else [IMAGE + TEXT]
        xs = [torch.empty(1, n, WIDTH, dtype=torch.bfloat16, requires_grad=True) for n in streams]
        vec = torch.empty(1, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        rope = [torch.empty(1, 1, IMAGE + TEXT, WIDTH // HEADS // 2) for _ in range(2)]
        weights = [torch.empty(p.shape, dtype=p.dtype, requires_grad=True) for p in parameters.values()]

        def call(weights: list[Any], vec: Any, cos: Any, sin: Any, *xs: Any) -> tuple[Any, ...]:
            own = dict(zip(parameters, weights, strict=True))
            out = torch.func.functional_call(block, own, (*xs, vec, (cos, sin), cudnn))
            return out if isinstance(out, tuple) else (out,)

        def split(joint: Any, inputs: Any, **keywords: Any) -> tuple[Any, Any]:
            if policy != "none":
                tagged(joint, policy)
            forward, backward = min_cut_rematerialization_partition(joint, inputs, compiler="inductor", **keywords)
            graphs["backward"] = copy.deepcopy(backward)
            return forward, backward

        def forward(gm: Any, inputs: list[Any]) -> None:
            found["saved"] = round(saved_bytes(gm, len(xs)) / (IMAGE + TEXT) / UNIT, 2)
            found["forward"] = lowered(gm, inputs, False, mode)
            raise Lowered

        compiled = aot_function(
            call,
            fw_compiler=forward,
            bw_compiler=lambda gm, _: gm,
            partition_fn=split,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )
        with suppress(Lowered):
            compiled(weights, vec, *rope, *xs)
        inputs = [node.meta["val"] for node in graphs["backward"].graph.nodes if node.op == "placeholder"]
        found["backward"] = lowered(graphs["backward"], inputs, True, mode)
    return found


def cudnn(q: Any, k: Any, v: Any) -> Any:
    return aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[0]


def made(kind: str) -> torch.nn.Module:
    from videotrain_trainer.networks.mmdit.config import MMDiTConfig
    from videotrain_trainer.networks.mmdit.model import DoubleBlock, SingleBlock

    config = MMDiTConfig(
        in_channels=64,
        context_dim=4096,
        pooled_dim=768,
        hidden_size=WIDTH,
        num_heads=HEADS,
        double_blocks=1,
        single_blocks=1,
        mlp_ratio=4.0,
        rope_axes=(16, 56, 56),
        patch_size=2,
        cond_embed=True,
        guidance_embed=False,
    )
    with torch.device("meta"):
        return (DoubleBlock if kind == "double" else SingleBlock)(config).to(torch.bfloat16)


def saved_bytes(gm: Any, streams: int) -> int:
    """Bytes that the forward graph hands to the backward one, but for weights, their views and rotation tables."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    given, outputs = placeholders[-streams:], next(n for n in gm.graph.nodes if n.op == "output").args[0]

    def is_weight(node: Any) -> bool:
        while node.op == "call_function" and node.target in (aten.permute.default, aten.t.default, aten.view.default):
            node = node.args[0]
        return node in placeholders and node not in given

    values = {o.name: o.meta["val"] for o in outputs[streams:] if hasattr(o, "meta") and not is_weight(o)}
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    pretend()
    wanted = [argument.split("/") for argument in sys.argv[1:]]
    print(json.dumps({f"{kind}, {policy}": counts(kind, policy) for kind, policy in wanted}))
