import pytest
import torch

from videotrain_trainer.diffusion.conditioning import Given, References, condition_of, given_frames, pack_condition
from videotrain_trainer.diffusion.flow_matching import SIGMA_MIN, interpolate, shift_alpha, time_shift, velocity
from videotrain_trainer.diffusion.sampler import (
    NEGATIVE,
    PROMPT,
    UNCONDITIONED,
    Guidance,
    Sampler,
    TextPair,
    branch_weights,
    combine,
    euler,
    frame_scales,
    oscillate,
    text_scale,
    time_grid,
)
from videotrain_trainer.networks.packing import pack, position_ids, unpack

pytestmark = pytest.mark.numeric

EPS, EPS_64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
PACKING = ["p2", "p1", "image"]
CONDITIONS = ["head", "tail", "loop", "v2v_head", "v2v_tail", "v2v_head_easy", "v2v_tail_easy", "v2v_head_noncausal"]
CONDITIONS += ["v2v_tail_easy_noncausal", "head_patch1", "t2v", "image_ignores_ref", "mixed_batch"]
GUIDANCE = ["osc_dyn", "plain", "dyn_only", "text_osc_only"]
SAMPLING = ["t2v", "i2v_head", "i2v_loop_osc", "i2v_model_without_reference", "dc_ae_t2v", "image_distilled"]


def case_of(found, name):
    return next(case for case in found.facts["cases"] if case["name"] == name)


def test_every_case_of_the_published_fixtures_is_tried(fixture):
    for name, tried in (
        ("packing", PACKING),
        ("conditions", CONDITIONS),
        ("guidance", GUIDANCE),
        ("sampling", SAMPLING),
    ):
        assert [case["name"] for case in fixture(name).facts["cases"]] == tried


@pytest.mark.parametrize("name", PACKING)
def test_packing_and_position_ids_are_the_published_ones(name, fixture):
    found = fixture("packing")
    patch = case_of(found, name)["patch_size"]
    latent = found[f"{name}.latent"]
    tokens = pack(latent, patch)
    assert torch.equal(tokens, found[f"{name}.tokens"])
    assert torch.equal(unpack(tokens, *latent.shape[2:], patch), latent)
    assert torch.equal(position_ids(*latent.shape[2:], patch, len(latent)), found[f"{name}.img_ids"])


def given_of(found, name, kind, item):
    refs = [found[f"{name}.ref.{item}.{i}"] for i in range(2) if f"{name}.ref.{item}.{i}" in found.tensors]
    if not refs:
        return Given()
    head = refs[0] if kind.startswith(("i2v_head", "i2v_loop", "v2v_head")) else None
    tail = refs[-1] if kind.startswith(("i2v_tail", "i2v_loop", "v2v_tail")) else None
    return Given(head, tail)


@pytest.mark.parametrize("name", CONDITIONS)
def test_condition_tensors_are_the_published_ones(name, fixture):
    found = fixture("conditions")
    case = case_of(found, name)
    batch, *shape = case["latent_shape"]
    items = [condition_of(tuple(shape), given_of(found, name, case["cond_type"], i)) for i in range(batch)]
    mask, latent = (torch.stack(parts) for parts in zip(*items, strict=True))
    assert torch.equal(mask, found[f"{name}.mask"])
    assert torch.equal(latent, found[f"{name}.latent"])
    assert torch.equal(pack_condition(mask, latent, case["patch_size"]), found[f"{name}.packed"])


def test_given_video_frames_are_cut_from_the_clip_and_given_pictures_are_not(fixture):
    found = fixture("conditions")
    clip = torch.randn(3, 10, 2, 3)
    first, last = torch.randn(3, 1, 2, 3), torch.randn(3, 1, 2, 3)
    references = References(clip_CTHW=clip, first_C1HW=first, last_C1HW=last, videos={})
    for kind in ("v2v_head", "v2v_tail"):
        given = given_frames(kind, references, causal=False)
        mask, latent = condition_of((3, 10, 2, 3), given)
        assert mask.sum() == 8 * 2 * 3
        assert torch.equal(latent, clip * mask)
    assert torch.equal(found["v2v_head_noncausal.mask"][0], condition_of((3, 10, 2, 3), Given(clip[:, :8]))[0])
    loop = given_frames("i2v_loop", references, causal=False)
    assert torch.equal(loop.head_CFHW, first)
    assert torch.equal(loop.tail_CFHW, last)


def test_alpha_time_shift_grids_and_oscillation_match_the_published_tables(fixture):
    facts = fixture("schedule").facts
    tolerance = facts["tolerance"]
    for row in facts["alpha"]:
        assert shift_alpha(row["tokens_per_latent_frame"], row["latent_frames"]) == pytest.approx(
            row["alpha"], rel=4 * EPS_64
        )
    for row in facts["time_shift"]:
        assert float(time_shift(row["alpha"], torch.tensor(row["t"]))) == pytest.approx(row["out"], abs=tolerance)
    for row in facts["schedules"]:
        alpha = row["shift_alpha"] or shift_alpha(row["tokens_per_latent_frame"], row["latent_frames"])
        grid = time_grid(row["num_steps"], alpha if row["shift"] else 1.0)
        assert grid.dtype == torch.float32
        assert grid.tolist() == pytest.approx(row["timesteps"], abs=tolerance)
    for row in facts["oscillation"]:
        assert oscillate(row["guidance"], row["step"]) == row["out"]


