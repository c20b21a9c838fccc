"""What the tests have the trainer's image run: `python trainer_programs.py NAME`. Nothing but the image is needed."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def step() -> None:
    """Two steps of a real stage: DeepSpeed, a checkpoint and final weights, on a tiny encoded set."""
    from support.training_worlds import final_weights, make_latents, run_world, train_config

    folder = Path(tempfile.mkdtemp())
    config = train_config(folder, make_latents(folder), steps=2, precision="bf16")
    result = run_world(folder, config, 1)
    print(result.outcomes, [step.step for step in result.steps], len(final_weights(folder)))


def compiled_block() -> None:
    """A block of the model through Inductor, forward and backward, beside the same block without."""
    import torch

    from videotrain_trainer import models

    model = models.build("mmdit-tiny", autoencoder="hunyuan-vae-tiny", text_encoder=None, seed=1)
    block = model.single_blocks[0]
    x_BSD, vec_BD = torch.randn(2, 24, 64), torch.randn(2, 64)
    rope = (torch.randn(2, 1, 24, 8), torch.randn(2, 1, 24, 8))

    def gradient(call: object) -> torch.Tensor:
        leaf = x_BSD.clone().requires_grad_()
        call(leaf, vec_BD, rope).square().mean().backward()
        return leaf.grad

    expected = gradient(block)
    largest = expected.abs().max().item()  # of a mean over 3,072 numbers, so far below one
    difference = (gradient(torch.compile(block, fullgraph=True)) - expected).abs().max().item()
    kept = list(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.so"))
    # float32 in another order, and other instructions on other CPUs: some hundred roundings of 6e-8.
    print(difference < 1e-4 * largest, len(kept) > 0)


def triton_launcher() -> None:
    """A kernel for Hopper, and a module in C that Triton builds as it builds its launchers; no GPU is needed."""
    import triton.backends.nvidia
    from triton import compiler
    from triton.backends.compiler import GPUTarget
    from triton.runtime import build

    source = compiler.ASTSource(
        _kernel(), signature={"x": "*fp32", "n": "i32", "SIZE": "constexpr"}, constexprs={"SIZE": 128}
    )
    binary = compiler.compile(source, target=GPUTarget("cuda", 90, 32))
    headers = Path(triton.backends.nvidia.__file__).parent / "include"
    code = """
        #include <Python.h>
        #include <cuda.h>
        static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "launcher", NULL, -1, NULL};
        PyMODINIT_FUNC PyInit_launcher(void) {
            PyObject *made = PyModule_Create(&module);
            PyModule_AddIntConstant(made, "version", CUDA_VERSION);
            return made;
        }
    """
    module = build.compile_module_from_src(code, "launcher", include_dirs=[str(headers)])
    print(len(binary.asm["cubin"]) > 0, module.version >= 13000)


def _kernel() -> object:
    import triton
    import triton.language as tl

    @triton.jit
    def doubled(x, n, SIZE: tl.constexpr):
        at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        tl.store(x + at, 2 * tl.load(x + at, at < n), at < n)

    return doubled


def flash_attention() -> None:
    """FlashAttention 4 can be imported, and torch can put it in the place of its own."""
    from flash_attn.cute.interface import flash_attn_func
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    activate_flash_attention_impl("FA4")
    print(flash_attn_func.__name__, current_flash_attention_impl())


if __name__ == "__main__":
    globals()[sys.argv[1]]()
