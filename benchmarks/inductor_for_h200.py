"""Inductor's code for a Hopper GPU, made on a machine without one: fake CUDA tensors, and the properties of an H200.

Nothing is compiled to a binary or run. The process believes in that GPU from `pretend` on, so give it one of its own.
Bound to the internals of torch 2.13.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=143_771 * 2**20,
    max_threads_per_multi_processor=2048,
    warp_size=32,
    regs_per_multiprocessor=65536,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
    is_integrated=False,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
)


def pretend() -> None:
    """Make torch, Triton and Inductor believe in one H200."""
    import torch._inductor.async_compile as async_compile
    import torch._inductor.fx_passes.reinplace as reinplace
    import torch.utils._triton as triton_there
    from torch._dynamo.device_interface import CudaInterface
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    def always(value) -> Callable:
        return lambda *_args, **_kwargs: value

    cuda = torch.cuda
    cuda.is_available, cuda.device_count, cuda.current_device = always(True), always(1), always(0)
    cuda.get_device_properties, cuda.get_device_capability = always(H200), always((9, 0))
    cuda.get_device_name, cuda.is_initialized = always(H200.name), always(False)
    cuda._lazy_init, cuda.synchronize, cuda.set_rng_state = always(None), always(None), always(None)
    cuda.get_rng_state = always(torch.zeros(16, dtype=torch.uint8, device="cpu"))
    triton_there.has_triton, triton_there.triton_hash_with_backend = always(True), always("none")
    target = SimpleNamespace(
        get_current_target=always(GPUTarget("cuda", 90, 32)),
        get_current_device=always(0),
        get_current_stream=always(0),
    )
    driver._active = driver._default = target
    for name in ("is_available", "is_triton_capable"):
        setattr(CudaInterface, name, staticmethod(always(True)))
    CudaInterface.get_compute_capability = staticmethod(always(90))
    CudaInterface.current_device = CudaInterface.Worker.current_device = staticmethod(always(0))
    CudaInterface.device_count = staticmethod(always(1))
    CudaInterface.get_device_properties = staticmethod(always(H200))
    CudaInterface.Worker.get_device_properties = staticmethod(always(H200))
    async_compile.AsyncCompile.triton = always(None)
    reinplace._inplace_generalized_scatter = lambda inp, _src, _view_ops: inp


class Code(NamedTuple):
    """What Inductor makes of a graph."""

    text: str
    """Its Python wrapper."""
    elementwise_bytes: int
    """Read and written by its own kernels, those of products and attention left out."""


class Lowered(SimpleNamespace):
    """A block's two graphs: Inductor's code for each, and what the forward graph hands to the backward graph."""

    forward: Code
    backward: Code
    outputs: int
    """Results of the block among what the forward graph returns; the rest is kept for the backward graph."""
    kept: list[tuple[int | None, int]]
    """Of each tensor that is kept: which argument it is or views, parameters first, or None; and its bytes."""


class _Enough(Exception):
    """The graphs are lowered; they are not to be run."""


def lower(
    block: nn.Module,
    inputs: Sequence[Tensor | Sequence[Tensor]],
    attend: Callable[..., Tensor],
    how: str,
    kept: frozenset[str],
) -> Lowered:
    """Forward and backward code of a block on inputs of the meta device.

    Args:
        block: on the meta device.
        inputs: of its forward pass, attention left out.
        attend: the attention, last argument of the forward pass.
        how: `none`, `selective` or `full`.
        kept: names of the operations whose results `selective` keeps, such as `aten.mm`.
    """
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table
    from torch.utils._pytree import tree_flatten, tree_unflatten

    mode, found = FakeTensorMode(allow_non_fake_inputs=True), Lowered()
    flat, spec = tree_flatten(tuple(inputs))
    names = [name for name, _ in block.named_parameters()]

    def call(*values):
        weights = dict(zip(names, values[: len(names)], strict=True))
        out = torch.func.functional_call(block, weights, (*tree_unflatten(list(values[len(names) :]), spec), attend))
        return out if isinstance(out, tuple) else (out,)

    def split(joint, joint_inputs, **options):
        if how != "none":
            mark(joint, frozenset() if how == "full" else kept)
        forward, backward = min_cut_rematerialization_partition(joint, joint_inputs, compiler="inductor", **options)
        found.outputs = options["num_fwd_outputs"]
        found.backward = code_of(backward, mode, is_backward=True)
        return forward, backward

    def compile_forward(graph, _inputs):
        found.kept = kept_values(graph, found.outputs)
        found.forward = code_of(graph, mode, is_backward=False)
        raise _Enough

    def fake(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device="cpu").requires_grad_(x.requires_grad)

    with mode:
        arguments = [fake(x) for x in (*block.parameters(), *flat)]
        run = aot_function(
            call,
            fw_compiler=compile_forward,
            partition_fn=split,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )
        try:
            run(*arguments)
        except _Enough:
            return found
    raise AssertionError("the forward graph was never compiled")


def mark(joint, kept: frozenset[str]) -> None:
    """Tell the partitioner which nodes of the forward pass are kept and which are recomputed."""
    for node in joint.graph.nodes:
        backward = node.meta.get("partitioner_tag") == "is_backward" or "backward" in node.name
        if node.op != "call_function" or backward or node.meta.get("autograd_backward"):
            continue
        source = node.args[0].target if node.target is operator.getitem else node.target
        name = str(getattr(source, "overloadpacket", source))
        node.meta["ac_graph_id"] = 1
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if name in kept else CheckpointPolicy.PREFER_RECOMPUTE


def kept_values(graph_module, outputs: int) -> list[tuple[int | None, int]]:
    """See `Lowered.kept`."""
    aten = torch.ops.aten
    views = (aten.permute.default, aten.t.default, aten.view.default)
    arguments = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    returned = next(node for node in graph_module.graph.nodes if node.op == "output").args[0]
    values = {node.name: node for node in returned[outputs:] if hasattr(node, "meta")}
    found = []
    for node in values.values():
        tensor = node.meta["val"]
        if isinstance(tensor, Tensor):
            source = node
            while source.op == "call_function" and source.target in views:
                source = source.args[0]
            place = arguments.index(source) if source in arguments else None
            found.append((place, tensor.numel() * tensor.element_size()))
    return found


def code_of(graph_module, mode: FakeTensorMode, *, is_backward: bool) -> Code:
    """Inductor's code of a graph, as for a CUDA device."""
    from torch._inductor.compile_fx import _recursive_post_grad_passes, fake_tensor_prop
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    for node in graph_module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph_module.recompile()
    values = [node.meta["val"] for node in graph_module.graph.nodes if node.op == "placeholder"]
    with mode:
        inputs = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda:0") if isinstance(x, Tensor) else x
            for x in values
        ]
    view_to_reshape(graph_module)
    with V.set_fake_mode(mode), torch.no_grad():
        fake_tensor_prop(graph_module, inputs, True)
        _recursive_post_grad_passes(graph_module, is_inference=False)
        lowering = GraphLowering(graph_module, example_inputs=inputs, is_inference=False, is_backward=is_backward)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            code, _ = lowering.codegen()
            traffic = lowering.count_bytes()[1]
    words = sum(count for node, count in traffic if "Extern" not in type(node).__name__)
    return Code(code.value if hasattr(code, "value") else str(code), 4 * words)  # counted in words of 4 bytes