@pytest.mark.parametrize("name", GUIDANCE)
def test_the_euler_loop_with_stored_predictions_follows_the_published_trajectory(name, fixture):
    found = fixture("guidance")
    case = case_of(found, name)
    _, frames, rows, columns = case["latent"]
    patch, steps, batch = case["patch_size"], case["num_steps"], case["batch"]
    per_frame = rows * columns // patch**2
    grid = time_grid(steps, shift_alpha(per_frame, frames))
    assert grid.tolist() == pytest.approx(case["timesteps"], abs=16 * EPS)  # of times up to 1, shifted by a quotient
    seen = []

    def stored(step, x, t):
        assert t == float(grid[step])
        if step:
            seen.append(x)
        scales = case["scales"][step]
        image = torch.tensor(scales["image_per_latent_frame"]).repeat_interleave(per_frame)[:, None]
        parts = found[f"{name}.predictions"][step].split(batch)
        branches = dict(zip((PROMPT, NEGATIVE, UNCONDITIONED), parts, strict=True))
        return combine(branches, branch_weights(scales["text"], image))

    final = euler(found[f"{name}.noise"], grid, stored)
    found.check(f"{name}.final", final)
    found.check(f"{name}.trajectory", torch.stack([*seen, final]))


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_scales_of_each_step_and_frame_are_the_published_ones(name, fixture):
    case = case_of(fixture("guidance"), name)
    guidance = Guidance(
        text=case["guidance"],
        image=case["guidance_img"],
        oscillate_text=case["text_osci"],
        oscillate_image=case["image_osci"],
        dynamic_image=case["scale_temporal_osci"],
    )
    for row in case["scales"]:
        scales = frame_scales(guidance, row["step"], case["num_steps"], case["latent"][1], "i2v_head")
        # Two linspaces, one within the other, each rounded thrice.
        assert scales.tolist() == pytest.approx(row["image_per_latent_frame"], rel=6 * EPS)
        assert text_scale(guidance, row["step"]) == row["text"]


class Counting:
    """Counts the rows that a model is asked for."""

    def __init__(self, model):
        self.rows = 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _model, _args, kwargs):
        self.rows += len(kwargs["img_BNI"])


ROWS = {
    "t2v": 8,
    "i2v_head": 12,
    "i2v_loop_osc": 37,
    "i2v_model_without_reference": 8,
    "dc_ae_t2v": 8,
    "image_distilled": 4,
}


@pytest.mark.parametrize("name", SAMPLING)
def test_complete_sampling_gives_the_published_latent_with_fewer_model_rows(name, fixture, mmdit):
    found = fixture("sampling")
    case = case_of(found, name)
    model = mmdit(case["model"]).eval()
    counting = Counting(model)
    txt, pooled = found[f"{name}.txt"], found[f"{name}.y_vec"]
    text = TextPair(
        context_BLD=txt[:1], pooled_BP=pooled[:1], negative_context_BLD=txt[-1:], negative_pooled_BP=pooled[-1:]
    )
    sampler = Sampler(model, case["num_steps"], Guidance(text=case["guidance"], image=case["guidance_img"]))
    given = given_of(found, name, case["cond_type"], 0)
    found.check(f"{name}.final", sampler.draw(found[f"{name}.noise"], text, case["cond_type"], given))
    assert counting.rows == ROWS[name]  # published: three per step, one for the distilled model


def test_times_inputs_and_targets_of_training_are_the_published_ones(fixture):
    found = fixture("training")
    for row in found.facts["timestep"]:
        frames, rows, columns = row["latent_thw"]
        alpha = shift_alpha(rows * columns / 4, frames)
        assert alpha == pytest.approx(row["alpha"], rel=4 * EPS_64)
        found.check(row["out"], time_shift(alpha, found["t.normal"].sigmoid()))
    assert found.facts["sigma_min"] == SIGMA_MIN
    found.check("x_t", interpolate(found["x0"], found["x1"], found["t"]))
    found.check("target", velocity(found["x0"], found["x1"]))


def test_one_training_step_has_the_published_loss_and_gradients(fixture, mmdit):
    from types import SimpleNamespace

    from videotrain_trainer.diffusion.flow_matching import flow_loss

    found, model = fixture("training"), mmdit("mmdit_i2v")
    ids, txt = found["img_ids"], found["txt"]
    txt_ids = torch.zeros(*txt.shape[:2], 3)
    inputs = SimpleNamespace(target_BNI=found["target"])
    prediction = model(found["x_t"], ids, txt, txt_ids, found["t"], found["y_vec"], found["cond"])
    found.check("pred", prediction)
    loss = flow_loss(prediction, inputs)
    found.check("loss", loss.detach()[None])
    found.check("canned_loss", flow_loss(found["canned_pred"], inputs)[None])
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in found.tensors:
        if name.startswith("grad."):
            found.check(name, gradients[name.removeprefix("grad.")])
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    # Of the norm's seven digits the sinusoid, whose angles go up to 1000, may take three.
    assert norms == pytest.approx(found.facts["grad_l2"], rel=2e-4)
