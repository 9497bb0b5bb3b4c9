"""vw2-record: its output is readable, agrees with the simulator, and is the same after any interruption."""

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml

pytest.importorskip("pybullet")

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import observe_world
from vw2_robot.envs.experts.motion import PERTURBATION_ROTATION, PERTURBATION_SIZE, PERTURBATION_STEPS, Perturbations
from vw2_robot.envs.experts.start_states import PAUSE_STEPS, RANDOM_MOTION_STEPS
from vw2_robot.envs.experts.ways import FORKS, SIDES, SPEEDS
from vw2_robot.envs.instructions import load_instructions
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.recording import record as program
from vw2_robot.envs.recording.camera_sway import sway
from vw2_robot.envs.recording.config import CALVIN_TARGET, OTHER_ROBOTS_TARGET, RecordConfig
from vw2_robot.envs.recording.dataset_card import dataset_card
from vw2_robot.envs.recording.demonstrations import MAX_ATTEMPTS, Recorder, expand_tasks
from vw2_robot.envs.recording.record import record
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

ENV = {"_target_": CALVIN_TARGET, "scene": "D", "assets": "builtin", "renderer": "layered"}
TASKS = ["turn_on_led", "open_drawer", "turn_off_led"]


def config(out, **changes):
    return RecordConfig(**{"out": str(out), "env": ENV, "episodes": 3, "tasks": TASKS, **changes})


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "calvin"
    record(config(out, validation_episodes=1))
    return out


def test_the_card_says_what_is_in_the_data_set_and_how_it_was_made(recorded):
    _, head, text = (recorded / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head) | {"tags": []} == {
        "license": "apache-2.0",
        "task_categories": ["robotics"],
        "language": ["en"],
        "tags": [],
    }
    assert "# Scripted demonstrations of the CALVIN tasks, scene D" in text
    assert "| recordings | 3 training, 1 validation |" in text
    assert text.count("| open_drawer | 1 | 0 |") == 1
    made = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert (made["env"]["scene"], made["tasks"], made["episodes"]) == ("D", TASKS, 3)
    assert "out" not in made
    foreign = replace(config("x"), env={**ENV, "assets": "/data"})
    card = dataset_card(foreign, made_with={}, recorded=Counter(), failed=Counter())
    assert "license: other" in card
    assert "terms of their assets" in card


def test_recordings_are_balanced_and_have_training_instructions(recorded):
    dataset = CalvinDataset(recorded)
    assert Counter(t.task for t in dataset.trajectories) == Counter(TASKS)
    for trajectory in dataset.trajectories:
        assert trajectory.instruction in load_instructions("train")[trajectory.task]
        assert trajectory.scene == "D"
        images = dataset.read_images(trajectory, [0])
        assert images.shape == (1, 200, 200, 3)
        assert images.std() > 10
    assert len(CalvinDataset(recorded, "validation")) == 1


def test_validation_differs_from_training(recorded):
    first, other = CalvinDataset(recorded).trajectories[0], CalvinDataset(recorded, "validation").trajectories[0]
    assert first.task == other.task
    mine, theirs = (
        CalvinDataset(recorded).read_actions(first),
        CalvinDataset(recorded, "validation").read_actions(other),
    )
    assert not np.array_equal(mine[:8], theirs[:8])


def test_commands_lead_where_the_recorded_motion_goes(recorded):
    dataset = CalvinDataset(recorded)
    trajectory = dataset.trajectories[1]
    moved, commanded = dataset.read(trajectory, "rel_actions"), dataset.read_actions(trajectory)
    assert dataset.reads == {"rel_actions": len(moved), "commanded_actions": len(moved)}
    np.testing.assert_array_equal(moved[:, 6], commanded[:, 6])
    # the arm follows its target with a lag, so directions agree although sizes differ
    assert np.mean(np.sum(moved[:, :3] * commanded[:, :3], axis=1) > 0) > 0.7
    assert np.abs(moved[:, :6] - commanded[:, :6]).mean() > 0.01


