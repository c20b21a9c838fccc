import sys
import types

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.nn.attention import SDPBackend, current_flash_attention_impl
from torch.utils._python_dispatch import TorchDispatchMode

from videotrain_api.config.presets import TRANSFORMERS
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks import attention as calls
from videotrain_trainer.networks import attention_kernels
from videotrain_trainer.networks.attention_kernels import (
    KERNELS,
    AttentionCase,
    attention_case,
    attention_kernel,
    candidates,
)
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import SingleBlock

CPU = AttentionCase(device=torch.device("cpu"), dtype=torch.bfloat16, heads=2, head_dim=16)
FUSED, PLAIN = "_scaled_dot_product_flash_attention_for_cpu", "_safe_softmax"


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def operations():
    with Operations() as found, torch.no_grad():
        calls.attention(*CPU.tensors(32))
    return found.names


def flash_attn(**functions):
    module = types.ModuleType("flash_attn")
    vars(module).update(functions)
    return module


def right(q, k, v):
    """What `flash_attn_func` computes: tokens before heads."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@pytest.fixture
def packages_on_cpu(monkeypatch):
    """The CPU takes the packages' place on a GPU."""
    kernels = {name: KERNELS[name] for name in KERNELS}
    changed = {n: vars(k) | {"on_cpu": True, "order": KERNELS["flash"].order} for n, k in kernels.items()}
    monkeypatch.setattr(
        attention_kernels, "KERNELS", {n: attention_kernels.Kernel(**fields) for n, fields in changed.items()}
    )


@pytest.mark.parametrize(
    ("wanted", "named", "runs", "does_not"),
    [("auto", "flash", FUSED, PLAIN), ("flash", "flash", FUSED, PLAIN), ("math", "math", PLAIN, FUSED)],
)
def test_what_is_named_is_what_runs_and_only_within_the_block(wanted, named, runs, does_not):
    before = operations()
    with attention_kernel(wanted, CPU) as name:
        assert name == named
        found = operations()
        assert runs in found and does_not not in found
    assert operations() == before


@pytest.mark.parametrize("name", ["cudnn", "flash2", "flash3", "flash4"])
def test_a_kernel_of_gpus_is_refused_on_a_cpu_by_its_field(name):
    with (
        pytest.raises(ConfigError, match=rf"train\.attention: '{name}' does not run here: it needs a GPU"),
        attention_kernel(name, CPU),
    ):
        pass


def test_the_choice_is_that_of_the_first_rank():
    with attention_kernel("auto", CPU, agree=lambda name: "math" if name == "flash" else name) as name:
        assert name == "math"
        assert PLAIN in operations()


def test_flash_attention_2_runs_by_its_own_function_where_it_is_named(monkeypatch, packages_on_cpu):
    shapes = []

    def called(q, k, v):
        shapes.append(tuple(q.shape))
        return right(q, k, v)

    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn(flash_attn_func=called))
    with attention_kernel("flash2", CPU) as name:
        assert name == "flash2"
        shapes.clear()
        calls.attention(*CPU.tensors(32))
        assert shapes == [(1, 32, 2, 16)]
        # Not in float32, nor for the wide heads of autoencoders, which the package cannot do.
        calls.attention(*(x.float() for x in CPU.tensors(32)))
        calls.attention(*AttentionCase(device=CPU.device, dtype=CPU.dtype, heads=1, head_dim=512).tensors(32))
        assert len(shapes) == 1
    calls.attention(*CPU.tensors(32))
    assert len(shapes) == 1


def test_a_package_on_the_path_changes_nothing_unless_it_is_chosen(monkeypatch):
    def never(*_):
        raise AssertionError("called")

    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn(flash_attn_func=never))
    with attention_kernel("auto", CPU) as name:
        assert name == "flash"
        assert FUSED in operations()


@pytest.mark.parametrize(
    ("functions", "why"),
    [
        ({}, "no flash_attn_func; it is not FlashAttention 2"),
        ({"flash_attn_func": lambda q, _k, _v: q}, "its results are wrong"),
        ({"flash_attn_func": lambda q, _k, _v: q * float("nan")}, "its results are wrong"),
    ],
)
def test_a_package_that_is_another_one_or_wrong_is_refused_at_set_up(monkeypatch, packages_on_cpu, functions, why):
    """FlashAttention 4 also installs a `flash_attn`; the first step failed for want of the function."""
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn(**functions))
    with pytest.raises(ConfigError, match=f"'flash2' does not run here: .*{why}"), attention_kernel("flash2", CPU):
        pass


