import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vw2_robot.models.dldm.causal_video import (
    CausalConv3d,
    CausalDecoder,
    CausalEncoder,
    Downsample,
    FrameNorm,
    LevelConfig,
    Patcher,
    StemConfig,
    Upsample,
)

LEVELS = (LevelConfig(8, 1, downsample_space=True, attention=True), LevelConfig(8, 1, downsample_time=True))


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1), (3, 3, 3), (1, 1, 1)])
def test_causal_convolution_equals_conv3d_on_the_padded_clip(kernel):
    conv, x = CausalConv3d(3, 5, kernel), torch.randn(2, 5, 3, 8, 8)
    padded = torch.cat([x[:, :1]] * (kernel[0] - 1) + [x], dim=1).transpose(1, 2)
    reference = F.conv3d(padded, conv.weight, conv.bias, padding=(0, kernel[1] // 2, kernel[2] // 2)).transpose(1, 2)
    torch.testing.assert_close(conv(x), reference, atol=1e-5, rtol=1e-5)


def test_strided_convolution_equals_conv3d_padded_right_and_bottom():
    conv, x = CausalConv3d(3, 5, (1, 3, 3), spatial_stride=2), torch.randn(2, 3, 3, 8, 8)
    reference = F.conv3d(F.pad(x.transpose(1, 2), (0, 1, 0, 1)), conv.weight, conv.bias, stride=(1, 2, 2)).transpose(
        1, 2
    )
    torch.testing.assert_close(conv(x), reference, atol=1e-5, rtol=1e-5)


def test_time_halves_from_one_plus_2m_to_one_plus_m_and_back():
    x = torch.randn(1, 9, 4, 4, 4)
    small = Downsample(4, time=True, space=True)(x)
    assert small.shape == (1, 5, 4, 2, 2)
    assert Upsample(4, 4, time=True, space=True)(small).shape == x.shape


@pytest.mark.parametrize("patch", ["haar", "pixel"])
def test_patcher_is_orthonormal_and_exactly_invertible(patch):
    patcher, x = Patcher(StemConfig(patch, 4, 4)), torch.randn(2, 9, 3, 8, 8)
    y = patcher(x)
    assert y.shape == (2, 3, 2, 2, 192)
    torch.testing.assert_close(patcher.inverse(y), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, 1:].square().sum(), x[:, 1:].square().sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8, 9, 15])
def test_features_do_not_see_later_frames(frame):
    torch.manual_seed(0)
    encoder = CausalEncoder(StemConfig("pixel", 2, 2), LEVELS).eval()
    x = torch.randn(1, 17, 3, 16, 16)
    other = x.clone()
    other[:, frame + 1 :] = 100 * torch.randn_like(other[:, frame + 1 :])
    finished = 1 + frame // 4  # feature steps that end at or before `frame`
    same, changed = encoder(x), encoder(other)
    assert torch.equal(same[:, :finished], changed[:, :finished])
    assert not torch.equal(same[:, finished:], changed[:, finished:])


def test_a_norm_that_pools_over_time_fails_the_causality_check():
    class PooledNorm(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x.transpose(1, 2)).transpose(1, 2)

    torch.manual_seed(0)
    encoder = CausalEncoder(StemConfig("pixel", 2, 2), LEVELS).eval()
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FrameNorm):
                setattr(module, name, PooledNorm(child.norm))
    x = torch.randn(1, 9, 3, 16, 16)
    other = x.clone()
    other[:, 5:] = 0
    assert not torch.equal(encoder(x)[:, :2], encoder(other)[:, :2])


def test_decoder_mirrors_the_encoder_in_shape():
    stem = StemConfig("haar", 2, 2)
    features = CausalEncoder(stem, LEVELS)(torch.randn(2, 9, 3, 16, 16))
    assert features.shape == (2, 3, 8, 4, 4)
    assert CausalDecoder(stem, LEVELS)(features).shape == (2, 9, 3, 16, 16)


@pytest.mark.parametrize("field", [{"temporal_patch_size": 3}, {"spatial_patch_size": 0}, {"spatial_kernel_size": 2}])
def test_impossible_stems_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        StemConfig(**field)