def test_replayed_actions_reproduce_the_recording_bit_for_bit_and_satisfy_the_oracle(recorded):
    dataset = CalvinDataset(recorded)
    env, oracle, replayed = CalvinEnv(cameras=()), TaskOracle(), 0
    for trajectory in dataset.trajectories:
        robot_obs, scene_obs = dataset.read(trajectory, "robot_obs"), dataset.read(trajectory, "scene_obs")
        made = Recorder().record(env, trajectory.task, seed=(0, 0, dataset.trajectories.index(trajectory)))
        np.testing.assert_array_equal(made.arrays["robot_obs"], robot_obs)
        np.testing.assert_array_equal(made.arrays["scene_obs"], scene_obs)
        np.testing.assert_array_equal(made.arrays["rgb_static"], dataset.read_images(trajectory))
        if abs(robot_obs[0, 0] - 0.0259) > 0.002:
            continue  # begun in the middle of things: the state alone does not bring that back
        env.reset_physics(robot_obs=_neutral(), scene_obs=_start(scene_obs[0]))
        start = env.task_info()
        for action, after in zip(dataset.read(trajectory, "commanded_actions")[:-1], robot_obs[1:], strict=True):
            env.step_physics(action)
            np.testing.assert_allclose(env.robot_obs()[:14], after[:14], atol=2e-3)
        assert oracle.get_task_info_for_set(start, env.task_info(), (trajectory.task,))
        replayed += 1
    env.close()
    assert replayed >= 1


def test_a_task_done_in_several_ways_is_recorded_with_its_way_and_always_the_same(recorded):
    assert not any(trajectory.way for trajectory in CalvinDataset(recorded).trajectories)
    env = CalvinEnv(cameras=(), reset_mode="exact")
    recorder = Recorder(ways="several", near_starts=0.999)
    made, again = (recorder.record(env, "push_red_block_left", seed=(0, 0, 3)) for _ in range(2))
    env.close()
    assert made.labels == again.labels
    assert made.labels[0].way.split(", ")[0] in FORKS["push_red_block_left"]
    for name, array in made.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    first, block = made.arrays["robot_obs"][0, :3], made.arrays["scene_obs"][0, 6:9]
    assert block[0] - 0.12 < first[0] < block[0]  # low beside the block, on the side where it is to go
    assert abs(first[2] - block[2]) < 0.03


def test_a_perturbation_is_a_short_push_in_any_direction_and_leaves_the_gripper_alone():
    action = np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.4, -1.0])
    perturbations = Perturbations(0.1, np.random.default_rng(0))
    pushed, lengths, directions, rotations = 0, [], [], []
    for _ in range(20_000):
        done = perturbations.onto(action)
        if done is action:
            lengths, pushed = [*lengths, pushed] if pushed else lengths, 0
            continue
        if pushed == 0:
            directions.append(done[:3])
            rotations.append(done[3:6])
        pushed += 1
        assert done[6] == action[6]
        assert np.abs(done[3:6]).max() <= PERTURBATION_ROTATION
        assert PERTURBATION_SIZE[0] <= np.linalg.norm(done[:3]) <= PERTURBATION_SIZE[1]
    assert set(range(*PERTURBATION_STEPS)) <= set(lengths)  # a push may follow on another
    assert np.abs(np.mean(directions, axis=0)).max() < 0.05
    assert np.std(rotations, axis=0).min() > 0.5 * PERTURBATION_ROTATION  # also those that tilt the gripper
    never = Perturbations(0.0, rng := np.random.default_rng(3))
    assert never.onto(action) is action
    assert rng.random() == np.random.default_rng(3).random()


def test_a_recording_with_perturbations_shows_pushes_and_keeps_the_commanded_actions():
    env = CalvinEnv(cameras=(), reset_mode="exact")
    recorder = Recorder(perturbations=0.05)
    made, again = (recorder.record(env, "open_drawer", seed=(0, 0, 7)) for _ in range(2))
    plain = Recorder().record(env, "open_drawer", seed=(0, 0, 7))
    env.close()
    for name, array in made.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    (label,) = made.labels
    assert label.task == "open_drawer"

    def astray(recording):
        """How far the arm moved against what was commanded, meters, in the worst step."""
        moved, wanted = recording.arrays["rel_actions"][:, :3], recording.arrays["commanded_actions"][:, :3]
        return 0.02 * float(np.max(-np.sum(moved * wanted, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 0.3)))

    assert astray(made) > 0.005
    assert astray(made) > 2 * astray(plain)