def test_flash_attention_3_and_4_are_activated_by_torch_and_put_back(monkeypatch, packages_on_cpu):
    activated = []

    class Handle:
        def remove(self):
            activated.append("removed")

    for torchs, module in (("FA3", "flash_attn_interface"), ("FA4", "flash_attn.cute.interface")):

        def register(name=torchs):
            activated.append(name)
            return Handle()

        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setitem(torch.nn.attention._registry._FLASH_ATTENTION_IMPLS, torchs, register)
    for name, torchs in (("flash3", "FA3"), ("flash4", "FA4")):
        with attention_kernel(name, CPU) as chosen:
            assert (chosen, current_flash_attention_impl()) == (name, torchs)
        assert current_flash_attention_impl() is None
    assert activated == ["FA3", "removed"] * 2 + ["FA4", "removed"] * 2


@pytest.mark.parametrize("name", ["flash3", "flash4"])
def test_packages_that_are_not_there_are_named(packages_on_cpu, name):
    module = KERNELS[name].module
    with pytest.raises(ConfigError, match=f"{module} cannot be imported"), attention_kernel(name, CPU):
        pass


@pytest.mark.parametrize(
    ("capability", "dtype", "first"),
    [
        ((9, 0), torch.bfloat16, "cudnn"),
        ((10, 0), torch.bfloat16, "cudnn"),
        ((8, 0), torch.bfloat16, "flash"),
        ((9, 0), torch.float32, "efficient"),
    ],
)
def test_cudnn_is_first_on_hopper_and_later_gpus(monkeypatch, capability, dtype, first):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    case = AttentionCase(device=torch.device("cuda"), dtype=dtype, heads=24, head_dim=128)
    assert candidates(case)[0] == first


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ({"cudnn": 1.0, "flash": 1.9, "flash2": 1.8, "flash3": 0.99}, "cudnn"),
        ({"cudnn": 1.0, "flash": 1.9, "flash3": 0.9}, "flash3"),
        ({"cudnn": 1.0, "flash2": 1.8, "flash3": 0.9, "flash4": 0.7}, "flash4"),
    ],
)
def test_a_package_takes_cudnns_place_only_if_it_is_measured_to_be_faster(monkeypatch, seconds, fastest):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(attention_kernels, "_seconds", lambda name, _case: seconds[name])

    def tried(kernel, _case):
        if kernel.name not in seconds:
            raise attention_kernels._Unusable("not installed")

    monkeypatch.setattr(attention_kernels, "_try", tried)
    case = AttentionCase(device=torch.device("cuda"), dtype=torch.bfloat16, heads=24, head_dim=128)
    assert attention_kernels._choice("auto", case) == fastest


def test_every_kernel_leaves_torch_something_for_masks_and_wide_heads():
    assert all(kernel.order[-1] == SDPBackend.MATH for kernel in KERNELS.values())


@pytest.mark.parametrize("kernel", ["flash", "math", "flash2"])
def test_no_kernel_breaks_the_graph_of_a_block(monkeypatch, packages_on_cpu, kernel):
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn(flash_attn_func=right))
    model = TRANSFORMERS["mmdit-tiny-dcae"]
    case = attention_case(model, torch.device("cpu"), torch.bfloat16)
    facts = {"hidden_size": model.hidden_size, "num_heads": model.num_heads, "rope_axes": tuple(model.rope_axes)}
    config = MMDiTConfig(
        in_channels=4,
        context_dim=8,
        pooled_dim=8,
        double_blocks=1,
        single_blocks=1,
        mlp_ratio=2.0,
        patch_size=1,
        cond_embed=False,
        guidance_embed=False,
        **facts,
    )
    block = SingleBlock(config).bfloat16()
    x, vec = torch.randn(1, 12, case.heads * case.head_dim).bfloat16(), torch.randn(1, case.heads * case.head_dim)
    rope = (torch.randn(1, 1, 12, case.head_dim // 2),) * 2
    torch._dynamo.reset()
    with attention_kernel(kernel, case):
        found = torch._dynamo.explain(block)(x, vec.bfloat16(), rope)
    assert (found.graph_count, found.graph_break_count) == (1, 0)
