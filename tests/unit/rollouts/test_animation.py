"""The animated image of a chain: video, tokens and commands, and nothing before its time."""

import numpy as np
import pytest
from PIL import Image

from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.rollouts.animation import LABELS_PX, MARGIN_PX, PANEL_PX
from vw2_robot.rollouts.video import CAPTION_PX, IMAGE_PX, ChainVideo, video_paths

ROW = {"sequence": 7, "initial_state": {}, "subtasks": ["a", "b"], "solved": 1, "env_steps": [10, 12], "seed": 0}
STRIP_PX = PANEL_PX - LABELS_PX - MARGIN_PX


def animated(folder, *, tokens):
    """The frames of a chain of eleven policy calls whose commands jump from call to call."""
    video = ChainVideo(control_hz=30.0, n_action_steps=2)
    for call in range(11):
        observation = {"images": {"static": np.full((50, 50, 3), 20 * call, np.uint8)}}
        output = {"actions": np.full((4, 7), (-1.0) ** call, np.float32)}
        if tokens:
            output["latent_tokens"] = np.full((1, 4), call)
        video.on_policy_call(int(call >= 5), observation, output)
    video.write(folder, ROW, instructions=["do a", "do b"], names=ACTION_NAMES, animation=True)
    frames, milliseconds = [], 0
    with Image.open(video_paths(folder, 7).animation) as image:
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")).astype(int))
            milliseconds += image.info["duration"]
    return frames, milliseconds


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory):
    return animated(tmp_path_factory.mktemp("tokens"), tokens=True)


def blue(frame):
    """Columns of the panel with a curve in them."""
    panel = frame[CAPTION_PX + 60 :, IMAGE_PX + LABELS_PX :]
    return np.flatnonzero(((panel[..., 2] - panel[..., 0]) > 60).any(axis=0))


def test_it_lasts_as_long_as_the_chain_and_shows_the_camera(with_tokens):
    frames, milliseconds = with_tokens
    hold = 2 * round(0.8 * 15)
    assert milliseconds == (11 + hold) * round(1000 / 15)
    assert frames[0].shape == (IMAGE_PX + CAPTION_PX, IMAGE_PX + PANEL_PX, 3)
    middle = (CAPTION_PX + IMAGE_PX // 2, IMAGE_PX // 2)
    assert frames[0][middle].mean() == pytest.approx(0, abs=8)
    assert frames[-1][middle].mean() == pytest.approx(200, abs=8)


def test_the_curves_grow_with_time_and_end_with_the_chain(with_tokens):
    frames, _ = with_tokens
    assert len(blue(frames[0])) == 0
    fifth = next(frame for frame in frames if len(blue(frame)) and blue(frame).max() > 0.3 * STRIP_PX)
    assert blue(fifth).max() < 0.5 * STRIP_PX
    assert blue(frames[-1]).max() == pytest.approx(STRIP_PX, abs=STRIP_PX / 22 + 4)


def test_decoded_tokens_have_colors_and_a_policy_without_them_has_none(with_tokens, tmp_path):
    def colors(frame):
        strip = frame[60:110, IMAGE_PX + LABELS_PX : IMAGE_PX + LABELS_PX + STRIP_PX]
        return (strip.max(axis=-1) - strip.min(axis=-1)).mean()

    assert colors(with_tokens[0][0]) < 10  # nothing before its time
    assert colors(with_tokens[0][-1]) > 30
    frames, _ = animated(tmp_path, tokens=False)
    assert colors(frames[0]) < 10
    curves = frames[-1][110:, IMAGE_PX:]
    assert (curves[..., 2] - curves[..., 0]).max() > 60
