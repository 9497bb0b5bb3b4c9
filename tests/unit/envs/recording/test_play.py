"""Play: several tasks in one recording, each in a window that the oracle confirms, the same bytes however recorded."""

import itertools
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("pybullet")

from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import SKILLS
from vw2_robot.envs.experts.start_states import TASK_GROUPS, go_to_start
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.recording.config import CALVIN_TARGET, RecordConfig
from vw2_robot.envs.recording.demonstrations import Recorder, next_task
from vw2_robot.envs.recording.record import record

pytestmark = pytest.mark.sim

ENV = {"_target_": CALVIN_TARGET, "scene": "D"}


def config(out, **changes):
    wanted = {"env": ENV, "episodes": 2, "play": 3, "tasks": "furniture", "max_steps": 100}
    return RecordConfig(str(out), **{**wanted, **changes})


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class WithoutImages(Recorder):
    """The recorder without images, which are most of its time."""

    def _render(self, env, start, attempt):
        return {}


@pytest.fixture(scope="module")
def env():
    with CalvinEnv(cameras=()) as world:
        yield world


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("play") / "calvin"
    record(config(out))
    return out


def test_a_recording_holds_several_windows_one_after_another(recorded):
    windows = CalvinDataset(recorded).trajectories
    recordings = CalvinDataset(recorded, trajectories="recordings").trajectories
    assert [r.start for r in recordings] == [0, 512]  # 3 x 104 steps and two pauses
    assert len(windows) == 6
    for recording in recordings:
        inside = [w for w in windows if recording.start <= w.start <= recording.end]
        assert len({w.task for w in inside}) == 3
        assert (inside[0].start, inside[-1].end) == (recording.start, recording.end)
        for before, after in itertools.pairwise(inside):
            assert 0 <= after.start - before.end - 1 < 12  # the moments between belong to no window
    assert windows[0].task == TASK_GROUPS["furniture"][0]
    assert windows[3].task == TASK_GROUPS["furniture"][1]


def test_nothing_jumps_between_the_tasks(recorded):
    dataset = CalvinDataset(recorded, trajectories="recordings")
    for trajectory in dataset.trajectories:
        absolute, measured = dataset.read(trajectory, "actions"), dataset.read(trajectory, "robot_obs")
        np.testing.assert_array_equal(absolute[:-1, :6], measured[1:, :6])
        assert (
            np.linalg.norm(np.diff(measured[:, :3], axis=0), axis=1).max() < 0.06
        )  # an arm that was blocked comes free


def test_every_window_is_confirmed_by_the_oracle_from_end_to_end(env):
    made = WithoutImages(play=3).record(env, "lift_red_block_table", seed=(5, 0, 0), pool=tuple(SKILLS))
    oracle, seed = TaskOracle(), (5, 0, 0, len(made.failed))
    go_to_start(env, "lift_red_block_table", oracle, np.random.default_rng(seed))
    infos = []
    for action in made.arrays["commanded_actions"]:
        infos.append(env.task_info())
        env.step_physics(action)
    infos.append(env.task_info())
    assert len(made.labels) == 3
    for label in made.labels:
        assert oracle.get_task_info_for_set(infos[label.start], infos[label.end + 1], (label.task,))


def test_a_lifted_block_is_put_somewhere_if_the_pool_allows(env):
    made = WithoutImages(play=2).record(env, "lift_red_block_table", seed=(1,), pool=tuple(SKILLS))
    assert made.labels[1].task.startswith(("place", "stack"))
    go_to_start(env, "turn_on_led", TaskOracle(), np.random.default_rng(0))
    assert next_task(env, ("turn_on_led",), ("turn_on_led",), np.random.default_rng(0)) is None


def test_windows_are_cut_from_the_front_and_still_confirmed(env):
    whole = WithoutImages().record(env, "open_drawer", seed=(2,))
    cut = WithoutImages(max_window=20).record(env, "open_drawer", seed=(2,))
    np.testing.assert_array_equal(whole.arrays["commanded_actions"], cut.arrays["commanded_actions"])
    assert len(whole.arrays["actions"]) > 20
    assert (cut.labels[0].start, cut.labels[0].end) == (whole.labels[0].end - 19, whole.labels[0].end)


@pytest.mark.slow
def test_interrupted_play_ends_in_the_same_bytes(recorded, tmp_path):
    out = tmp_path / "calvin"
    shutil.copytree(recorded, out)
    shutil.copy(recorded.with_name("calvin.record.json"), tmp_path)
    (out / "training" / ".record" / "episode_0000512.json").unlink()  # killed in the middle of the second recording
    (out / "training" / "episode_0000600.npz").write_bytes(b"half a fi")
    for name in ("lang_annotations/auto_lang_ann.npy", "ep_lens.npy", "episode_0000601.npz"):
        (out / "training" / name).unlink()
    record(config(out))
    assert tree(out) == tree(recorded)


@pytest.mark.slow
def test_two_processes_record_the_same_play_as_one(recorded, tmp_path):
    record(config(tmp_path / "calvin", workers=2))
    assert tree(tmp_path / "calvin") == tree(recorded)


def test_videos_of_play_are_its_windows(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    record(config(tmp_path / "video", format="video", episodes=1, play=2))
    folder = tmp_path / "video" / "training"
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [caption["file"] for caption in captions] == ["video_0000000_0.mp4", "video_0000000_1.mp4"]
    made = WithoutImages(max_steps=100, play=2).record(
        CalvinEnv(cameras=()), "open_drawer", seed=(0, 0, 0), pool=TASK_GROUPS["furniture"]
    )
    found = [(caption["task"], caption["instruction"], caption["frames"]) for caption in captions]
    assert found == [(label.task, label.instruction, label.end - label.start + 1) for label in made.labels]
    assert all((folder / caption["file"]).stat().st_size > 1000 for caption in captions)
