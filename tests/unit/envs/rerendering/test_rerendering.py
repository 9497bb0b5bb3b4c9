"""Recordings rendered again: appearances differ and show the table; a video is that of one pass, and repeats."""

import colorsys
import itertools
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pybullet")

from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.cameras import INTRINSICS
from vw2_robot.envs.other_robots.arm import TOOL
from vw2_robot.envs.physics import Physics
from vw2_robot.envs.recording.config import CALVIN_TARGET, RERENDERED_TARGET, RecordConfig
from vw2_robot.envs.recording.formats import PartsOutput
from vw2_robot.envs.recording.record import record
from vw2_robot.envs.rerendering.appearance import BLOCKS, CONTRAST, PANDA, sample_appearance, sample_scene_appearance
from vw2_robot.envs.rerendering.embodiments import TOLERANCE_M, load_other_arm
from vw2_robot.envs.rerendering.rendering import FAR_M, NEAR_M, OVERSAMPLING, RerenderedScene, render_video
from vw2_robot.envs.rerendering.textures import PATTERNS, Texture, texture_image
from vw2_robot.envs.scene import SCENES
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

SIZE = 32
TABLE_CORNERS = np.array([(x, y, 0.44) for x in (-0.42, 0.42) for y in (-0.17, 0.1)])
MOST_PIXELS = 4
"""of a frame that may differ from one pass, because two surfaces are equally near"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A data set with two short windows."""
    out = tmp_path_factory.mktemp("recorded") / "calvin"
    env = {"_target_": CALVIN_TARGET, "scene": "D"}
    record(RecordConfig(out=str(out), env=env, episodes=2, tasks=["turn_on_led", "open_drawer"]))
    return out


@pytest.fixture(scope="module")
def states(recorded):
    """Every sixth state of the window that opens the drawer: robot and scene."""
    dataset = CalvinDataset(recorded)
    robot_obs, scene_obs = dataset.read_together(dataset.trajectories[1], ("robot_obs", "scene_obs"))
    return robot_obs[::6], scene_obs[::6]


def sampled(seed, *embodiments):
    return sample_appearance(np.random.default_rng(seed), embodiments=embodiments or (PANDA,))


def config(data, out, **changes):
    env = {"_target_": RERENDERED_TARGET, "data": str(data), "variants": 2, "image_size": 16, "embodiments": [PANDA]}
    return RecordConfig(out=str(out), env={**env, **changes.pop("env", {})}, format="video", **changes)


def test_appearances_differ_and_show_table_and_blocks():
    samples = [sampled(seed, PANDA, "iiwa", "xarm", "gen3") for seed in range(60)]
    assert sampled(7) == sampled(7)
    assert len({sample.table for sample in samples}) == len(samples)
    assert {sample.embodiment for sample in samples} == {PANDA, "iiwa", "xarm", "gen3"}
    assert {sample.floor.pattern for sample in samples} == set(PATTERNS)
    for sample in samples:
        wood = (np.array(sample.table.dark) + np.array(sample.table.light)) / 2
        assert len(sample.blocks) == BLOCKS
        assert min(np.linalg.norm(block.color - wood) for block in sample.blocks) >= CONTRAST
        # Of the table top's corners, three are in the image or within a sixth of its width.
        seen = np.abs(project(sample.camera, TABLE_CORNERS)).max(axis=1) < 4 / 3
        assert seen.sum() >= 3


HUES_DEG = {"red": (350, 370), "blue": (210, 250), "pink": (290, 330)}


@pytest.mark.parametrize("scene", ["A", "D"])
def test_blocks_of_labeled_recordings_keep_their_names_and_stand_out(scene):
    samples = [sample_scene_appearance(np.random.default_rng(seed), scene) for seed in range(40)]
    assert samples[3] == sample_scene_appearance(np.random.default_rng(3), scene)
    assert len({sample.table for sample in samples}) == len(samples)
    for sample in samples:
        for block, (name, _) in zip(sample.blocks, SCENES[scene].blocks, strict=True):
            low, high = HUES_DEG[name]
            hue, saturation, value = colorsys.rgb_to_hsv(*block.color)
            assert (hue * 360 - low) % 360 <= high - low
            assert min(saturation, value) >= 0.5
            for texture in (sample.table, sample.furniture):
                assert np.linalg.norm(np.subtract([texture.dark, texture.light], block.color), axis=1).min() >= CONTRAST


def test_a_labeled_recording_shows_what_calvins_camera_sees(states):
    robot_obs, scene_obs = states
    env = CalvinEnv(cameras=())
    env.reset_physics(robot_obs=robot_obs[0], scene_obs=scene_obs[0])
    _, depth = env.render_depth("static")
    env.close()
    physics = Physics()
    appearance = sample_scene_appearance(np.random.default_rng(0), "D")
    z = RerenderedScene(physics, "D", appearance, robot_obs, scene_obs).render_layer(INTRINSICS["static"].pixels).z
    physics.close()
    difference = np.abs(FAR_M * NEAR_M / (FAR_M - (FAR_M - NEAR_M) * z) - depth)
    # Floor, table, doors, blocks and arm; the wall hides what is farther away.
    near = depth < 5.0
    assert near.mean() > 0.9
    assert (difference[near] < 0.005).mean() > 0.999


