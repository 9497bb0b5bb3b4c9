import torch

from vw2_robot.pretrain.encoder_augmentation import drift
from vw2_robot.random_numbers import SampleNoise


def noise(seed=0):
    return SampleNoise(seed, 0, stream=0, samples=range(16))


def smooth_clips(batch=16, num_frames=5, size=24):
    """Still clips of random smooth images, apart from the bounds so that no clamping hides a change."""
    coarse = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(7)) - 0.5
    image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    return image[:, None].expand(-1, num_frames, -1, -1, -1).clone()


def test_no_strength_leaves_the_clip_itself():
    x = smooth_clips()
    assert drift(x, strength=0.0, noise=noise()) is x


def test_frame_0_stays_and_the_drift_grows_from_it():
    x = smooth_clips()
    y = drift(x, strength=1.0, noise=noise())
    torch.testing.assert_close(y[:, 0], x[:, 0], atol=1e-5, rtol=0)
    change = (y - x).abs().mean(dim=(2, 3, 4))
    touched = change[:, -1] > 1e-4
    assert 4 <= int(touched.sum()) <= 12  # about half of 16
    assert torch.equal(y[~touched], x[~touched])
    assert (change[touched].diff(dim=1) > 0).all()


def test_the_drift_is_a_function_of_the_seed_and_scales_with_the_strength():
    x = smooth_clips()
    assert torch.equal(drift(x, strength=1.0, noise=noise(3)), drift(x, strength=1.0, noise=noise(3)))
    weak, strong = ((drift(x, strength=strength, noise=noise(3)) - x).abs().mean().item() for strength in (0.25, 1.0))
    assert 2 < strong / weak < 6
