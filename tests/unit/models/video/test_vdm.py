import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from vw2_robot.models.video.code_projection import CodeProjection, key_steps, visible_keys
from vw2_robot.models.video.config import Geometry, VDMConfig
from vw2_robot.models.video.cosmos import CLEAN_TIME
from vw2_robot.models.video.noise_levels import CHANGE_STD, sample_times
from vw2_robot.models.video.vdm import VDM
from vw2_robot.random_numbers import SampleNoise

GEOMETRY = Geometry(channels=3, latent_steps=3, height=4, width=4, queries=4, fsq_dims=4)
TINY = VDMConfig(heads=2, head_dim=12, layers=2, adaln_lora_dim=8, context_width=16, control_width=8, code_dropout=0.0)


def build(**change):
    """A VDM whose zero-initialized layers were moved a little, so that nothing is hidden by a zero."""
    torch.manual_seed(0)
    model = VDM(replace(TINY, **change), GEOMETRY)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def noise_of(count, seed=0):
    return SampleNoise(seed, 0, stream=0, samples=range(count))


def inputs(batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noisy, first = (torch.randn(batch, 3, *shape, generator=generator) for shape in ((4, 4, 4), (4, 4)))
    codes = torch.rand(batch, 3, 4, 4, generator=generator) * 2 - 1
    return noisy, torch.full((batch,), 0.7), first, codes


class FreeContext(nn.Module):
    """Stands for the projection, so that gradients say which keys the transformer saw."""

    def __init__(self):
        super().__init__()
        self.keys = torch.randn(1, 13, 16, requires_grad=True)

    def forward(self, codes):
        return self.keys.expand(len(codes), -1, -1)


def keys_seen_by(model, frame, **options):
    context = FreeContext()
    model.projection = context
    model.velocity(*inputs(), control_video=None, **options)[:, :, frame].square().sum().backward()
    return {key for key in range(13) if context.keys.grad[0, key].abs().max() > 0}


@pytest.mark.parametrize(
    ("visibility", "frame", "expected"),
    [
        ("causal", 0, {0}),
        ("causal", 2, set(range(9))),
        ("causal", 3, set(range(13))),
        ("current", 0, {0}),
        ("current", 2, {0, 5, 6, 7, 8}),
        ("current", 3, {0, 9, 10, 11, 12}),
        ("none", 0, set(range(13))),
        ("none", 2, set(range(13))),
    ],
)
def test_a_frame_sees_exactly_the_keys_of_its_visibility(visibility, frame, expected):
    # One layer: later layers see, through earlier frames, what these saw.
    model = build(code_visibility=visibility, layers=1)
    assert keys_seen_by(model, frame) == expected


def test_codes_that_are_dropped_leave_the_null_token_alone():
    assert keys_seen_by(build(), 3, keep_codes=torch.tensor([False])) == {0}
    model = build()
    noisy, time, first, codes = inputs(batch=2)
    other = codes.flip(0)
    keep = torch.tensor([True, False])
    before, after = (model.velocity(noisy, time, first, c, control_video=None, keep_codes=keep) for c in (codes, other))
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("visibility", ["causal", "current", "none"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_no_row_is_without_a_visible_key(visibility, steps):
    keys = key_steps(steps, 4, torch.device("cpu"))
    assert len(keys) == 1 + 4 * steps
    frames = torch.arange(steps + 1).repeat_interleave(4)
    assert visible_keys(keys, visibility, frames).any(dim=1).all()


def test_projected_tokens_see_their_own_and_earlier_steps():
    torch.manual_seed(0)
    projection = CodeProjection(fsq_dims=4, latent_steps=3, queries=4, width=16, layers=2)
    codes = torch.rand(1, 3, 4, 4, requires_grad=True)
    tokens = projection(codes)
    assert tokens.shape == (1, 13, 16)
    tokens[:, 5:9].square().sum().backward()  # the tokens of step 2
    assert (codes.grad.abs().amax(dim=(0, 2, 3)) > 0).tolist() == [True, True, False]
    null = torch.autograd.grad(projection(codes)[:, 0].square().sum(), codes, allow_unused=True)[0]
    assert null is None or not null.any()


@pytest.mark.parametrize("strict", [True, False])
def test_the_whole_model_is_causal_exactly_with_causal_self_attention(strict):
    model = build(temporal_causal_self_attention=strict)
    noisy, time, first, codes = inputs()
    later_noise, later_codes = noisy.clone(), codes.clone()
    later_noise[:, :, 2:] = torch.randn_like(later_noise[:, :, 2:])
    later_codes[:, 1:] = -later_codes[:, 1:]  # step 2 and 3
    before = model.velocity(noisy, time, first, codes, control_video=None)
    noise_moved = model.velocity(later_noise, time, first, codes, control_video=None)
    codes_moved = model.velocity(noisy, time, first, later_codes, control_video=None)
    for moved in (noise_moved, codes_moved):
        assert not torch.allclose(moved[:, :, 2], before[:, :, 2], atol=1e-4)
        assert torch.equal(moved[:, :, :2], before[:, :, :2]) == strict


def test_a_control_branch_at_its_start_changes_no_bit():
    model = build()
    noisy, time, first, codes = inputs(batch=2)
    plain = model.velocity(noisy, time, first, codes, control_video=None)
    control_video = torch.randn_like(noisy)
    assert torch.equal(model.velocity(noisy, time, first, codes, control_video=control_video), plain)
    nn.init.normal_(model.control.out[0].weight)
    assert not torch.equal(model.velocity(noisy, time, first, codes, control_video=control_video), plain)
    assert torch.equal(model.velocity(noisy, time, first, codes, control_video=None), plain)


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_no_hook_stays_behind_neither_after_a_forward_nor_after_an_exception():
    model = build()
    before = hooks_of(model)
    noisy, time, first, codes = inputs()
    model.velocity(noisy, time, first, codes, control_video=torch.randn_like(noisy))
    assert hooks_of(model) == before
    with pytest.raises(RuntimeError):  # another size breaks inside the transformer, at block 0
        model.velocity(noisy, time, first, codes, control_video=torch.randn(1, 3, 4, 8, 8))
    assert hooks_of(model) == before


def test_the_first_frame_is_clean_marked_and_at_the_smallest_noise_level():
    model = build()
    seen = {}
    handle = model.transformer.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    noisy, time, first, codes = inputs()
    model.velocity(noisy, time, first, codes, control_video=None)
    handle.remove()
    assert pytest.approx(1e-4 / (1 + 1e-4)) == CLEAN_TIME
    torch.testing.assert_close(seen["timestep"].flatten(), torch.tensor([CLEAN_TIME, 0.7, 0.7, 0.7]))
    assert torch.equal(seen["hidden_states"][:, :, 0], first)
    assert torch.equal(seen["hidden_states"][:, :, 1:], noisy[:, :, 1:])
    assert seen["condition_mask"].amax(dim=(0, 1, 3, 4)).tolist() == [1, 0, 0, 0]
    assert seen["fps"] is None


class Answer:
    """Stands for `velocity`: answers with what the test says, and remembers what it was asked."""

    def __init__(self, error):
        self.error = error

    def __call__(self, noisy, time, first, codes, *, control_video, keep_codes=None):
        self.noisy, self.time, self.keep = noisy, time, keep_codes
        t = time[:, None, None, None, None]
        self.noise = (noisy - (1 - t) * self.latents) / t
        return self.noise - self.latents + self.error


def loss_of(error, *, latents, valid=None, seed=0, model=None, **options):
    model = model or build()
    answer = Answer(error)
    answer.latents = latents
    model.velocity = answer
    valid = torch.ones(len(latents), 3, dtype=torch.bool) if valid is None else valid
    codes = torch.zeros(len(latents), 3, 4, 4)
    noise = noise_of(len(latents), seed)
    return model.denoising_loss(latents, codes, control_video=None, valid=valid, noise=noise, **options), answer


def test_a_perfect_prediction_costs_nothing():
    loss, _ = loss_of(0.0, latents=torch.randn(4, 3, 4, 4, 4))
    assert float(loss) < 1e-9


def test_velocity_form_of_the_loss_equals_the_form_in_clean_latents():
    latents, error = torch.randn(6, 3, 4, 4, 4), torch.randn(6, 3, 4, 4, 4)
    loss, answer = loss_of(error, latents=latents)
    t = answer.time[:, None, None, None, None].double()
    sigma = t / (1 - t)
    x = answer.noisy.double() / (1 - t)  # x0 + sigma eps
    predicted = answer.noise.double() - latents.double() + error.double()
    c_skip, c_out = 1 - t, -t
    clean = c_skip * x + c_out * predicted  # method 1.12
    weighted = (1 + sigma**2) / sigma**2 * (latents.double() - clean).square()
    torch.testing.assert_close(loss.double(), weighted[:, :, 1:].mean(), rtol=1e-4, atol=1e-5)


def test_the_conditioning_frame_and_invalid_steps_cost_nothing():
    latents, valid = torch.randn(2, 3, 4, 4, 4), torch.tensor([[True, True, False], [True, False, False]])
    error = torch.zeros(2, 3, 4, 4, 4)
    error[:, :, 0] = 1e3  # the conditioning frame
    error[0, :, 3], error[1, :, 2:] = 1e3, 1e3  # padded steps
    assert float(loss_of(error, latents=latents, valid=valid)[0]) < 1e-9
    error[1, :, 1] = 1.0  # one real step of three
    loss, answer = loss_of(error, latents=latents, valid=valid)
    weight = answer.time[1] ** 2 + (1 - answer.time[1]) ** 2
    torch.testing.assert_close(loss, weight / 3, rtol=1e-4, atol=1e-6)


def test_codes_are_hidden_as_often_as_the_configuration_says():
    latents = torch.zeros(400, 3, 4, 4, 4)
    _, answer = loss_of(0.0, latents=latents, model=build(code_dropout=0.25))
    assert 60 <= int((~answer.keep).sum()) <= 140
    _, answer = loss_of(0.0, latents=latents, model=build(code_dropout=0.0))
    assert answer.keep.all()
    _, answer = loss_of(0.0, latents=latents, model=build(), drop_codes=True)
    assert not answer.keep.any()


def test_noise_levels_have_the_published_quantiles(monkeypatch):
    noise = noise_of(50_000)
    with_tail = sample_times(noise, num_frames=24)
    monkeypatch.setattr("vw2_robot.models.video.noise_levels.TAIL_PROBABILITY", 0.0)
    t = sample_times(noise, num_frames=24)
    found = t.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    torch.testing.assert_close(found, torch.tensor([0.49, 0.71, 0.83, 0.91, 0.96]), atol=0.006, rtol=0)
    shifted = sample_times(noise, num_frames=24, shift=5.0)
    level = shifted.quantile(0.5) / (1 - shifted.quantile(0.5))
    assert float(level) == pytest.approx(5 * math.sqrt(24), rel=0.02)
    high = (with_tail > 200 / 201).float().mean()
    assert 0.045 < float(high) < 0.055
    assert float(with_tail.max()) < 1


def test_the_loss_depends_on_the_seed_of_the_noise_alone():
    model, latents = build(), torch.randn(2, 3, 4, 4, 4)
    valid, codes = torch.ones(2, 3, dtype=torch.bool), inputs(2)[3]
    losses = [
        model.denoising_loss(latents, codes, control_video=None, valid=valid, noise=noise_of(2, seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("causal", [True, False])
def test_losses_of_the_parts_of_a_batch_add_up_to_its_loss(causal):
    """Also with as many samples as tokens, 16: diffusers takes a mask of two axes for one of samples and keys then."""
    model = build(temporal_causal_self_attention=causal, code_dropout=0.3)
    latents = torch.randn(16, 3, 4, 4, 4)
    codes = inputs(16)[3]
    valid = torch.rand(16, 3) < 0.7
    noise = [SampleNoise(0, 0, stream=0, samples=part) for part in (range(16), range(5), range(5, 16))]
    whole = model.denoising_loss(latents, codes, control_video=latents, valid=valid, noise=noise[0])
    parts = [
        model.denoising_loss(
            latents[part],
            codes[part],
            control_video=latents[part],
            valid=valid[part],
            noise=noise[number],
            valid_steps=valid.sum(),
        )
        for number, part in ((1, slice(5)), (2, slice(5, 16)))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_stock_diffusers_loads_what_the_wrapper_saves_and_answers_alike(tmp_path):
    from diffusers import CosmosTransformer3DModel

    model = build(code_visibility="none", temporal_causal_self_attention=False)
    fresh = CosmosTransformer3DModel.from_config(model.transformer.config)
    assert model.transformer.state_dict().keys() == fresh.state_dict().keys()
    model.transformer.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = CosmosTransformer3DModel.from_pretrained(tmp_path)
    ours = {k: v for k, v in model.state_dict().items() if k.startswith("transformer.")}
    assert {k: v.tolist() for k, v in ours.items()} == {
        f"transformer.{k}": v.tolist() for k, v in stock.state_dict().items()
    }
    noisy, time, first, codes = inputs()
    out = model.velocity(noisy, time, first, codes, control_video=None)
    mask = torch.zeros(1, 1, 4, 4, 4)
    mask[:, :, 0] = 1
    times = torch.tensor([CLEAN_TIME, 0.7, 0.7, 0.7])[None, None, :, None, None]
    x = torch.cat([first[:, :, None], noisy[:, :, 1:]], dim=2)
    alone = stock(x, times, model.projection(codes), condition_mask=mask, return_dict=False)[0]
    torch.testing.assert_close(alone, out, atol=1e-5, rtol=1e-5)


def test_a_copy_has_masks_of_its_own():
    model = build()
    clone = copy.deepcopy(model)
    noisy, time, first, codes = inputs()
    hidden = model.velocity(noisy, time, first, codes, control_video=None, keep_codes=torch.tensor([False]))
    shown = clone.velocity(noisy, time, first, codes, control_video=None)
    assert not torch.equal(hidden, shown)
    assert torch.equal(model.velocity(noisy, time, first, codes, control_video=None), shown)
    assert not any("mask" in name for name in model.state_dict())


def test_sampling_keeps_the_first_frame_and_depends_on_the_generator():
    model = build()
    _, _, first, codes = inputs(batch=2)
    clips = [
        model.sample(first, codes, control_video=None, generator=torch.Generator().manual_seed(seed), num_steps=3)
        for seed in (0, 0, 1)
    ]
    assert clips[0].shape == (2, 3, 4, 4, 4)
    assert torch.equal(clips[0][:, :, 0], first)
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[2])


def test_sampling_with_a_perfect_velocity_arrives_at_the_clip():
    """Straight paths: Euler steps of any number end at x0 up to the smallest noise level."""
    model, target = build(), torch.randn(1, 3, 4, 4, 4)
    model.velocity = lambda x, time, first, codes, *, control_video: (x - target) / time[:, None, None, None, None]
    sample = model.sample(
        target[:, :, 0], inputs()[3], control_video=None, generator=torch.Generator().manual_seed(0), num_steps=4
    )
    torch.testing.assert_close(sample, target, atol=0.01, rtol=0)


class Says(nn.Module):
    """Stands for the transformer: its output is what the test says."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, **inputs):
        return (self.output,)


def noised(t, change):
    """A clip that leaves its first frame by `change`, noise, the noisy clip, and the model that predicts changes."""
    model, (noise, _, first, codes) = build(prediction="change"), inputs()
    clean = first[:, :, None] + change
    time = torch.full((1,), t)
    return model, clean, noise, ((1 - t) * clean + t * noise, time, first, codes)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9, 0.999])
def test_the_right_change_gives_the_right_velocity(t):
    change = CHANGE_STD * torch.randn(1, 3, 4, 4, 4)
    model, clean, noise, arguments = noised(t, change)
    sigma = t / (1 - t)
    known = CHANGE_STD**2 / (sigma**2 + CHANGE_STD**2)
    target = (change - known * (change + sigma * noise)) / (sigma * known**0.5)  # EDM preconditioning, solved for F
    assert 0.7 < float(target.std()) < 1.3  # the network's target has unit size at every noise level
    model.transformer = Says(target)
    torch.testing.assert_close(model.velocity(*arguments, control_video=None), noise - clean, atol=2e-3, rtol=1e-3)


def test_a_silent_network_shows_a_still_image_in_noise_and_the_clip_itself_without():
    change = CHANGE_STD * torch.randn(1, 3, 4, 4, 4)
    for t, shown in ((0.9999, 0.0), (0.001, 1.0)):
        model, clean, _, arguments = noised(t, change)
        model.transformer = Says(torch.zeros(1, 3, 4, 4, 4))
        predicted = arguments[0] - t * model.velocity(*arguments, control_video=None)  # x0 of a velocity
        torch.testing.assert_close(predicted, clean - (1 - shown) * change, atol=0.01, rtol=0)


def test_predicting_changes_keeps_the_weights_loadable_and_the_model_causal():
    model = build(prediction="change")
    assert model.state_dict().keys() == build().state_dict().keys()
    noisy, time, first, codes = inputs()
    later = noisy.clone()
    later[:, :, 2:] += 1
    before, after = (model.velocity(x, time, first, codes, control_video=None) for x in (noisy, later))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


@pytest.mark.parametrize(("field", "value"), [("head_dim", 8), ("code_dropout", 1.0)])
def test_impossible_sizes_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}.*found {value}"):
        replace(TINY, **{field: value})


def test_an_odd_latent_grid_is_refused():
    with pytest.raises(ValueError, match="found 4 x 5"):
        VDM(TINY, GEOMETRY._replace(width=5))
