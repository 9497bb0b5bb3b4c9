import pytest
import torch

from vw2_robot.pixels import jitter_color, shift_randomly, to_model_range, to_pixels
from vw2_robot.random_numbers import SampleNoise


def noise_of(count, seed=0):
    return SampleNoise(seed, 0, stream=0, samples=range(count))


def test_every_value_survives_the_way_into_a_model_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, -1, -1, 3).contiguous()
    x = to_model_range(pixels)
    assert x.shape == (2, 3, 16, 16)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.equal(to_pixels(x), pixels)


def test_axes_and_channels_keep_their_meaning_for_clips_too():
    pixels = torch.zeros(2, 5, 4, 6, 3, dtype=torch.uint8)
    pixels[1, 3, 2, 5, 0] = 255
    x = to_model_range(pixels)
    assert x.shape == (2, 5, 3, 4, 6)
    assert (x == 1).nonzero().tolist() == [[1, 3, 0, 2, 5]]


def test_what_a_model_overshoots_is_clamped():
    x = torch.tensor([-1.5, 1.5, 0.0]).view(1, 3, 1, 1)
    assert to_pixels(x).flatten().tolist() == [0, 255, 128]


def test_shifts_move_whole_images_and_repeat_the_edge():
    place = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
    x = torch.cat([place, torch.zeros(1, 8, 8)]).expand(64, -1, -1, -1)  # channel 0 says the row, channel 1 the column
    y = shift_randomly(x, most=2, noise=noise_of(64))
    seen = set()
    for image in y:
        down, right = int(image[0, 4, 4]) - 4, int(image[1, 4, 4]) - 4
        seen.add((down, right))
        assert torch.equal(image[0], (place[0] + down).clamp(0, 7))
        assert torch.equal(image[1], (place[1] + right).clamp(0, 7))
    assert {d for d, _ in seen} == {r for _, r in seen} == {-2, -1, 0, 1, 2}
    assert any(d != r for d, r in seen)


@pytest.mark.parametrize("most", [0, 3])
def test_shifts_are_a_function_of_the_seed(most):
    x = torch.rand(4, 3, 8, 8)
    first, second, other = (shift_randomly(x, most=most, noise=noise_of(4, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (most == 0)


def test_images_get_other_colors_each_its_own_and_those_of_a_clip_of_one_frame():
    x = torch.rand(4, 3, 8, 8) - 0.5
    y = jitter_color(x, strength=0.3, noise=noise_of(4))
    assert torch.equal(y, jitter_color(x[:, None], strength=0.3, noise=noise_of(4))[:, 0])
    # A sample's colors do not depend on the other samples of its part of a batch.
    assert torch.equal(y[:1], jitter_color(x[:1], strength=0.3, noise=noise_of(1)))
    assert ((y - x).flatten(1).std(1) > 0).all()
    assert (y - x).mean((1, 2, 3)).std() > 0.01
