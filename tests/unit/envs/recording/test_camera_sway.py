import numpy as np

from vw2_robot.envs.recording.camera_sway import sway


def test_each_image_moves_as_a_whole_by_few_pixels_and_smoothly():
    image = np.zeros((20, 20, 3), np.uint8)
    image[10, 10] = 255
    moved = sway(np.repeat(image[None], 90, 0), largest_px=4, hz=30.0, rng=np.random.default_rng(0))
    assert moved.shape == (90, 20, 20, 3)
    frame, y, x = np.nonzero(moved[..., 0])
    np.testing.assert_array_equal(frame, np.arange(90))  # the bright pixel is in each image once
    place = np.stack([y, x], 1) - 10
    assert np.abs(place).max(0).tolist() == [4, 4]
    assert np.abs(np.diff(place, axis=0)).max() == 1
    again = sway(np.repeat(image[None], 90, 0), largest_px=4, hz=30.0, rng=np.random.default_rng(1))
    assert (again != moved).any()


def test_borders_are_repeated():
    image = np.arange(8, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)  # columns 0 .. 7
    moved = sway(image[None].repeat(60, 0), largest_px=2, hz=30.0, rng=np.random.default_rng(0))
    for frame in moved[:, :, :, 0]:
        assert (frame == frame[0]).all()
        assert set(np.diff(frame[0].astype(int))) <= {0, 1}
