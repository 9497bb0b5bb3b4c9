import math
from dataclasses import replace

import pytest
import torch

from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, StemConfig
from vw2_robot.models.video.config import CodecConfig, WanConfig
from vw2_robot.models.video.video_codec import DCTCodec, build_codec, dct_basis


def moving_blob(num_frames=13, side=32):
    """A smooth bright spot that wanders over a smooth background: [1, T, 3, side, side] in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    images = []
    for t in range(num_frames):
        spot = torch.exp(-((x - 0.3 - 0.02 * t) ** 2 + (y - 0.5) ** 2) / 0.03)
        images.append(torch.stack([spot - 0.5, 0.5 * torch.sin(3 * x + 2 * y), y - 0.5]))
    return torch.stack(images)[None].clamp(-1, 1)


def test_basis_is_the_orthonormal_dct():
    full = dct_basis(5, 5)
    torch.testing.assert_close(full @ full.T, torch.eye(5), atol=1e-6, rtol=0)
    assert torch.equal(dct_basis(5, 2), full[:2])
    torch.testing.assert_close(full[0], torch.full((5,), 1 / math.sqrt(5)))
    expected = torch.tensor([math.sqrt(2 / 5) * math.cos(math.pi * 2 * (j + 0.5) / 5) for j in range(5)])
    torch.testing.assert_close(full[2], expected)


def test_with_every_frequency_kept_the_round_trip_is_exact():
    codec, x = DCTCodec(CodecConfig(stride=4, block=4, keep=4)), torch.rand(2, 9, 3, 16, 8) * 2 - 1
    latents = codec.encode(x)
    assert latents.shape == (2, 192, 3, 4, 2)
    torch.testing.assert_close(codec.decode(latents), x, atol=1e-5, rtol=0)


def test_clips_within_the_band_survive_and_the_rest_is_dropped():
    codec = DCTCodec(CodecConfig())
    latents = torch.randn(1, 24, 3, 2, 2)
    latents[:, :, 0].unflatten(1, (3, 2, 2, 2))[:, :, 1] = 0  # frame 0 stands still within its block
    x = codec.decode(latents)
    torch.testing.assert_close(codec.encode(x), latents, atol=1e-5, rtol=0)
    fine = dct_basis(4, 4)[2].repeat(2).expand(1, 5, 3, 8, 8)  # the first frequency that is not kept
    assert codec.encode(fine).abs().max() < 1e-6
    assert DCTCodec(CodecConfig(keep=3)).encode(fine).abs().max() > 1


def test_smooth_clips_come_back_with_at_least_35_db():
    codec, x = DCTCodec(CodecConfig()), moving_blob()
    error = (codec.decode(codec.encode(x)) - x).square().mean()
    assert 10 * math.log10(4 / float(error)) >= 35  # the range of pixels is 2


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8])
def test_latents_of_a_step_see_its_own_frames_and_no_others(frame):
    codec, x = DCTCodec(CodecConfig()), torch.rand(1, 9, 3, 8, 8)
    other = x.clone()
    other[:, frame] = torch.rand(1, 3, 8, 8)
    before, after = codec.encode(x), codec.encode(other)
    step = -(-frame // 4)  # step k holds frames 4(k-1)+1 .. 4k, step 0 frame 0 alone
    assert [not torch.equal(before[:, :, k], after[:, :, k]) for k in range(3)] == [k == step for k in range(3)]


@pytest.mark.parametrize("frames", [5, 13, 93])
def test_latent_frames_are_the_steps_of_the_dldm(frames):
    config = DLDMConfig(num_frames=frames, height=8, width=8, stem=StemConfig("pixel", 4, 4), levels=(LevelConfig(8),))
    assert DCTCodec(CodecConfig()).encode(torch.zeros(1, frames, 3, 8, 8)).shape[2] == config.latent_steps + 1


def test_the_measured_change_has_unit_size_and_all_channels_one_scale():
    codec, x = DCTCodec(CodecConfig()), moving_blob() + 0.02 * torch.randn(1, 13, 3, 32, 32)
    plain = codec.decode(codec.encode(x))
    codec.measure(x)
    assert len(codec.scale.unique()) == 1
    latents = codec.encode(x)
    change = latents[:, :, 1:] - latents[:, :, :1]
    assert float(change.square().mean().sqrt()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(codec.decode(latents), plain, atol=1e-5, rtol=0)


def test_the_channels_of_the_first_temporal_frequency_hold_no_more_than_their_share_of_the_pixels():
    """The codec is orthonormal: what a channel holds of the latents it holds of the pixels, 8.1 of the method."""
    codec, x = DCTCodec(CodecConfig()), moving_blob()
    codec.measure(x)
    latents = codec.encode(x)
    energy = (latents[:, :, 1:] - latents[:, :, :1]).square().mean(dim=(0, 2, 3, 4))
    temporal = torch.arange(24) % 8 >= 4  # frequencies of a color: time, height, width
    pixels = codec.decode(latents)
    still = torch.cat([latents[:, :, :1], torch.where(temporal[:, None, None, None], 0, latents[:, :, 1:])], dim=2)
    share = (codec.decode(still) - pixels).square().sum() / (pixels - pixels[:, :1])[:, 1:].square().sum()
    torch.testing.assert_close(energy[temporal].sum() / energy.sum(), share, rtol=1e-3, atol=1e-4)


def test_a_still_clip_leaves_the_scale_alone():
    codec = DCTCodec(CodecConfig())
    codec.measure(torch.linspace(-1, 1, 8).expand(1, 5, 3, 8, 8))
    assert codec.scale.unique().tolist() == [1.0]


def test_decoding_is_the_transpose_of_encoding():
    """<encode(x), y> = <x, decode(y)>, frame 0 standing for its whole block."""
    codec = DCTCodec(CodecConfig())
    x, y = torch.randn(1, 9, 3, 8, 8), torch.randn(1, 24, 3, 2, 2)
    y[:, :, 0] = 0  # frame 0 fills a block alone, so the law holds from step 1 on
    torch.testing.assert_close((codec.encode(x) * y).sum(), (x * codec.decode(y)).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 5])
def test_impossible_frequencies_are_refused(keep):
    with pytest.raises(ValueError, match=f"found {keep}"):
        CodecConfig(keep=keep)


WAN = CodecConfig(
    kind="wan", stride=4, block=8, precision="float32", wan=WanConfig(base_dim=8, dim_mult=(1, 1, 2, 2), res_blocks=1)
)


def wan(**change):
    torch.manual_seed(0)
    return build_codec(replace(WAN, **change))


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_the_vae_has_the_shapes_that_its_configuration_promises(frames):
    codec, x = wan(), torch.rand(2, frames, 3, 16, 32) * 2 - 1
    latents = codec.encode(x)
    assert latents.shape == (2, WAN.channels, 1 + (frames - 1) // WAN.stride, 16 // WAN.block, 32 // WAN.block)
    assert codec.decode(latents).shape == x.shape


def test_the_vae_is_causal_and_later_steps_see_the_past():
    codec, x = wan(), torch.rand(1, 9, 3, 16, 16) * 2 - 1
    other = x.clone()
    other[:, 5] = -other[:, 5]  # the first frame of step 2
    before, after = codec.encode(x), codec.encode(other)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])


def test_latents_of_the_vae_are_its_posterior_mean_less_its_own_mean_over_its_own_size():
    codec, x = wan(), torch.rand(2, 5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        raw = codec.vae.encode(x.transpose(1, 2)).latent_dist.mean
    offset, size = torch.tensor(codec.vae.config.latents_mean), torch.tensor(codec.vae.config.latents_std)
    torch.testing.assert_close(codec.encode(x), (raw - offset[:, None, None, None]) / size[:, None, None, None])
    assert float(offset[0]) == pytest.approx(-0.7571)  # Wan 2.1's published numbers
    codec.measure(x)  # nothing to measure
    assert torch.equal(codec.mean, offset)


def test_the_vae_never_learns_and_never_leaves_eval_mode():
    codec = wan()
    assert not any(p.requires_grad for p in codec.parameters())
    assert not codec.train().training
    assert not codec.vae.training
    x = torch.rand(1, 5, 3, 16, 16, requires_grad=True)
    assert not codec.encode(x).requires_grad


def test_a_clip_is_encoded_alike_alone_and_in_a_batch_and_also_under_autocast():
    codec, x = wan(), torch.rand(3, 5, 3, 16, 16) * 2 - 1
    together = codec.encode(x)
    assert torch.equal(together[1:2], codec.encode(x[1:2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.encode(x), together)


def test_the_vae_kept_in_bfloat16_gives_float32_latents_close_to_its_own():
    codec, half, x = wan(), wan(precision="bf16"), torch.rand(1, 5, 3, 16, 16) * 2 - 1
    assert {p.dtype for p in half.vae.parameters()} == {torch.bfloat16}
    latents = half.encode(x)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, codec.encode(x), atol=0.05, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "wan", "block": 4}, "codec.block=8, found 4 and 4"),
        ({"kind": "dct", "weights": "folder"}, "DCT codec has no weights"),
    ],
)
def test_codecs_refuse_what_is_not_theirs(change, message):
    with pytest.raises(ValueError, match=message):
        CodecConfig(**change)


def test_a_vae_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="four numbers"):
        WanConfig(dim_mult=(1, 2))