def test_a_failed_attempt_comes_before_the_window_and_leads_to_another_start():
    env = CalvinEnv(cameras=(), reset_mode="exact")
    distances = {}
    for failed_attempts in (0.0, 0.999):
        recorder = Recorder(failed_attempts=failed_attempts)
        made = [recorder.record(env, "lift_red_block_table", seed=(0, 0, k)) for k in range(4)]
        assert all(one.labels[0].task == "lift_red_block_table" and one.labels[0].start == 0 for one in made)
        first = [one.arrays[name][0] for one in made for name in ("robot_obs", "scene_obs")]
        distances[failed_attempts] = [float(np.linalg.norm(first[i][:3] - first[i + 1][6:9])) for i in range(0, 8, 2)]
    env.close()
    assert np.median(distances[0.999]) < 0.12 < np.median(distances[0.0])  # beside the missed block


def test_the_expert_solves_a_task_from_any_pose_of_the_arm():
    """What a policy drifts into: in the protocol nothing sets the gripper upright between two tasks."""
    env = CalvinEnv(cameras=(), reset_mode="exact")
    recorder = Recorder(random_starts=0.999, max_steps=160)
    tilts = []
    for k, task in enumerate(("open_drawer", "turn_on_led", "lift_red_block_table", "rotate_blue_block_left")):
        made = recorder.record(env, task, seed=(0, 0, k))
        (label,) = made.labels
        assert label.start >= RANDOM_MOTION_STEPS[0]  # the motion itself is not labeled
        roll, pitch = made.arrays["robot_obs"][[label.start, label.end], 3:5].T
        tilts.append(np.degrees(np.arccos(np.clip(-np.cos(roll) * np.cos(pitch), -1, 1))))
    env.close()
    before, after = np.transpose(tilts)
    assert np.median(before) > 10 > 5 > np.median(after)  # degrees between gripper and vertical


@pytest.mark.slow
def test_failed_attempts_in_play_lie_between_the_windows():
    env = CalvinEnv(cameras=(), reset_mode="exact")
    pool = ("turn_on_led", "turn_off_led", "turn_on_lightbulb", "turn_off_lightbulb")
    gaps = {}
    for failed_attempts in (0.0, 0.999):
        made = [
            Recorder(play=3, failed_attempts=failed_attempts).record(env, pool[0], seed=(0, 0, k), pool=pool)
            for k in range(3)
        ]
        windows = [(a, b) for one in made for a, b in itertools.pairwise(one.labels)]
        gaps[failed_attempts] = [after.start - before.end for before, after in windows]
    env.close()
    assert len(gaps[0.999]) == 6
    assert max(gaps[0.0]) <= PAUSE_STEPS[1] + 4  # the pause and the tail
    assert np.median(gaps[0.999]) > PAUSE_STEPS[1] + 4


def test_a_misjudged_world_is_shifted_and_nothing_else():
    env = CalvinEnv(cameras=(), reset_mode="exact")
    world = observe_world(env)
    env.close()
    error = np.array([0.03, -0.02, 0.01])
    wrong = world.with_position_error(error)
    for color, block in world.blocks.items():
        np.testing.assert_allclose(wrong.blocks[color].position, block.position + error)
    assert wrong.fixtures.drawer_x == pytest.approx(world.fixtures.drawer_x + 0.03)
    assert wrong.fixtures.button == pytest.approx((world.fixtures.button[0] + 0.03, world.fixtures.button[1] - 0.02))
    np.testing.assert_array_equal(wrong.tcp, world.tcp)
    assert (wrong.slide, wrong.drawer, wrong.lights) == (world.slide, world.drawer, world.lights)


def _neutral():
    from vw2_robot.envs.sequences import all_initial_states, start_state

    return start_state(all_initial_states()[0])[0]


def _start(scene_obs):
    return np.where(np.abs(scene_obs) < 1e-9, 0.0, scene_obs)


