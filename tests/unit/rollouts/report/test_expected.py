"""Expected frames beside real ones, of a video whose frames are known."""

import numpy as np
import pytest

from vw2_robot.rollouts.expected import write_expected
from vw2_robot.rollouts.video import ChainVideo, VideoLayout, video_paths
from vw2_robot.storage.files import read_json

ROW = {
    "sequence": 3,
    "initial_state": {},
    "subtasks": ["a", "b"],
    "solved": 1,
    "env_steps": [8, 24],
    "seed": 0,
    "instructions": ["do a", "do b"],
}


class Brightness:
    """Expects each image to become brighter by its token."""

    offsets = (0, 4, 8)

    def frames(self, image, tokens):
        return np.stack([self.reduced(image)] + [self.reduced(image) + np.uint8(value) for value in tokens[:, 0]])

    def reduced(self, image):
        return np.full((8, 8, 3), round(float(image.mean())), np.uint8)


@pytest.mark.parametrize(("brighter", "is_better"), [(16, True), (-40, False)])
def test_frames_are_compared_with_what_the_camera_saw_at_those_steps(tmp_path, brighter, is_better):
    layout = VideoLayout(control_hz=30.0, n_action_steps=4)
    video = ChainVideo(control_hz=30.0, n_action_steps=4)
    tokens = np.array([[brighter], [2 * brighter]])
    shade = 20
    for subtask, calls in ((0, 2), (1, 6)):
        for _ in range(calls):
            # 16 brighter with each call of 4 control steps.
            image = np.full((40, 40, 3), shade, np.uint8)
            output = {"actions": np.zeros((4, 7), np.float32), "latent_tokens": tokens}
            video.on_policy_call(subtask, {"images": {"static": image}}, output)
            shade += 16
    video.write(tmp_path / "videos", ROW, instructions=ROW["instructions"], names=list("xyzabcg"))
    assert write_expected(tmp_path, [(ROW, video_paths(tmp_path / "videos", 3))], Brightness(), layout) == 1
    found = read_json(tmp_path / "expected.json", cure="")
    (chain,) = found["chains"]
    assert (chain["chain"], chain["instruction"], chain["solved"]) == (3, "do b", False)
    assert chain["env_step"] == 4  # the middle of the three calls with all frames before the end
    assert (chain["psnr"] > chain["psnr_still"]) == is_better
    assert (tmp_path / "expected.jpg").stat().st_size > 500
