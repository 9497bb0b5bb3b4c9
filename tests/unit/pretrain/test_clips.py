import numpy as np
import pytest

from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.errors import InputError
from vw2_robot.pretrain.cache_frames import training_split
from vw2_robot.pretrain.clips import clip_sampler
from vw2_robot.pretrain.config import DataConfig


class Settings:
    data = DataConfig(validation_fraction=0.5)
    seed = 0


@pytest.mark.parametrize("shades", [[7], [7, 7, 7]])
def test_video_of_which_nothing_can_be_held_out_is_refused(tmp_path, shades):
    images = [np.full((4, 4, 3), shade, np.uint8) for shade in shades]
    episodes = [Episode("videos", str(n), "", 5.0, (image,)) for n, image in enumerate(images)]
    cache_frames(episodes, tmp_path / "frames", height=4, width=4, description={})
    frames = FrameCache(tmp_path / "frames")
    _, held_out = training_split(Settings, frames)
    with pytest.raises(
        InputError, match=rf"validation_fraction=0\.5: .* {len(shades)} episodes are 1 different videos"
    ):
        clip_sampler(Settings, frames, held_out)
