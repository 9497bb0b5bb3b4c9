from functools import partial

import numpy as np
import pytest
import torch

from vw2_robot.models.dense import Dense
from vw2_robot.models.dldm.causal_video import CausalConv3d, CausalEncoder
from vw2_robot.models.dldm.config import LevelConfig, StemConfig
from vw2_robot.models.dldm.shared_windows import lay_out, window_features

STEM = StemConfig("haar", 2, 2, 3)
TIME_FIRST = (LevelConfig(4, 1, downsample_time=True, downsample_space=True), LevelConfig(8, 1, attention=True))
ATTENTION_FIRST = (LevelConfig(4, 1, attention=True, downsample_time=True),)
NO_TIME = (LevelConfig(4, 1), LevelConfig(8, 1))


def cut(lengths, num_frames, cache_stride):
    """Frame numbers of windows of episodes; frames behind the end repeat the last one."""
    rows = [
        100 * episode + np.minimum(np.arange(start, start + num_frames), length - 1)
        for episode, length in enumerate(lengths)
        for start in range(0, length - 4, cache_stride)
    ]
    return np.stack(rows)


def computed_steps(encoder, run):
    """What `run` returns, and the name of each layer -> how many steps it computes meanwhile."""
    steps = {}

    def hook(name, module, inputs, output):
        steps[name] = steps.get(name, 0) + output.shape[0] * output.shape[1]

    layers = [(name, layer) for name, layer in encoder.named_modules() if isinstance(layer, CausalConv3d | Dense)]
    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers]
    out = run()
    for handle in handles:
        handle.remove()
    return out, steps


@pytest.mark.parametrize(("cache_stride", "latent_steps"), [(1, 75), (2, 38), (3, 57), (4, 22), (12, 21), (20, 16)])
def test_a_layout_contains_each_window_and_shares_frames_on_the_same_grid(cache_stride, latent_steps):
    windows = cut((21, 6, 30), num_frames=13, cache_stride=cache_stride)
    layout = lay_out(windows, stride=4, cache_stride=cache_stride)
    for ids, start in zip(windows, layout.starts, strict=True):
        assert layout.frame_ids[4 * start : 4 * start + 13].tolist() == ids.tolist()
    assert len(layout.frame_ids) == 1 + 4 * (latent_steps - 1)


@pytest.mark.parametrize("levels", [TIME_FIRST, ATTENTION_FIRST, NO_TIME])
@pytest.mark.parametrize("cache_stride", [2, 4, 8])
def test_features_of_overlapping_windows_are_those_of_each_window_alone(levels, cache_stride):
    torch.manual_seed(0)
    encoder = CausalEncoder(STEM, levels).double()
    windows = cut((50, 41, 6), num_frames=33, cache_stride=cache_stride)
    stride = 2 * 2 ** sum(level.downsample_time for level in levels)
    frame_ids, starts = lay_out(windows, stride=stride, cache_stride=cache_stride)
    frames = torch.rand(300, 3, 4, 4, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected, alone = computed_steps(encoder, lambda: encoder(frames[windows]))
        features, shared = computed_steps(
            encoder, lambda: window_features(encoder, frames[frame_ids], torch.from_numpy(starts), num_frames=33)
        )
    torch.testing.assert_close(features, expected, atol=1e-12, rtol=0)
    assert all(shared[name] <= alone[name] for name in alone)
    # All steps of the video once, and of each window those that depend on its start.
    video = 1 + (len(frame_ids) - 1) // 2
    convolutions = [shared[name] for name in ("stem", "body.0.conv1.0", "body.0.conv1.1", "body.0.conv2.1")]
    assert convolutions == [video + dependent * len(windows) for dependent in (1, 1, 3, 5)]
    if levels == TIME_FIRST:
        assert shared["body.1.conv_time"] == 1 + (video - 1) // 2 + 4 * len(windows)


def test_windows_that_share_nothing_are_encoded_as_before():
    encoder = CausalEncoder(STEM, TIME_FIRST)
    windows = cut((50,), num_frames=9, cache_stride=3)
    frame_ids, starts = lay_out(windows, stride=4, cache_stride=3)
    frames = torch.rand(50, 3, 4, 4)
    with torch.no_grad():
        expected, alone = computed_steps(encoder, lambda: encoder(frames[windows]))
        features, found = computed_steps(
            encoder, lambda: window_features(encoder, frames[frame_ids], torch.from_numpy(starts), num_frames=9)
        )
    assert found == alone
    assert torch.equal(features, expected)
