import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.rollouts.video import (
    CAPTION_PX,
    IMAGE_PX,
    MAX_FPS,
    ChainVideo,
    drop_other_videos,
    drop_videos,
    select_chains,
    video_paths,
)

OUTPUT = {"actions": np.zeros((8, 7), np.float32), "latent_tokens": np.array([[1, 2, 3, 4]])}
ROW = {"sequence": 7, "initial_state": {}, "subtasks": list("abcde"), "solved": 1, "env_steps": [9, 30], "seed": 0}


def observation(shade):
    return {"images": {"static": np.full((50, 50, 3), shade, dtype=np.uint8)}}


def recorded(folder, *, n_action_steps=6):
    video = ChainVideo(control_hz=30.0, n_action_steps=n_action_steps)
    for shade in (0, 80):
        video.on_policy_call(0, observation(shade), OUTPUT)
    for shade in (160, 200, 240):
        video.on_policy_call(1, observation(shade), OUTPUT)
    video.write(folder, ROW, instructions=[f"do {task}" for task in "abcde"], names=ACTION_NAMES)
    return video


def decode(path):
    """What ffmpeg says of the stream it reads, and its frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    stream = next(line for line in done.stderr.decode().splitlines() if "Video: h264" in line)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, IMAGE_PX + CAPTION_PX, IMAGE_PX, 3)
    return stream, list(frames)


def test_a_video_decodes_with_the_right_size_rate_and_number_of_frames(tmp_path):
    video = recorded(tmp_path)
    stream, frames = decode(video_paths(tmp_path, 7)[0])
    assert "yuv420p" in stream
    assert f"{IMAGE_PX}x{IMAGE_PX + CAPTION_PX}" in stream
    assert IMAGE_PX % 2 == CAPTION_PX % 2 == 0
    assert video.fps == 5.0
    assert " 5 fps" in stream
    hold = round(0.8 * 5)
    assert len(frames) == 2 + hold + 3 + hold


def test_a_video_shows_what_the_policy_saw_in_order(tmp_path):
    recorded(tmp_path)
    _, frames = decode(video_paths(tmp_path, 7)[0])
    middles = [float(frame[CAPTION_PX + IMAGE_PX // 2, IMAGE_PX // 2].mean()) for frame in frames]
    assert middles == pytest.approx([0, 80, *[80] * 4, 160, 200, 240, *[240] * 4], abs=4)


def test_success_and_failure_have_different_colors(tmp_path):
    recorded(tmp_path)
    _, frames = decode(video_paths(tmp_path, 7)[0])
    solved, failed = frames[5][:CAPTION_PX].astype(int), frames[-1][:CAPTION_PX].astype(int)
    greener = lambda caption: (caption[..., 1] - caption[..., 0]).max()  # noqa: E731
    redder = lambda caption: (caption[..., 0] - caption[..., 1]).max()  # noqa: E731
    assert greener(solved) > 60
    assert redder(solved) < 30
    assert redder(failed) > 60


def test_the_index_stands_before_the_images_so_that_browsers_can_start(tmp_path):
    recorded(tmp_path)
    content = video_paths(tmp_path, 7)[0].read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_poster_is_the_last_page_and_nothing_else_is_left(tmp_path):
    recorded(tmp_path)
    video, poster, recording, _ = video_paths(tmp_path, 7)
    with Image.open(poster) as image:
        assert image.size == (IMAGE_PX, IMAGE_PX + CAPTION_PX)
        assert image.getpixel((IMAGE_PX // 2, CAPTION_PX + IMAGE_PX // 2))[0] == pytest.approx(240, abs=4)
    assert sorted(tmp_path.iterdir()) == sorted([video, poster, recording])


def test_beside_the_video_is_the_recording_of_all_policy_calls(tmp_path):
    recorded(tmp_path)
    with np.load(video_paths(tmp_path, 7).recording) as file:
        assert file["actions"].shape == (5, 8, 7)
        assert file["subtask"].tolist() == [0, 0, 1, 1, 1]
        assert file["tokens"].shape == (5, 1, 4)


def test_equal_observations_give_equal_bytes(tmp_path):
    recorded(tmp_path / "a")
    recorded(tmp_path / "b")
    assert video_paths(tmp_path / "a", 7)[0].read_bytes() == video_paths(tmp_path / "b", 7)[0].read_bytes()


@pytest.mark.parametrize("n_action_steps", [1, 2, 4, 30])
def test_videos_play_in_real_time_and_never_too_fast(n_action_steps):
    video = ChainVideo(control_hz=30.0, n_action_steps=n_action_steps)
    assert video.fps <= MAX_FPS
    assert video.fps * video.steps_per_frame == 30.0


def chain(number, solved, tasks="abcde"):
    return {"sequence": number, "subtasks": list(tasks), "solved": solved}


CHAINS = st.lists(st.tuples(st.integers(0, 2), st.permutations("abc")), max_size=16).map(
    lambda entries: [chain(number, *entry) for number, entry in enumerate(entries)]
)


def test_half_of_the_chains_kept_are_the_best_and_half_failures_of_different_tasks():
    rows = [chain(number, solved) for number, solved in enumerate([1, 5, 0, 5, 2, 4, 1])]
    assert {1, 3} <= select_chains(rows, 4)
    kept = select_chains(rows, 6)
    assert len(kept) == 6
    assert len({rows[number]["solved"] for number in kept - {1, 3, 5}}) == 3
    assert select_chains(rows, 1) == {1}
    assert select_chains(rows, 0) == set()
    assert select_chains(rows, 100) == set(range(7))


def test_of_single_tasks_one_of_each_outcome_is_kept():
    rows = [chain(number, number % 2, tasks=["abc"[number // 4]]) for number in range(12)]
    kept = [rows[number] for number in select_chains(rows, 6)]
    assert {(row["subtasks"][0], row["solved"]) for row in kept} == {(task, s) for task in "abc" for s in (0, 1)}


@given(CHAINS, st.integers(0, 8), st.data())
def test_a_chain_kept_in_the_end_is_kept_in_every_part_that_holds_it(rows, count, data):
    part = data.draw(st.sets(st.sampled_from(range(len(rows)))) if rows else st.just(set()))
    assert select_chains(rows, count) & part <= select_chains([rows[number] for number in part], count)


@given(CHAINS, st.randoms(use_true_random=False), st.integers(1, 6))
def test_deciding_from_the_kept_ones_alone_gives_the_same_selection(rows, random, count):
    kept = []
    for row in random.sample(rows, len(rows)):
        numbers = select_chains([*kept, row], count)
        kept = [one for one in [*kept, row] if one["sequence"] in numbers]
    assert {row["sequence"] for row in kept} == select_chains(rows, count)


def test_dropping_videos_leaves_the_others(tmp_path):
    for number in (1, 2, 3):
        for path in video_paths(tmp_path, number):
            path.touch()
    (tmp_path / ".chain_0009.mp4.tmp").touch()
    (tmp_path / "chain_notes.txt").touch()  # a person's
    drop_videos(tmp_path, [1, 8])
    drop_other_videos(tmp_path, {2})
    assert {path.name for path in tmp_path.iterdir()} == {
        "chain_0002.mp4",
        "chain_0002.jpg",
        "chain_0002.npz",
        "chain_0002.webp",
        "chain_notes.txt",
    }