def test_interrupted_and_resumed_recording_gives_the_same_bytes(recorded, tmp_path, monkeypatch):
    out = tmp_path / "calvin"
    kept = program.RecordingWorker.record

    def stop_after_two(self, split, number):
        if number == 2:
            raise KeyboardInterrupt
        kept(self, split, number)

    monkeypatch.setattr(program.RecordingWorker, "record", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        record(config(out, validation_episodes=1))
    (out / "training" / "episode_0000512.npz").write_bytes(b"half")  # what a kill in the middle may leave
    monkeypatch.undo()
    record(config(out, validation_episodes=1))
    assert tree(out) == tree(recorded)


@pytest.mark.slow
def test_a_sampled_appearance_changes_the_images_alone_and_follows_from_seed_and_number(recorded, tmp_path):
    record(config(tmp_path / "sampled", appearance="sampled", episodes=2))
    dataset, plain = CalvinDataset(tmp_path / "sampled"), CalvinDataset(recorded)
    first_images = []
    for window, as_usual in zip(dataset.trajectories, plain.trajectories[:2], strict=True):
        assert (window.task, window.instruction, window.length) == (
            as_usual.task,
            as_usual.instruction,
            as_usual.length,
        )
        for name in ("robot_obs", "scene_obs", "actions", "rel_actions", "commanded_actions"):
            np.testing.assert_array_equal(dataset.read(window, name), plain.read(as_usual, name))
        first_images += [dataset.read_images(window, [0])[0], plain.read_images(as_usual, [0])[0]]
    differences = [np.abs(a.astype(int) - b).mean() for a, b in itertools.combinations(first_images, 2)]
    assert first_images[0].shape == (200, 200, 3)
    assert differences[4] < min(differences[:4] + differences[5:])  # the scene's images are alike, all others differ
    # The last recording, in a process that made none before it.
    env = CalvinEnv(cameras=())
    alone = Recorder(appearance="sampled").record(env, window.task, seed=(0, 0, 1))
    swaying = Recorder(appearance="sampled", camera_sway=3).record(env, window.task, seed=(0, 0, 1))
    env.close()
    images = dataset.read_images(window)
    np.testing.assert_array_equal(alone.arrays["rgb_static"], images)
    rng = np.random.default_rng((0, 0, 1, MAX_ATTEMPTS + 1))
    np.testing.assert_array_equal(swaying.arrays["rgb_static"], sway(images, largest_px=3, hz=30.0, rng=rng))


def test_two_processes_record_the_same_bytes_as_one(recorded, tmp_path):
    out = tmp_path / "calvin"
    record(config(out, validation_episodes=1, workers=2))
    assert tree(out) == tree(recorded)


def test_another_configuration_in_the_same_place_is_refused(recorded, tmp_path):
    with pytest.raises(InputError, match="seed"):
        record(config(recorded, validation_episodes=1, seed=1))
    with pytest.raises(InputError, match=r"ways \(None -> 'several'\)"):
        record(config(recorded, validation_episodes=1, ways="several"))
    (tmp_path / "calvin").mkdir()
    with pytest.raises(InputError, match="not begun by vw2-record"):
        record(config(tmp_path / "calvin"))


def test_rlds_and_video_hold_what_calvin_holds(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("imageio_ffmpeg")
    changes = {"episodes": 1, "tasks": ["turn_on_led"], "ways": "several"}
    record(config(tmp_path / "calvin", **changes))
    dataset = CalvinDataset(tmp_path / "calvin")
    trajectory = dataset.trajectories[0]
    assert trajectory.way in {f"{route}, {speed}" for route in SIDES for speed in SPEEDS}

    record(config(tmp_path / "video", format="video", **changes))
    caption = json.loads((tmp_path / "video" / "training" / "captions.jsonl").read_text())
    stated = caption["instruction"], caption["frames"], caption["way"]
    assert stated == (trajectory.instruction, trajectory.length, trajectory.way)
    assert (tmp_path / "video" / "training" / caption["file"]).stat().st_size > 1000
    assert not (tmp_path / "video.parts").exists()

    record(config(tmp_path / "rlds", format="rlds", **changes))
    import tensorflow_datasets as tfds

    episode = next(iter(tfds.builder_from_directory(str(tmp_path / "rlds")).as_dataset(split="train")))
    steps = list(episode["steps"].as_numpy_iterator())
    assert steps[0]["language_instruction"].decode() == trajectory.instruction
    assert episode["episode_metadata"]["way"].numpy().decode() == trajectory.way
    np.testing.assert_allclose([step["action"] for step in steps], dataset.read_actions(trajectory), atol=1e-6)
    images = np.array([step["observation"]["image"] for step in steps]).astype(float)
    assert np.abs(images - dataset.read_images(trajectory)).mean() < 4


def test_the_other_world_is_recorded_as_rlds_and_resumes(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    other_robots = {"_target_": OTHER_ROBOTS_TARGET, "hz": 5.0, "image_size": 32, "embodiments": ["iiwa", "gen3"]}
    wanted = config(tmp_path / "other_robots", env=other_robots, format="rlds", episodes=3, validation_episodes=1)
    kept = program.RecordingWorker.record
    made = []

    def stop_at_third(self, split, number):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(number)
        kept(self, split, number)

    monkeypatch.setattr(program.RecordingWorker, "record", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        record(wanted)
    assert not (tmp_path / "other_robots").exists()
    made.clear()
    record(wanted)
    assert len(made) == 2
    builder = tfds.builder_from_directory(str(tmp_path / "other_robots"))
    assert builder.info.name == "vw2_other_robots"
    assert {split: builder.info.splits[split].num_examples for split in builder.info.splits} == {
        "train": 3,
        "validation": 1,
    }
    with pytest.raises(InputError, match="format=rlds"):
        config_from(RecordConfig, {"out": "x", "env": other_robots, "format": "calvin"})


def test_several_scenes_share_a_split(tmp_path):
    out = tmp_path / "abc"
    record(config(out, env={**ENV, "scene": "ACD"}, episodes=4, validation_episodes=1, tasks=["turn_on_led"]))
    trajectories = CalvinDataset(out).trajectories
    assert [trajectory.scene for trajectory in trajectories] == ["A", "A", "C", "D"]
    assert [trajectory.scene for trajectory in CalvinDataset(out, "validation").trajectories] == ["A"]
    for trajectory in trajectories[1:]:
        image = CalvinDataset(out).read_images(trajectory, [0])[0]
        env = CalvinEnv(scene=trajectory.scene)
        rows = (CalvinDataset(out).read(trajectory, name)[0] for name in ("robot_obs", "scene_obs"))
        env.reset_physics(**dict(zip(("robot_obs", "scene_obs"), rows, strict=True)))
        assert np.abs(image.astype(int) - env.render_depth("static")[0].astype(int)).mean() < 2, trajectory.scene
        env.close()


def test_scenes_that_get_no_recording_are_named(tmp_path, capsys):
    few = config(
        tmp_path / "few", env={**ENV, "scene": "ACD"}, episodes=2, validation_episodes=1, tasks=["turn_on_led"]
    )
    assert few.scenes_left_out() == {"training": ["D"], "validation": ["C", "D"]}
    assert replace(few, episodes=3, validation_episodes=0).scenes_left_out() == {}
    record(replace(few, episodes=1, validation_episodes=0))
    assert "training: no recording of scene C, D, since there are fewer" in capsys.readouterr().out


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    for wrong, message in (
        ({"env": {**ENV, "assets": str(tmp_path / "nowhere")}}, "nowhere is no directory"),
        ({"env": {**ENV, "scene": "E"}}, "unknown scene 'E'"),
        ({"env": {**ENV, "scene": "ABA"}}, "unknown scene 'ABA'; choose one of A, B, C, D, or several, as ABC"),
        ({"tasks": "opn_drawer"}, "unknown task 'opn_drawer'"),
    ):
        with pytest.raises(InputError, match=message):
            record(config(tmp_path / "out", workers=2, **wrong))
    assert list(tmp_path.iterdir()) == []


def test_task_groups_expand_and_unknown_names_are_refused():
    assert len(expand_tasks(["all"])) == 34
    assert len(expand_tasks(["basic"])) == 17
    assert expand_tasks(["open_drawer", "furniture"])[0] == "open_drawer"
    assert expand_tasks(["all", "lift_anywhere"]).count("lift_red_block_drawer") == 2  # a weight
    with pytest.raises(InputError, match=r"unknown task 'opn_drawer'; groups: all, .*; nearest: open_drawer"):
        expand_tasks(["opn_drawer"])


def test_configuration_is_checked_before_work():
    tree = {"out": "x", "env": ENV, "tasks": ["open_drawer"]}
    assert config_from(RecordConfig, tree).task_names() == ("open_drawer",)
    assert config_from(RecordConfig, {**tree, "tasks": "furniture"}).task_names()[0] == "open_drawer"
    assert config_from(RecordConfig, tree).spacing == 256
    assert config_from(RecordConfig, {**tree, "play": 5}).spacing == 1024  # 5 x 132 steps and 4 x 13 between
    for wrong in (
        {"episodes": 0}, {"format": "csv"}, {"compress_level": 10}, {"epsiodes": 3}, {"play": 0},
        {"max_window": 0}, {"depth": True, "format": "rlds"}, {"play": 1000, "episodes": 1000},
        {"appearance": "sampled", "wrist_camera": True}, {"appearance": "sampled", "depth": True},
        {"appearance": "sampled", "env": {**ENV, "renderer": "egl"}}, {"camera_sway": 3, "depth": True},
    ):  # fmt: skip
        with pytest.raises(InputError):
            config_from(RecordConfig, {**tree, **wrong})
