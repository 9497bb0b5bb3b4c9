from dataclasses import replace

import pytest
import torch

from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.dldm.frame_warp import FrameWarp
from vw2_robot.models.warping import FLOW_SCALE

TINY = DLDMConfig(
    num_frames=9,
    height=16,
    width=16,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(16, 1),),
    z_channels=16,
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
    output="warp",
)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, stem=StemConfig("pixel", 2, 4, 1), levels=(LevelConfig(16, 1, downsample_time=True),)),
        replace(
            TINY,
            stem=StemConfig("haar", 4, 2, 1),
            levels=(LevelConfig(24, 1, downsample_space=True), LevelConfig(16, 1)),
        ),
    ],
)
def test_an_untrained_warping_decoder_shows_the_first_frame_all_the_time(config):
    model = DLDM(config).eval()
    x = fake_clip(config, 2)
    encoded = model.encode(x)
    rec = model.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    torch.testing.assert_close(rec, x[:, :1].expand_as(x))


def test_a_flow_moves_pixels_by_its_length_in_half_image_widths():
    warp = FrameWarp(width=1, frames_per_step=2)
    with torch.no_grad():  # every pixel of frame 2 looks 4 pixels to the right: the image moves left
        warp.flow.bias[2] = 4 / 8 / FLOW_SCALE
    first = torch.rand(1, 3, 16, 16)
    clip = warp(torch.zeros(1, 2, 1, 4, 4), first)
    assert clip.shape == (1, 3, 3, 16, 16)
    torch.testing.assert_close(clip[:, 1], first)
    torch.testing.assert_close(clip[:, 2, :, :, :12], first[..., 4:])
    torch.testing.assert_close(clip[:, 2, :, :, 12:], first[..., 15:].expand(-1, -1, -1, 4))  # the edge is repeated


def test_without_steps_only_the_first_frame_is_left():
    first = torch.rand(2, 3, 8, 8)
    assert torch.equal(FrameWarp(4, 4)(torch.zeros(2, 1, 4, 2, 2), first), first[:, None])


def test_motion_reaches_the_codes_from_the_second_step_on():
    """The flow layer starts at zero, so it moves first; then the codes get a gradient through it."""
    torch.manual_seed(0)
    model = DLDM(TINY)
    x = fake_clip(TINY, 4)
    optimizer = torch.optim.SGD(model.decoder.parameters(), lr=0.1)
    for _ in range(2):
        model.zero_grad()
        encoded = model.encode(x)
        (model.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0]) - x).square().mean().backward()
        reached = float(model.qformer.queries.grad.abs().max())
        optimizer.step()
    assert reached > 0