def project(camera, points):
    """Return the places of points in the image, from -1 to 1."""
    ahead, up = np.subtract(camera.target, camera.position), np.array(camera.up)
    ahead = ahead / np.linalg.norm(ahead)
    right = np.cross(ahead, up) / np.linalg.norm(np.cross(ahead, up))
    rays = points - camera.position
    slopes = np.stack([rays @ right, rays @ np.cross(right, ahead)], axis=1) / (rays @ ahead)[:, None]
    return slopes / np.tan(np.deg2rad(camera.fov_deg / 2))


def test_textures_of_every_pattern_repeat_exactly_and_lie_between_their_colors():
    images = {}
    for pattern in PATTERNS:
        texture = Texture(pattern, dark=(0.2, 0.1, 0.4), light=(0.6, 0.9, 0.5), cells=4.0, angle=0.5, seed=3)
        images[pattern] = texture_image(texture)
        np.testing.assert_array_equal(images[pattern], texture_image(texture))
        assert (images[pattern] >= [50, 25, 101]).all()
        assert (images[pattern] <= [153, 230, 128]).all()
    assert len({image.tobytes() for image in images.values()}) == len(PATTERNS)
    assert images["checks"].std() > 2 * images["plain"].std()


@pytest.mark.parametrize("embodiment", [PANDA, "xarm"])
def test_a_video_is_that_of_one_pass_and_repeats_exactly(states, embodiment):
    robot_obs, scene_obs = states
    appearance = sampled(1, embodiment)
    video = render_video("D", appearance, robot_obs, scene_obs, image_size=SIZE)
    assert video.shape == (len(robot_obs), SIZE, SIZE, 3)
    np.testing.assert_array_equal(video, render_video("D", appearance, robot_obs, scene_obs, image_size=SIZE))
    assert all((frame != other).any() for frame, other in itertools.pairwise(video))
    other = render_video("D", sampled(2, embodiment), robot_obs[:1], scene_obs[:1], image_size=SIZE)
    assert np.abs(video[0].astype(int) - other[0]).mean() > 10
    physics = Physics()
    scene = RerenderedScene(physics, "D", appearance, robot_obs, scene_obs)
    for index, frame in enumerate(video):
        scene.set_frame(index)
        image = Image.fromarray(np.ascontiguousarray(scene.render_layer(SIZE * OVERSAMPLING).rgb))
        assert (np.asarray(image.reduce(OVERSAMPLING)) != frame).any(-1).sum() <= MOST_PIXELS
    physics.close()


def test_another_arm_follows_the_recorded_tool(states):
    robot_obs, _ = states
    physics = Physics()
    arms = [load_other_arm(physics, "xarm", robot_obs, np.random.default_rng(seed)) for seed in range(2)]
    for arm in arms:
        for frame, row in enumerate(robot_obs):
            arm.set_frame(physics, frame)
            reached = physics.getLinkState(arm.uid, TOOL, computeForwardKinematics=True)[4]
            assert np.linalg.norm(np.subtract(reached, row[:3])) <= TOLERANCE_M
    assert physics.getBasePositionAndOrientation(arms[0].uid) != physics.getBasePositionAndOrientation(arms[1].uid)
    # Nobody reaches a tool that is a meter higher.
    assert load_other_arm(physics, "xarm", robot_obs + 1.0, np.random.default_rng(0)) is None
    physics.close()


def test_recordings_continue_with_the_same_videos(recorded, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    record(config(recorded, whole, episodes=2))
    captions = [json.loads(line) for line in (whole / "training/captions.jsonl").read_text().splitlines()]
    assert [caption["task"] for caption in captions] == ["turn_on_led"] * 2 + ["open_drawer"] * 2
    lengths = [window.length for window in CalvinDataset(recorded).trajectories]
    assert [caption["frames"] for caption in captions] == [length for length in lengths for _ in range(2)]
    # Begun by a process that ends with the second window.
    begun = config(recorded, tmp_path / "resumed", episodes=2)
    jobs = begun.jobs()
    monkeypatch.setattr(RecordConfig, "jobs", lambda _: jobs[1:])
    monkeypatch.setattr(PartsOutput, "finish", lambda *_: None)
    monkeypatch.setitem(record.__globals__, "write_card", lambda *_, **__: None)
    record(begun)
    monkeypatch.undo()
    record(begun)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*"))
    assert all((whole / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes() for file in files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 3}, "2 labeled training windows, not 3"),
        ({"episodes": 1, "env": {"embodiments": ["ur5"]}}, "ur5.*expected one or more of panda"),
        ({"episodes": 1, "env": {"data": None}}, "env.data is not given"),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_it_begins(recorded, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        record(config(recorded, tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir())
