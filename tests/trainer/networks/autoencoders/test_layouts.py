import pytest
import torch
from support.autoencoders import tiny_dc_ae
from support.model_fixtures import Fixture

from videotrain_trainer.networks.autoencoders.layouts import LAYOUTS, Place, from_ours, to_ours

DIFFUSERS = LAYOUTS["diffusers-image-dc-ae"]
NAMES = {
    "encoder.conv_in.weight": "encoder.project_in.conv.weight",
    "encoder.conv_out.bias": "encoder.project_out.main.op_list.0.conv.bias",
    "decoder.conv_in.weight": "decoder.project_in.main.conv.weight",
    "decoder.norm_out.weight": "decoder.project_out.op_list.0.weight",
    "decoder.conv_out.weight": "decoder.project_out.op_list.2.conv.weight",
    "encoder.down_blocks.0.0.conv1.bias": "encoder.stages.0.op_list.0.main.conv1.conv.bias",
    "encoder.down_blocks.0.0.conv2.weight": "encoder.stages.0.op_list.0.main.conv2.conv.weight",
    "encoder.down_blocks.0.0.norm.bias": "encoder.stages.0.op_list.0.main.conv2.norm.bias",
    "encoder.down_blocks.0.2.conv.weight": "encoder.stages.0.op_list.2.main.conv.weight",
    "decoder.up_blocks.4.0.conv.bias": "decoder.stages.4.op_list.0.main.conv.conv.bias",
    "decoder.up_blocks.3.1.attn.to_qkv_multiscale.0.proj_in.weight": (
        "decoder.stages.3.op_list.1.context_module.main.aggreg.0.0.weight"
    ),
    "encoder.down_blocks.3.0.attn.to_qkv_multiscale.0.proj_out.weight": (
        "encoder.stages.3.op_list.0.context_module.main.aggreg.0.1.weight"
    ),
    "encoder.down_blocks.3.0.attn.norm_out.weight": "encoder.stages.3.op_list.0.context_module.main.proj.norm.weight",
    "encoder.down_blocks.3.0.conv_out.conv_inverted.bias": (
        "encoder.stages.3.op_list.0.local_module.main.inverted_conv.conv.bias"
    ),
    "encoder.down_blocks.3.0.conv_out.conv_depth.weight": (
        "encoder.stages.3.op_list.0.local_module.main.depth_conv.conv.weight"
    ),
    "encoder.down_blocks.3.0.conv_out.conv_point.weight": (
        "encoder.stages.3.op_list.0.local_module.main.point_conv.conv.weight"
    ),
    "encoder.down_blocks.3.0.conv_out.norm.bias": "encoder.stages.3.op_list.0.local_module.main.point_conv.norm.bias",
}
"""diffusers' names of an `AutoencoderDC`, and ours."""


@pytest.mark.parametrize("theirs", NAMES)
def test_names_of_diffusers_dc_ae_are_ours_and_back(theirs):
    assert DIFFUSERS.to_ours(theirs) == Place(NAMES[theirs])
    assert DIFFUSERS.from_ours(NAMES[theirs]) == (theirs,)


def test_split_projections_of_diffusers_are_row_blocks_of_ours():
    ours = "encoder.stages.5.op_list.2.context_module.main.qkv.conv.weight"
    theirs = tuple(f"encoder.down_blocks.5.2.attn.to_{kind}.weight" for kind in "qkv")
    assert DIFFUSERS.from_ours(ours) == theirs
    assert [DIFFUSERS.to_ours(name) for name in theirs] == [Place(ours, part, 3, True) for part in range(3)]
    out = "encoder.stages.5.op_list.2.context_module.main.proj.conv.weight"
    assert DIFFUSERS.to_ours("encoder.down_blocks.5.2.attn.to_out.weight") == Place(out, matrix=True)


@pytest.mark.parametrize(("layout", "model"), [(n, m) for n in LAYOUTS for m in ("hunyuan_vae", "video_dc_ae")])
def test_every_published_name_survives_the_way_there_and_back(layout, model):
    names = Fixture("manifest").facts["models"][model]["tensors"]
    found = LAYOUTS[layout]
    files = [name for ours in names for name in found.from_ours(ours)]
    assert len(set(files)) == len(files)
    for ours in names:
        parts = found.from_ours(ours)
        assert [found.to_ours(name) for name in parts] == [
            Place(ours, part, len(parts), found.to_ours(name).matrix) for part, name in enumerate(parts)
        ]
    identical = layout != "diffusers-image-dc-ae"
    assert (set(files) == set(names)) is (identical or model == "hunyuan_vae")


def picture_state():
    """Tensors of a tiny DC-AE as one for pictures has them."""
    state = tiny_dc_ae(3).state_dict()
    return {name: tensor[:, :, 0] if tensor.dim() == 5 else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("layout", ["image-dc-ae", "diffusers-image-dc-ae"])
def test_a_round_trip_of_a_picture_autoencoder_is_bit_equal(layout):
    ours, found = picture_state(), LAYOUTS[layout]
    theirs = from_ours(ours, found)
    back = to_ours(theirs, found)
    assert list(back) == list(ours)
    assert all(torch.equal(back[name], ours[name]) and back[name].shape == ours[name].shape for name in ours)
    if layout == "diffusers-image-dc-ae":
        assert theirs["encoder.down_blocks.3.0.attn.to_q.weight"].shape == (32, 32)
        assert theirs["decoder.up_blocks.3.1.attn.to_out.weight"].shape == (32, 64)
        assert theirs["encoder.down_blocks.3.0.attn.to_qkv_multiscale.0.proj_in.weight"].shape == (96, 1, 5, 5)
    assert all(tensor.is_contiguous() for tensor in theirs.values())


def test_a_file_without_one_of_the_projections_is_refused_by_name():
    theirs = from_ours(picture_state(), DIFFUSERS)
    del theirs["encoder.down_blocks.3.0.attn.to_k.weight"]
    with pytest.raises(ValueError, match=r"the file has 2 of its 3 row blocks; all are needed: .*attn\.to_k\.weight"):
        to_ours(theirs, DIFFUSERS)