def runnable(code: str) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """The wrapper's `call` over meta tensors: it allocates and frees as a GPU's, and computes nothing."""
    body = re.search(r"^( *)def call\(self, args\):\n.*?^\1    return [^\n]*\n", code, re.DOTALL | re.MULTILINE)
    assert body is not None, "Inductor's wrapper has a method `call`"
    indent = len(body[1])
    source = "\n".join(line[indent:] for line in body[0].splitlines())
    # Attention that runs twice keeps the state of the random numbers, of which it takes none.
    source = source.replace("torch.ops.higher_order.", "higher_order.")
    higher_order = SimpleNamespace(
        run_and_save_rng_state=lambda run, *args, **kwargs: (None, run(*args, **kwargs)),
        run_with_rng_state=lambda _state, run, *args, **kwargs: run(*args, **kwargs),
    )
    nothing = SimpleNamespace(run=lambda *_args, **_kwargs: None)
    names = dict.fromkeys(re.findall(r"\b(triton_\w+)\.run\(", source), nothing)
    cuda = SimpleNamespace(_DeviceGuard=lambda _: torch.no_grad(), set_device=lambda _: None)
    space = {
        **names,
        "torch": _Torch(cuda),
        "aten": torch.ops.aten,
        "higher_order": higher_order,
        "extern_kernels": _Nothing(),
        "get_raw_stream": lambda _: 0,
        "assert_size_stride": lambda *_: None,
        "assert_alignment": lambda *_: None,
        "empty_strided_cuda": lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device="meta"),
        "reinterpret_tensor": lambda x, size, stride, offset=0: x.as_strided(size, stride, x.storage_offset() + offset),
    }
    exec(source, space)
    return lambda arguments: space["call"](None, arguments)


class _Nothing:
    """Kernels that write into buffers made before them."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class _Torch:
    """torch, but for what its CUDA part is asked."""

    def __init__(self, cuda: SimpleNamespace) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)
