import numpy as np
import pytest

from vw2_robot.image_metrics import C1, C2, MAX_DB, psnr, ssim


def noise(seed, side=16, frames=2):
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def test_psnr_follows_its_formula_frame_by_frame():
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = a.copy()
    b[1, 0, 0, 0] = 48  # one of 48 numbers: mean squared error 48
    assert psnr(a, b)[0] == MAX_DB
    assert psnr(a, b)[1] == pytest.approx(10 * np.log10(255**2 / 48))


def test_equal_frames_are_fully_similar_and_noise_is_not():
    assert ssim(noise(0), noise(0)) == pytest.approx([1.0, 1.0])
    assert (ssim(noise(0), noise(1)) < 0.2).all()


def test_ssim_equals_the_formula_written_out_for_one_window():
    a, b = (noise(seed, side=11, frames=1) for seed in (3, 4))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(3):
        x, y = a[0, :, :, channel].astype(float), b[0, :, :, channel].astype(float)
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2)))
    assert ssim(a, b)[0] == pytest.approx(np.mean(values), rel=1e-9)


def test_a_shift_in_brightness_costs_little_structure():
    a = (noise(0) // 2).astype(np.uint8)
    assert (ssim(a, a + 10) > 0.9).all()


@pytest.mark.parametrize("shape", [(2, 16, 16, 1), (1, 16, 16, 3), (2, 8, 8, 3)])
def test_videos_that_cannot_be_compared_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected two videos|windows of 11"):
        ssim(np.zeros(shape, np.uint8), np.zeros((2, 8, 8, 3) if shape[1] == 8 else (2, 16, 16, 3), np.uint8))
