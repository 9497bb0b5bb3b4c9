"""The warp output: a still clip at the start, frames moved by the flow, causal, and within the codec's band."""

from dataclasses import replace

import pytest
import torch

from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.models.video.latent_warp import LatentWarp
from vw2_robot.models.video.noise_levels import sample_times
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.models.warping import FLOW_SCALE
from vw2_robot.random_numbers import SampleNoise

CODEC = CodecConfig(stride=4, block=4, keep=2)
GEOMETRY = Geometry(channels=24, latent_steps=2, height=8, width=8, queries=4, fsq_dims=4)
CONFIG = VDMConfig(
    heads=2, head_dim=12, layers=2, adaln_lora_dim=8, context_width=16, control_width=8, prediction="change"
)


def blob(shift=0.0):
    """A smooth spot on gray, [1, 3, 32, 32], `shift` pixels to the right of the middle."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return torch.exp(-((x - 16 - shift) ** 2 + (y - 16) ** 2) / 40).expand(1, 3, 32, 32)


def test_it_starts_as_a_still_clip_and_then_moves_every_frame_as_the_flow_says():
    codec = DCTCodec(CODEC)
    codec.scale.fill_(0.3)
    first = codec.encode(blob()[:, None])[:, :, 0]
    warp = LatentWarp(24, CODEC)
    tokens = torch.randn(1, 3 * 16, 24)
    torch.testing.assert_close(warp(tokens, first), first[:, :, None].expand(-1, -1, 3, -1, -1), atol=1e-5, rtol=0)
    pixels = 3.0
    with torch.no_grad():
        # x of all frames: the place to sample lies to the left, so that the spot moves to the right.
        warp.flow.bias[0::2] = -pixels * 2 / 32 / FLOW_SCALE
    moved = codec.decode(warp(tokens, first))
    expected = codec.decode(codec.encode(torch.cat([blob()[:, None], *[blob(pixels)[:, None]] * 8], dim=1)))
    still = moved[:, :1].expand_as(moved)
    errors = [(video - expected)[:, 1:].square().mean() for video in (moved, still)]
    assert errors[0] < 0.03 * errors[1]


def test_a_model_with_a_warp_begins_with_the_velocity_of_one_without_and_then_learns_it_causally():
    models = []
    for warp in (False, True):
        torch.manual_seed(0)
        models.append(VDM(replace(CONFIG, warp=warp), GEOMETRY, CODEC))
    plain, warped = models
    warped.load_state_dict(plain.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 24, 3, 8, 8, generator=generator)
    codes = torch.rand(2, 2, 4, 4, generator=generator)
    given = (noisy, torch.tensor([0.7, 0.9]), DCTCodec(CODEC).encode(blob().expand(2, -1, -1, -1)[:, None])[:, :, 0])
    torch.testing.assert_close(
        warped.velocity(*given, codes, control_video=None), plain.velocity(*given, codes, control_video=None)
    )
    assert any(p is warped.warp.flow.weight for p in warped.trainable_parameters(prior=True))
    with torch.no_grad():
        for parameter in warped.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = warped.velocity(*given, codes, control_video=None)
    codes[:, 1] += 0.5
    after = warped.velocity(*given, codes, control_video=None)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.equal(before[:, :, 2], after[:, :, 2])


def test_other_latents_and_pretrained_weights_are_refused():
    with pytest.raises(ValueError, match=r"codec\.kind=dct"):
        VDM(replace(CONFIG, warp=True), GEOMETRY)
    for change in ({"prediction": "velocity"}, {"weights": "somewhere"}):
        with pytest.raises(ValueError, match=r"aids\.warp_output=true"):
            replace(CONFIG, **{"warp": True, **change})


def test_a_share_of_the_samples_gets_noise_that_hides_the_clip():
    noise = SampleNoise(0, 0, stream=0, samples=range(4000))
    sigma = sample_times(noise, num_frames=1, shift=0.01, high_noise=0.7)
    sigma = sigma / (1 - sigma)
    assert float((sigma > 3.9).float().mean()) == pytest.approx(0.7 + 0.3 * 0.05, abs=0.03)
    assert float(sigma[(sigma > 3.9)].log().median()) == pytest.approx((torch.tensor(4000.0).log() / 2).item(), abs=0.2)


def test_guidance_moves_a_sample_away_from_that_of_null_codes():
    torch.manual_seed(0)
    vdm = VDM(CONFIG, GEOMETRY)
    with torch.no_grad():
        for parameter in vdm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    seen = []

    def velocity(noisy, time, first, codes, *, control_video, keep_codes=None, text=None):
        seen.append(keep_codes)
        return torch.full_like(noisy, 1.0 if keep_codes is None else 0.25)

    vdm.velocity = velocity
    first, codes = torch.zeros(1, 24, 8, 8), torch.zeros(1, 2, 4, 4)

    def sample(guidance):
        generator = torch.Generator().manual_seed(0)
        given = {"control_video": None, "generator": generator, "num_steps": 4, "guidance": guidance}
        return vdm.sample(first, codes, **given)[:, :, 1:]

    plain, strong = sample(1.0), sample(3.0)
    assert len(seen) == 4 + 8
    # Velocity 1 with codes and 0.25 without: 0.25 + 3 * 0.75 = 2.5 with guidance, over the same time.
    start = torch.randn(1, 24, 3, 8, 8, generator=torch.Generator().manual_seed(0))[:, :, 1:]
    torch.testing.assert_close(strong - start, 2.5 * (plain - start), atol=1e-4, rtol=1e-4)
