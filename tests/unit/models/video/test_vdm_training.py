"""What of the video diffusion model learns, and that what was added to the stock transformer begins as nothing."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from vw2_robot.models.video.config import Geometry, VDMConfig
from vw2_robot.models.video.control import FullControl
from vw2_robot.models.video.cosmos import blocks_of, build_transformer, is_adapter, plain_state, stock_options
from vw2_robot.models.video.vdm import VDM
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.random_numbers import SampleNoise
from vw2_robot.schedule import OptimConfig

GEOMETRY = Geometry(channels=3, latent_steps=3, height=4, width=4, queries=4, fsq_dims=4)
TINY = VDMConfig(
    heads=2, head_dim=12, layers=4, adaln_lora_dim=8, context_width=16, control_width=8, code_dropout=0.0, lora_rank=2
)
OPTIM = OptimConfig(lr=1e-2, weight_decay=0.1, warmup_steps=1)


def build(**change):
    torch.manual_seed(0)
    return VDM(replace(TINY, **change), GEOMETRY)


def inputs(batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noisy, first = (torch.randn(batch, 3, *shape, generator=generator) for shape in ((4, 4, 4), (4, 4)))
    return noisy, torch.full((batch,), 0.7), first, torch.rand(batch, 3, 4, 4, generator=generator) * 2 - 1


def denoise(model, *, control_video=True, **options):
    noisy, _, _, codes = inputs(batch=2)
    return model.denoising_loss(
        noisy,
        codes,
        control_video=noisy.flip(0) if control_video else None,
        valid=torch.ones(2, 3, dtype=torch.bool),
        noise=SampleNoise(0, 0, stream=0, samples=range(2)),
        **options,
    )


def moved_by_two_steps(model, **options):
    """Names of the parameters that two steps with weight decay moved (the second reaches behind zero layers)."""
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = build_optimizer(model.trainable_parameters(**options), OPTIM)
    for step in range(2):
        loss = denoise(model, control_video=not options, drop_codes=bool(options))
        loss.backward()
        optimizer_step(loss.detach(), optimizer, step=step, config=OPTIM, total_steps=10)
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def parts(names):
    return {"adapter" if is_adapter(name) else name.split(".")[0] for name in names}


@pytest.mark.parametrize("control", ["light", "full"])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_control_and_adapters_at_their_start_change_no_bit(control, train):
    plain = build(control="none")
    model = build(control=control, train=train)
    model.projection.load_state_dict(plain.projection.state_dict())
    for name, value in plain_state(model.transformer).items():
        value.copy_(plain.transformer.state_dict()[name])
    model.finish_prior()
    arguments = inputs(batch=2)
    control_video = torch.randn(2, 3, 4, 4, 4)
    with torch.no_grad():
        expected = plain.velocity(*arguments, control_video=None)
        assert torch.equal(model.velocity(*arguments, control_video=control_video), expected)
        assert torch.equal(model.velocity(*arguments, control_video=None), expected)
        for layer in model.control.out if control == "light" else model.control.after:
            nn.init.normal_(layer.weight)
        assert not torch.equal(model.velocity(*arguments, control_video=control_video), expected)


def test_a_copied_block_answers_like_the_block_it_copies():
    model, first_block, residuals = build(control="full"), [], []
    with torch.no_grad():
        for layer in model.control.after:
            layer.weight.copy_(torch.eye(24))  # the branch then says half of its own tokens
    # This hook is older than the one that adds the residual, so it sees what the block itself says.
    blocks_of(model.transformer)[0].register_forward_hook(lambda module, args, output: first_block.append(output))
    model.control.register_forward_hook(lambda module, args, output: residuals.extend(output))
    model.velocity(*inputs(), control_video=torch.zeros(1, 3, 4, 4, 4))
    assert len(residuals) == 3
    torch.testing.assert_close(2 * residuals[0], first_block[0], atol=1e-6, rtol=1e-5)


def test_copied_blocks_follow_the_prior_and_then_their_own_way():
    model = build(control="full")
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.finish_prior()
    for copied, block in zip(model.control.blocks, blocks_of(model.transformer), strict=False):
        assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), block.parameters(), strict=True))
    moved = moved_by_two_steps(model)
    assert {name for name in moved if name.startswith("control.blocks")}
    first = model.control.blocks[0].attn1.to_q.weight
    assert not torch.equal(first, blocks_of(model.transformer)[0].attn1.to_q.weight)


@pytest.mark.parametrize(
    ("control", "layers", "controlled"), [("light", 0, 4), ("light", 2, 2), ("full", 0, 3), ("full", 1, 1)]
)
def test_the_branch_speaks_to_as_many_blocks_as_configured(control, layers, controlled):
    model = build(control=control, control_layers=layers)
    assert model.config.controlled == controlled
    assert len(model.control.after if control == "full" else model.control.out) == controlled


def test_the_full_branch_is_causal_where_the_transformer_is():
    model = build(control="full")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    noisy, time, first, codes = inputs()
    control_video = torch.randn(1, 3, 4, 4, 4)
    later = control_video.clone()
    later[:, :, 2:] += 1
    before, after = (model.velocity(noisy, time, first, codes, control_video=h) for h in (control_video, later))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2:], after[:, :, 2:])


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("full", {"transformer", "projection", "control"}),
        ("lora", {"adapter", "projection", "control"}),
        ("frozen", {"projection", "control"}),
    ],
)
def test_phase_two_moves_only_what_its_mode_says_although_weight_decay_is_on(train, expected):
    assert parts(moved_by_two_steps(build(train=train))) == expected


@pytest.mark.parametrize("train", ["full", "lora", "frozen"])
def test_the_prior_trains_the_whole_transformer_whatever_phase_two_will_do(train):
    assert parts(moved_by_two_steps(build(train=train), prior=True)) == {"transformer", "projection"}


def test_every_adapter_moves_and_there_is_one_on_each_linear_layer_of_attention_and_feed_forward():
    model = build(train="lora")
    moved = {name for name in moved_by_two_steps(model) if is_adapter(name)}
    assert len(moved) == 4 * (4 + 4 + 2) * 2  # blocks x (two attentions of q, k, v, out; two of the MLP) x (A, B)
    assert moved == {name for name, _ in model.named_parameters() if is_adapter(name)}


def test_a_frozen_transformer_still_passes_gradients_to_the_codes():
    model = build(train="frozen")
    model.trainable_parameters()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    noisy, time, first, codes = inputs()
    codes.requires_grad_()
    model.velocity(noisy, time, first, codes, control_video=None).square().sum().backward()
    assert codes.grad.any()
    assert all(p.grad is None for p in model.transformer.parameters())


@pytest.mark.parametrize("control", ["light", "full"])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_checkpointing_keeps_loss_and_gradients(control, train):
    model = build(control=control, train=train)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    clone = copy.deepcopy(model)
    clone.checkpoint_gradients()
    for each in (model, clone):
        each.trainable_parameters()
        each.train()
        denoise(each).backward()
    for (name, a), b in zip(model.named_parameters(), clone.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
    assert isinstance(clone.control, FullControl) == (control == "full")


def test_weights_kept_in_bfloat16_give_nearly_the_same_velocity_while_adapters_stay_float32():
    model = build(train="lora")
    half = build(train="lora", frozen_precision="bf16", weights="somewhere")
    half.load_state_dict(model.state_dict())
    kinds = {is_adapter(name): value.dtype for name, value in half.transformer.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    arguments = inputs()
    expected = model.velocity(*arguments, control_video=None)
    torch.testing.assert_close(half.velocity(*arguments, control_video=None).float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": "random", "weights": "folder"}, "contradict"),
        ({"frozen_precision": "bf16", "train": "full", "weights": "folder"}, "train=full"),
        ({"frozen_precision": "bf16", "train": "lora"}, "weights=None"),
        ({"control": "full", "layers": 2}, "found 0"),
        ({"control_layers": 5}, "found 5"),
        ({"rope_scale": (1.0, 3.0)}, "three numbers"),
        ({"lora_rank": 0}, "found 0"),
        ({"noise_shift": 0.0}, "vdm.noise_shift must be positive, found 0.0"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_frozen_transformer_in_bfloat16_is_sampled_in_float32_and_copies_of_its_blocks_learn_in_float32():
    model = build(train="frozen", control="full", frozen_precision="bf16", weights="somewhere")
    reference = build(train="frozen", control="full")
    model.load_state_dict(reference.state_dict())
    model.finish_prior()
    assert {p.dtype for p in model.control.parameters()} == {torch.float32}
    _, _, first, codes = inputs()
    latents = model.sample(first, codes, control_video=None, generator=torch.Generator().manual_seed(0), num_steps=3)
    assert latents.dtype == torch.float32
    assert torch.equal(latents[:, :, 0], first)


def test_weights_that_a_folder_will_fill_take_no_random_numbers_and_no_float32():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    transformer = build_transformer(stock_options(TINY, GEOMETRY), dtype=torch.bfloat16, filled=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in transformer.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in transformer.parameters()} == {"cpu"}
