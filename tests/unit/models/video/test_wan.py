"""Wan's transformers in the wrapper of the video model, on tiny folders that stock diffusers has saved."""

import copy
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from torch import nn

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig, WanConfig
from vw2_robot.models.video.cosmos import is_adapter, plain_state
from vw2_robot.models.video.noise_levels import loss_weight, sample_times, sampling_times
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import WanCodec, build_codec
from vw2_robot.models.video.wan import stock_options
from vw2_robot.random_numbers import SampleNoise

GEOMETRY = Geometry(channels=48, latent_steps=2, height=2, width=4, queries=4, fsq_dims=4)
TINY = VDMConfig(
    family="wan",
    heads=2,
    head_dim=12,
    layers=2,
    context_width=32,
    projection_width=16,
    control_width=8,
    control_layers=1,
    lora_rank=2,
    sampling_shift=5.0,
)
# As pretrained weights are used: attention as in stock diffusers.
OPEN = replace(TINY, temporal_causal_self_attention=False, code_visibility="none")
WAN22 = CodecConfig(
    kind="wan",
    stride=4,
    block=16,
    precision="float32",
    wan=WanConfig("2.2", base_dim=4, decoder_base_dim=8, dim_mult=(1, 1, 2, 2), res_blocks=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the 5B model comes, made by stock diffusers: transformer/ of 48 channels, vae/ of version 2.2."""
    path = tmp_path_factory.mktemp("Wan2.2-narrow")
    torch.manual_seed(1)
    diffusers.WanTransformer3DModel(**stock_options(TINY, GEOMETRY)).save_pretrained(str(path / "transformer"))
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        z_dim=48,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.01 * i for i in range(48)],
        latents_std=[1 + 0.01 * i for i in range(48)],
    )
    vae.save_pretrained(str(path / "vae"))
    return path


@pytest.fixture(scope="module")
def stock(folder):
    return diffusers.WanTransformer3DModel.from_pretrained(str(folder / "transformer"), local_files_only=True)


def build(config=TINY, seed=0):
    torch.manual_seed(seed)
    return VDM(config, GEOMETRY)


def inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noisy, first = (torch.randn(batch, 48, *shape, generator=generator) for shape in ((3, 2, 4), (2, 4)))
    times = torch.tensor([0.7, 0.2])[:batch]
    return noisy, times, first, torch.rand(batch, 2, 4, 4, generator=generator) * 2 - 1


@pytest.mark.parametrize(("control", "train"), [("light", "full"), ("full", "lora")])
def test_a_stock_folder_with_control_and_adapters_at_their_start_answers_as_stock(folder, stock, control, train):
    model = build(replace(OPEN, control=control, train=train))
    model.load_folder(folder)
    noisy, times, first, codes = inputs()
    found = model.velocity(noisy, times, first, codes, control_video=torch.randn_like(noisy))
    x = torch.cat([first[:, :, None], noisy[:, :, 1:]], dim=2)
    # Stock diffusers takes a time for every token. Its pipeline of the 5B model gives 0 in frame 0, else 1000 t.
    per_token = 1000 * torch.stack([torch.zeros(2), times, times], dim=1).repeat_interleave(2, dim=1)
    with torch.no_grad():
        expected = stock(x, per_token, model.projection(codes), return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    # As pretrained: a text in place of the codes, which every frame sees whatever the mask of the codes is.
    text = torch.randn(5, 32)
    with torch.no_grad():
        found = model.velocity(*inputs(), control_video=None, keep_codes=torch.tensor([False, False]), text=text)
        expected_of_text = stock(x, per_token, text.expand(2, -1, -1), return_dict=False)[0]
    torch.testing.assert_close(found, expected_of_text, atol=2e-6, rtol=1e-5)
    layers = model.control.out if control == "light" else model.control.after
    nn.init.normal_(layers[0].weight)
    moved = model.velocity(noisy, times, first, codes, control_video=torch.randn_like(noisy))
    assert not torch.allclose(moved, expected, atol=1e-3)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_weights_load_and_save_back_bit_for_bit_for_stock_diffusers(folder, stock, tmp_path, train):
    model = build(replace(OPEN, train=train))
    model.load_folder(folder)
    model.save_folder(tmp_path)
    back = diffusers.WanTransformer3DModel.from_pretrained(str(tmp_path / "transformer"), local_files_only=True)
    for state in (plain_state(model.transformer), back.state_dict()):
        assert {k: v.tolist() for k, v in state.items()} == {k: v.tolist() for k, v in stock.state_dict().items()}
    described = {k: v for k, v in back.config.items() if not k.startswith("_")}
    assert described == {k: v for k, v in stock.config.items() if not k.startswith("_")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(str(tmp_path / "scheduler"))
    assert scheduler.config.shift == 5.0


class FreeContext(nn.Module):
    """Stands for the projection, so that gradients say which keys the transformer saw."""

    def __init__(self):
        super().__init__()
        self.keys = torch.randn(1, 9, 32, requires_grad=True)

    def forward(self, codes):
        return self.keys.expand(len(codes), -1, -1)


@pytest.mark.parametrize(
    ("visibility", "frame", "options", "expected"),
    [
        ("causal", 0, {}, {0}),
        ("causal", 1, {}, set(range(5))),
        ("current", 2, {}, {0, 5, 6, 7, 8}),
        ("none", 0, {}, set(range(9))),
        ("causal", 2, {"keep_codes": torch.tensor([False])}, {0}),
    ],
)
def test_a_frame_sees_exactly_the_keys_of_its_visibility(visibility, frame, options, expected):
    model = build(replace(TINY, layers=1, code_visibility=visibility))
    model.projection = context = FreeContext()
    model.velocity(*inputs(1), control_video=None, **options)[:, :, frame].square().sum().backward()
    assert {key for key in range(9) if context.keys.grad[0, key].abs().max() > 0} == expected


@pytest.mark.parametrize("strict", [True, False])
def test_the_model_and_its_copied_blocks_are_causal_exactly_with_causal_self_attention(strict):
    model = build(replace(TINY, control="full", temporal_causal_self_attention=strict))
    nn.init.normal_(model.control.after[0].weight)
    noisy, times, first, codes = inputs()
    later = noisy.clone()
    later[:, :, 2] += 1
    before, after = (model.velocity(x, times, first, codes, control_video=x) for x in (noisy, later))
    assert not torch.allclose(after[:, :, 2], before[:, :, 2], atol=1e-4)
    assert torch.equal(after[:, :, :2], before[:, :, :2]) == strict


@pytest.mark.parametrize(
    ("train", "learning"),
    [
        ("full", {"transformer", "projection", "control"}),
        ("lora", {"adapter", "projection", "control"}),
        ("frozen", {"projection", "control"}),
    ],
)
def test_gradients_reach_the_codes_and_what_the_mode_says_also_with_recomputed_activations(train, learning):
    model = build(replace(TINY, train=train, control="full"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    clone = copy.deepcopy(model)
    clone.checkpoint_gradients()
    gradients = []
    for each in (model, clone):
        each.trainable_parameters()
        each.train()
        noisy, times, first, codes = inputs()
        codes.requires_grad_()
        each.velocity(noisy, times, first, codes, control_video=noisy).square().mean().backward()
        assert codes.grad.any()
        named = {name: p.grad for name, p in each.named_parameters() if p.grad is not None}
        assert {"adapter" if is_adapter(name) else name.split(".")[0] for name in named} == learning
        gradients.append(named)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
    adapters = [name for name in gradients[0] if is_adapter(name)]
    assert len(adapters) == (2 * (4 + 4 + 2) * 2 if train == "lora" else 0)  # blocks x layers x (A, B)


def test_frozen_weights_in_bfloat16_keep_in_float32_what_stock_keeps_and_have_their_positions(folder):
    half = build(replace(OPEN, train="frozen", frozen_precision="bf16", weights="somewhere"))
    exact = build(replace(OPEN, train="frozen"))
    half.load_folder(folder)
    exact.load_folder(folder)
    half.projection.load_state_dict(exact.projection.state_dict())
    kept = {name for name, p in half.transformer.named_parameters() if p.dtype == torch.float32}
    assert {"scale_shift_table", "blocks.0.norm2.weight"} < kept
    assert all("time_embedder" in n or "scale_shift" in n or "norm2" in n for n in kept)
    found, expected = (m.velocity(*inputs(), control_video=None).float() for m in (half, exact))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_sampling_steps_are_those_of_stock_pipelines():
    stock = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    stock.set_timesteps(7)
    torch.testing.assert_close(sampling_times(7, shift=3.0), stock.sigmas[:-1], atol=1e-5, rtol=0)


class ExactOfGaussian(nn.Module):
    """Stands for the transformer: the exact velocity for independent latents of mean 0.5 and deviation 0.3."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
        t = (timestep / 1000).view(len(hidden_states), 1, -1, 1, 1)
        variance = (1 - t) ** 2 * 0.3**2 + t**2
        off = (hidden_states - (1 - t) * 0.5) / variance
        return (t * off - (0.5 + (1 - t) * 0.3**2 * off),)  # E[eps | x] - E[x0 | x]


def test_training_and_sampling_are_right_for_a_model_that_is_exact_for_gaussian_latents():
    model = build()
    model.transformer = ExactOfGaussian()
    first, codes = torch.zeros(2, 48, 2, 4), torch.zeros(2, 2, 4, 4)
    generator = torch.Generator().manual_seed(0)
    sample = model.sample(first, codes, control_video=None, generator=generator, num_steps=200)
    noise = torch.randn(2, 48, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    # The flow of a Gaussian maps quantiles to quantiles; 200 Euler steps end within 0.044 of it, 400 within 0.022.
    torch.testing.assert_close(sample[:, :, 1:], 0.5 + 0.3 * noise[:, :, 1:], atol=0.06, rtol=0)
    clips = 64
    latents = 0.5 + 0.3 * torch.randn(clips, 48, 3, 2, 4)
    loss = model.denoising_loss(
        latents,
        torch.zeros(clips, 2, 4, 4),
        control_video=None,
        valid=torch.ones(clips, 2, dtype=torch.bool),
        noise=SampleNoise(0, 0, stream=0, samples=range(clips)),
    )
    t = sample_times(SampleNoise(0, 0, stream=0, samples=range(clips)), num_frames=3)
    # What no model can know: Var(eps - x0 | x).
    least = (loss_weight(t) * 0.3**2 / ((1 - t) ** 2 * 0.3**2 + t**2)).mean()
    assert float(loss) == pytest.approx(float(least), rel=0.02)


def test_the_vae_of_version_2_2_becomes_the_codec(folder):
    codec = WanCodec(WAN22)
    codec.load_folder(folder)
    assert WAN22.channels == 48
    source = diffusers.AutoencoderKLWan.from_pretrained(str(folder / "vae"), local_files_only=True)
    x = torch.rand(1, 5, 3, 32, 64) * 2 - 1
    with torch.no_grad():
        mean = source.encode(x.transpose(1, 2)).latent_dist.mode()
        offset, size = (torch.tensor(source.config[n])[:, None, None, None] for n in ("latents_mean", "latents_std"))
        latents = codec.encode(x)
        torch.testing.assert_close(latents, (mean - offset) / size)
        assert latents.shape == (1, 48, 2, 2, 4)
        torch.testing.assert_close(codec.decode(latents), source.decode(mean).sample.transpose(1, 2), atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused(folder):
    cosmos = replace(TINY, family=None, projection_width=None)
    with pytest.raises(InputError, match=r"holds a WanTransformer3DModel.*CosmosTransformer3DModel.*vdm\.family"):
        build(cosmos).load_folder(folder)
    with pytest.raises(InputError, match=r"another size than vdm describes: blocks\.2"):
        build(replace(TINY, layers=3)).load_folder(folder)
    with pytest.raises(ValueError, match=r"vdm\.family=wan.*padding_channel=True"):
        replace(TINY, padding_channel=True)
    for change in ({"projection": "convolution", "code_visibility": "none"}, {"control": "released"}):
        with pytest.raises(ValueError, match=r"are for published weights of vdm\.family=cosmos, found family=wan"):
            replace(TINY, **change)
    with pytest.raises(ValueError, match=r"version 2\.2 has codec\.stride=4 and codec\.block=16, found 4 and 8"):
        replace(WAN22, block=8)
    with pytest.raises(ValueError, match=r"vdm\.sampling_shift must be positive, found 0\.0"):
        replace(TINY, sampling_shift=0.0)


def test_new_options_are_null_by_default_so_that_a_run_from_before_them_goes_on():
    vdm, wan = VDMConfig(), WanConfig()
    values = (
        vdm.family,
        vdm.text_projection,
        vdm.projection_width,
        vdm.sampling_shift,
        wan.version,
        wan.decoder_base_dim,
    )
    assert set(values) == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "transformer", "vae"),
    [("wan21", 1_418_996_800, 126_892_531), ("wan22", 4_999_787_712, 704_688_668)],
)
def test_the_presets_are_the_released_sizes(preset, transformer, vae):
    tree = {"vdm": {}, "codec": {}}
    for name in ("paper", "wan21", preset):
        layer = yaml.safe_load((Path(__file__).parents[4] / f"configs/model/{name}.yaml").read_text(encoding="utf-8"))
        for part in tree:
            tree[part] |= layer.get(part, {})
    vdm, codec = config_from(VDMConfig, tree["vdm"]), config_from(CodecConfig, tree["codec"])
    with torch.device("meta"):
        model = VDM(vdm, Geometry(codec.channels, 23, 480 // codec.block, 832 // codec.block, 4, 4))
        assert sum(p.numel() for p in model.transformer.parameters()) == transformer
        assert sum(p.numel() for p in build_codec(codec).vae.parameters()) == vae
