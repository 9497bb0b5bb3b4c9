"""Videos with key steps: captions of the miniature, and the layout of Video-CraftBench."""

import json

import numpy as np
import pytest

from vw2_robot.data.sources.craft_bench import read_craft_videos, read_frames
from vw2_robot.data.sources.craft_names import craft_instruction
from vw2_robot.data.sources.video_folder import VideoFolderSource
from vw2_robot.errors import InputError
from vw2_robot.storage.mp4 import Mp4Writer

KEY_FRAMES = [2, 4, 6, 8, 10, 12, 14]


def write(path, frames=16):
    with Mp4Writer(path, fps=5, encoding=["-crf", "5", "-bitexact"]) as video:
        for number in range(frames):
            video.add(np.full((32, 32, 3), 12 * number, np.uint8))


def test_names_of_video_craftbench_become_instructions():
    assert craft_instruction("buildingblock_horse_0_0.mp4") == "build from blocks a horse"
    assert craft_instruction("paper_airplane_supp_complex_15.jpg") == "fold a paper airplane"
    assert craft_instruction("paper_boat_21.mp4") == "fold a paper boat"
    assert craft_instruction("paper_plan.mp4") == craft_instruction("my_video_1.mp4") == ""


def test_videos_with_key_frames_are_read_in_both_layouts(tmp_path):
    write(tmp_path / "paper_boat_0.mp4")
    (tmp_path / "key_frames.json").write_text(json.dumps({"paper_boat_0.mp4": KEY_FRAMES}))
    (video,) = read_craft_videos(tmp_path)
    assert (video.task, video.instruction, video.hz) == ("paper_boat", "fold a paper boat", 5.0)
    assert [video.steps_done(frame) for frame in (0, 1, 2, 13, 14, 99)] == [0, 0, 1, 6, 7, 7]
    # Frames beyond the end repeat the last one.
    frames = read_frames(video, [0, 5, 15, 40], height=16, width=8)
    assert frames.shape == (4, 16, 8, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [0, 60, 180, 180], atol=4)
    row = {"file": "paper_boat_0.mp4", "task": "boat", "instruction": "fold", "hz": 2.0, "key_frames": KEY_FRAMES}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row | {"track": [[0.5, 0.25]] * 16}) + "\n")
    (video,) = read_craft_videos(tmp_path)
    assert (video.task, video.hz, video.track.shape) == ("boat", 2.0, (16, 2))


def test_a_folder_of_clips_gets_instructions_for_training(tmp_path):
    write(tmp_path / "buildingblock_horse_0_3.mp4", frames=3)
    (episode,) = VideoFolderSource(tmp_path).read(0)
    assert episode.instruction == "build from blocks a horse"


@pytest.mark.parametrize("wrong", [KEY_FRAMES[:6], [*KEY_FRAMES[:6], 12], [*KEY_FRAMES[:6], "14"], "many"])
def test_damaged_key_frames_are_refused(tmp_path, wrong):
    (tmp_path / "paper_boat_0.mp4").write_bytes(b"")
    (tmp_path / "key_frames.json").write_text(json.dumps({"paper_boat_0.mp4": wrong}))
    with pytest.raises(InputError, match="7 increasing numbers"):
        read_craft_videos(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"key_frames\.json"):
        read_craft_videos(tmp_path)
    (tmp_path / "key_frames.json").write_text(json.dumps({"paper_boat_0.mp4": KEY_FRAMES}))
    with pytest.raises(InputError, match="not there"):
        read_craft_videos(tmp_path)
    (tmp_path / "key_frames.json").write_text(json.dumps({"boat.mp4": KEY_FRAMES}))
    with pytest.raises(InputError, match="TASK_OBJECT"):
        read_craft_videos(tmp_path)
