"""Block building: what is built, who builds it, and that an episode is a function of its seed."""

import json

import numpy as np
import pytest

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.sources.video_folder import VideoFolderSource
from vw2_robot.envs.craft import building
from vw2_robot.envs.craft.building import CraftEpisode, FallenError, build
from vw2_robot.envs.craft.layout import sample_craft_layout
from vw2_robot.envs.craft.patterns import KEY_STEPS, PATTERNS, SHAPES, UNIT_M
from vw2_robot.envs.recording import craft
from vw2_robot.envs.recording.config import CRAFT_TARGET, RecordConfig
from vw2_robot.envs.recording.record import record
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim
ENV = {"_target_": CRAFT_TARGET, "hz": 5.0, "image_size": 16, "embodiments": ["hand", "iiwa"]}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_block_of_a_pattern_lies_on_the_table_or_on_blocks_placed_before(pattern):
    places = PATTERNS[pattern]
    assert len(places) == KEY_STEPS
    for index, place in enumerate(places):
        bottom = place.z - SHAPES[place.shape][2] / 2
        tops = [other.z + SHAPES[other.shape][2] / 2 for other in places[:index]]
        assert bottom == 0 or any(abs(bottom - top) < 1e-9 for top in tops), index


def test_a_place_turns_with_its_pattern():
    center, yaw = PATTERNS["gate"][0].pose((0.5, 0.1), np.pi / 2)
    np.testing.assert_allclose(center, [0.5, 0.1 - 1.1 * UNIT_M, UNIT_M / 2])
    assert yaw == np.pi / 2
    assert PATTERNS["tower"][2].pose((0, 0), 0.0)[1] == np.pi / 2


def test_test_worlds_share_no_color_texture_or_camera_with_training_worlds():
    def seen(world):
        layouts = [
            sample_craft_layout(np.random.default_rng(i), pattern="tower", embodiments=["hand"], world=world)
            for i in range(40)
        ]
        sides = [np.subtract(one.camera_position, one.camera_target) for one in layouts]
        azimuths = [abs(np.arctan2(y, x)) for x, y, _ in sides]
        heights = [one.camera_position[2] for one in layouts]
        looks = {(one.table.pattern, one.table.dark) for one in layouts} | {one.wall.dark for one in layouts}
        return looks | {block.color for one in layouts for block in one.blocks}, azimuths, heights

    training, test = seen("training"), seen("test")
    assert not training[0] & test[0]
    assert max(training[1]) < min(test[1])
    assert max(training[2]) < min(test[2])


@pytest.mark.parametrize("builder", ["hand", "iiwa"])
def test_an_episode_is_a_function_of_its_seed_and_shows_its_first_key_step(builder, monkeypatch):
    # One block of seven: the others are placed by the same lines.
    monkeypatch.setattr(building, "KEY_STEPS", 1)
    options = {"seed": 3, "split": 0, "pattern": "tower", "world": "training", "embodiments": [builder], "hz": 1.0}
    one = build(number=0, image_size=16, **options)
    if builder == "iiwa":  # whose joints have a state of their own
        again = build(number=0, image_size=16, **options)
        np.testing.assert_array_equal(one.images, again.images)
        np.testing.assert_array_equal(one.track, again.track)
    assert (one.embodiment, one.num_failed_attempts) == (builder, 0)
    assert 0 < one.key_frames[0] < len(one.images) - 1
    assert one.images.shape == (len(one.track), 16, 16, 3)
    assert np.ptp(one.track, axis=0).min() > 0.02  # the tool is seen to move


def test_blocks_that_are_not_in_their_places_are_no_key_step(monkeypatch):
    monkeypatch.setattr(building, "KEY_STEPS", 1)
    monkeypatch.setattr(building, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(building, "TOLERANCE_M", 0.0)
    options = {"pattern": "gate", "world": "test", "embodiments": ["hand"], "hz": 0.2, "image_size": 8}
    with pytest.raises(RuntimeError, match="failed 1 times"):
        build(seed=0, split=0, number=0, **options)
    assert issubclass(FallenError, Exception)


def test_a_recording_has_videos_and_key_frames_and_no_action(tmp_path, monkeypatch):
    made = []

    def episode(*, split, number, pattern, world, **_):
        made.append((split, number))
        images = np.full((9, 16, 16, 3), 20 * number, np.uint8)
        track = np.linspace(0, 1, 18).reshape(9, 2)
        failed = 1 if number else 0
        return CraftEpisode(images, tuple(range(1, 8)), track, pattern, f"build a {pattern}", "hand", 5.0, failed)

    monkeypatch.setattr(craft, "build", episode)
    tree = {"out": str(tmp_path / "craft"), "env": ENV, "format": "video", "episodes": 2, "validation_episodes": 1}
    record(config_from(RecordConfig, tree | {"tasks": ["gate", "tower"]}))
    assert made == [(0, 0), (0, 1), (1, 0)]
    rows = [json.loads(line) for line in (tmp_path / "craft/training/captions.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["gate", "tower"]
    assert rows[0]["key_frames"] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[0]["world"] == "training"
    assert not any("action" in key for key in rows[0])
    assert len(rows[0]["track"]) == rows[0]["frames"] == 9
    (read,) = VideoFolderSource(tmp_path / "craft" / "validation").read(0)
    assert (len(read), read.instruction, read.hz) == (9, "build a gate", 5.0)


def test_a_recording_that_cannot_work_is_refused_before_it_begins(tmp_path):
    tree = {"out": str(tmp_path / "x"), "env": ENV, "format": "video"}
    with pytest.raises(InputError, match="format=video"):
        config_from(RecordConfig, tree | {"format": "rlds"})
    with pytest.raises(InputError, match="tower"):
        record(config_from(RecordConfig, tree | {"tasks": "towr"}))
    with pytest.raises(InputError, match="embodiments"):
        record(config_from(RecordConfig, tree | {"env": {**ENV, "embodiments": ["foot"]}}))
    assert not (tmp_path / "x").exists()
