"""A recorded CALVIN data set against the published form, with an independent reader of that form."""

import numpy as np
import pytest
import yaml

pytest.importorskip("pybullet")

from omegaconf import OmegaConf

from vw2_robot.envs.instructions import load_instructions
from vw2_robot.envs.recording.config import CALVIN_TARGET, RecordConfig
from vw2_robot.envs.recording.record import record
from vw2_robot.envs.scene import SCENES

pytestmark = pytest.mark.sim

FRAME = {
    "rgb_static": ("uint8", (200, 200, 3)),
    "rgb_gripper": ("uint8", (84, 84, 3)),
    "depth_static": ("float32", (200, 200)),
    "depth_gripper": ("float32", (84, 84)),
    "actions": ("float64", (7,)),
    "rel_actions": ("float64", (7,)),
    "robot_obs": ("float64", (15,)),
    "scene_obs": ("float64", (24,)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("form") / "calvin"
    env = {"_target_": CALVIN_TARGET, "scene": "A"}
    tasks = ["turn_on_led", "close_drawer"]
    record(
        RecordConfig(
            str(out), env, episodes=2, validation_episodes=1, tasks=tasks, wrist_camera=True, depth=True, tail_steps=2
        )
    )
    return out


def read_split(folder):
    """Everything in a split: recordings as dicts of stacked arrays by first frame, and the label dict."""
    recordings = {}
    for first, last in np.load(folder / "ep_start_end_ids.npy"):
        frames = [np.load(folder / f"episode_{frame:07d}.npz") for frame in range(first, last + 1)]
        recordings[int(first)] = {key: np.stack([frame[key] for frame in frames]) for key in frames[0].files}
    labels = np.load(folder / "lang_annotations" / "auto_lang_ann.npy", allow_pickle=True).item()
    return recordings, labels


def expected_motion(absolute, measured):
    """Section "to_relative_action" of the format, written down again."""
    position = np.clip(absolute[:, :3] - measured[:, :3], -0.02, 0.02) / 0.02
    rotation = (absolute[:, 3:6] - measured[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
    return np.hstack([position, np.clip(rotation, -0.05, 0.05) / 0.05, absolute[:, 6:]])


def test_every_frame_has_the_published_arrays(root):
    recordings, _ = read_split(root / "training")
    assert len(recordings) == 2
    for arrays in recordings.values():
        found = {key: (value.dtype.name, value.shape[1:]) for key, value in arrays.items() if key in FRAME}
        assert found == FRAME
        assert set(arrays) - set(FRAME) == {"commanded_actions"}
        assert 2.5 < np.median(arrays["depth_static"]) < 5  # the camera stands 4 m away
        assert arrays["depth_gripper"].max() < 2.01


def test_actions_are_the_next_pose_and_relative_actions_the_way_there(root):
    recordings, _ = read_split(root / "training")
    for arrays in recordings.values():
        absolute, measured = arrays["actions"], arrays["robot_obs"]
        np.testing.assert_array_equal(absolute[:-1, :6], measured[1:, :6])
        np.testing.assert_array_equal(absolute[:-1, 6], measured[1:, 14])
        assert set(absolute[:, 6]) <= {-1.0, 1.0}
        np.testing.assert_array_equal(arrays["rel_actions"], expected_motion(absolute, measured))
        assert np.abs(arrays["rel_actions"]).max() <= 1
        # and back, wherever nothing was clipped
        unclipped = np.abs(arrays["rel_actions"][:, :6]).max(axis=1) < 1
        back = measured[:, :3] + arrays["rel_actions"][:, :3] * 0.02
        assert unclipped.mean() > 0.8
        np.testing.assert_allclose(back[unclipped], absolute[unclipped, :3], atol=1e-12)


def test_labels_are_windows_of_recordings_with_instructions_and_vectors(root):
    recordings, labels = read_split(root / "training")
    assert sorted(labels) == ["info", "language"]
    assert labels["info"]["episodes"] == []
    assert labels["language"]["task"] == ["turn_on_led", "close_drawer"]
    vectors = labels["language"]["emb"]
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 1, 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1, atol=1e-6)
    for task, instruction, (start, end) in zip(
        labels["language"]["task"], labels["language"]["ann"], labels["info"]["indx"], strict=True
    ):
        assert instruction in load_instructions("train")[task]
        first = max(frame for frame in recordings if frame <= start)
        assert first <= start < end < first + len(recordings[first]["actions"])


def test_tables_of_a_split_agree(root):
    folder = root / "training"
    spans, lengths = np.load(folder / "ep_start_end_ids.npy"), np.load(folder / "ep_lens.npy")
    assert spans.dtype.kind == "i"
    assert spans.shape == (2, 2)
    np.testing.assert_array_equal(spans[:, 1] - spans[:, 0] + 1, lengths)
    assert len(list(folder.glob("episode_*.npz"))) == lengths.sum()
    scenes = np.load(folder / "scene_info.npy", allow_pickle=True).item()
    assert scenes == {"calvin_scene_A": [spans.min(), spans.max()]}
    statistics = yaml.safe_load((folder / "statistics.yaml").read_text())
    recordings, _ = read_split(folder)
    states = np.concatenate([arrays["scene_obs"] for arrays in recordings.values()])
    np.testing.assert_allclose(statistics["scene_obs"][0]["mean"], states.mean(axis=0), atol=1e-6)
    assert [len(statistics[key]) for key in ("act_min_bound", "act_max_bound")] == [7, 7]


def test_validation_carries_the_vectors_of_the_evaluation_instructions(root):
    table = np.load(root / "validation" / "lang_annotations" / "embeddings.npy", allow_pickle=True).item()
    assert {task: entry["ann"] for task, entry in table.items()} == load_instructions("validation")
    assert len({entry["emb"].tobytes() for entry in table.values()}) == 34
    assert {entry["emb"].shape for entry in table.values()} == {(1, 1, 384)}
    assert not (root / "training" / "lang_annotations" / "embeddings.npy").exists()


def test_the_environment_is_described_as_the_reference_asks_for_it(root):
    for split in ("training", "validation"):
        tree = OmegaConf.load(root / split / ".hydra" / "merged_config.yaml")
        assert list(tree.cameras) == ["static", "gripper"]
        del tree.cameras["gripper"]  # what the reference does with a camera that is not configured
        env = OmegaConf.to_container(tree.env, resolve=True)
        assert env["_target_"] == "calvin_env.envs.play_table_env.PlayTableSimEnv"
        assert env["_recursive_"] is False  # the sections are made by the environment itself
        assert list(env["cameras"]) == ["static"]
        assert (env["cameras"]["static"]["fov"], env["cameras"]["static"]["width"]) == (10, 200)
        assert (env["control_freq"], env["bullet_time_step"], env["use_egl"]) == (30, 240.0, False)
        assert env["robot_cfg"]["base_position"] == [-0.34, -0.46, 0.24]
        assert env["robot_cfg"]["gripper_joint_ids"] == [9, 11]
        blocks = env["scene_cfg"]["objects"]["movable_objects"]
        assert tuple(blocks) == SCENES["A"].block_order
        assert blocks["block_pink"]["file"] == "blocks/block_pink_small.urdf"
