from dataclasses import replace

import numpy as np
import pytest
import torch

from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.dldm.shared_windows import lay_out
from vw2_robot.pretrain.dldm_modules import encoder_hash
from vw2_robot.pretrain.probing.features import project, quantize_components

CONFIG = DLDMConfig(
    num_frames=9,
    height=32,
    width=32,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2),
    z_channels=8,
    queries=2,
    fsq_levels=(4, 3),
    fixed_codes="pixel_differences",
)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    dldm = DLDM(CONFIG).eval()
    before = encoder_hash(dldm)
    clips = fake_clip(CONFIG, 200, seed=1).cumsum(1).tanh()
    dldm.pixel_differences.fit(dldm.pixel_differences.differences(dldm.edges(clips)).flatten(0, 1))
    assert encoder_hash(dldm) != before
    return dldm, clips


def test_codes_are_the_quantized_components_of_the_probe_and_all_levels_equally_frequent(fitted):
    dldm, clips = fitted
    found = dldm.indices(clips).flatten(0, 1).numpy()
    difference = dldm.pixel_differences.differences(dldm.edges(clips)).flatten(0, 1).numpy()
    components = project(difference, difference, 4)
    # A principal direction may point either way.
    ours = (difference - difference.mean(0)) @ dldm.pixel_differences.directions.numpy()
    components *= np.sign((components * ours).sum(0))
    # Borders are quantiles, so a row may lie on one, and rounding decides.
    assert (found == quantize_components(components, components, dldm.fsq, 2)).mean() > 0.99
    for level, digits in zip((4, 3), (found % 4, found // 4), strict=True):
        counts = np.stack([(digits == number).sum(0) for number in range(level)])
        assert np.ptp(counts) <= 2


def test_a_code_depends_on_the_frames_around_its_step_alone(fitted):
    dldm, clips = fitted
    codes = dldm.indices(clips)
    changed = clips.clone()
    changed[:, [1, 2, 3, 5, 6, 7]] = 0.0
    assert torch.equal(dldm.indices(changed), codes)
    changed[:, 8] = -clips[:, 8]
    assert torch.equal(dldm.indices(changed)[:, 0], codes[:, 0])
    assert not torch.equal(dldm.indices(changed)[:, 1], codes[:, 1])


def test_codes_of_overlapping_windows_are_those_of_each_window_alone(fitted):
    dldm, clips = fitted
    video = clips[:3].flatten(0, 1)
    frame_ids = np.stack([start + np.arange(9) for start in (0, 2, 4, 8, 18)])
    layout = lay_out(frame_ids, stride=4, cache_stride=2)
    found = dldm.window_indices(video[layout.frame_ids], torch.from_numpy(layout.starts))
    assert torch.equal(found, dldm.indices(video[frame_ids]))
    one = dldm.window_indices(video[layout.frame_ids], torch.from_numpy(layout.starts), latent_steps=1)
    assert torch.equal(one, found[:, :1])


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"dldm\.fixed_codes=pixel_differences needs dldm\.quantizer=fsq"):
        replace(CONFIG, quantizer="vq", fsq_levels=(8,))
