"""The table of key steps: what counts, and what its intervals are over."""

import numpy as np
import pytest

from vw2_robot.image_metrics import vmaf, why_no_vmaf
from vw2_robot.rollouts.craft.judge_videos import Judged, table_row


def judged(steps, task="gate", ssim=0.5):
    return Judged(task, [k if k < steps else None for k in range(7)], {"ssim": ssim})


def test_one_seed_has_intervals_over_videos():
    row = table_row("vw2", [[judged(7, "tower"), judged(4), judged(0), judged(1, "tower")]], "tower")
    assert [cell["mean"] for cell in row["key_steps"]] == [0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert row["tower"]["mean"] == 0.5
    assert row["tower"]["over"] == "videos"
    low, high = row["key_steps"][0]["interval95"]
    assert low == pytest.approx(0.301, abs=1e-3)  # Wilson
    assert high == pytest.approx(0.954, abs=1e-3)
    assert row["metrics"]["ssim"] == {"mean": 0.5}


def test_several_seeds_have_intervals_over_seeds():
    runs = [[judged(7, ssim=0.4), judged(7)], [judged(7, ssim=0.6), judged(0)], [judged(7), judged(7)]]
    row = table_row("vdm", runs, "tower")
    cell = row["key_steps"][6]
    assert (cell["mean"], cell["over"], row["seeds"]) == (pytest.approx(5 / 6), "seeds", 3)
    # Rates 1, 0.5, 1: sd 0.2887, t of two degrees of freedom 4.303.
    assert cell["interval95"] == (pytest.approx(5 / 6 - 4.303 * 0.2887 / 3**0.5, abs=2e-3), 1.0)
    assert row["tower"] is None
    assert row["metrics"]["ssim"]["mean"] == pytest.approx((0.45 + 0.55 + 0.5) / 3)


def test_vmaf_of_equal_videos_is_higher_than_of_noise():
    if why_no_vmaf():
        pytest.skip(why_no_vmaf())
    rng = np.random.default_rng(0)
    true = np.repeat(rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), 4, axis=0)
    noisy = np.clip(true.astype(int) + rng.normal(0, 60, true.shape), 0, 255).astype(np.uint8)
    assert vmaf(true, true) > vmaf(noisy, true) + 10
    with pytest.raises(ValueError, match="one shape"):
        vmaf(true, true[:2])
