"""The simulation of other robots: same seed, same bytes; objects move; labels agree with the physics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="the simulator needs pybullet")

from vw2_robot.contracts import GRIPPER_INDEX, POSITION_UNIT_M
from vw2_robot.envs.other_robots import environment
from vw2_robot.envs.other_robots.environment import EMBODIMENTS, RecordedEpisode, solved_episodes
from vw2_robot.envs.other_robots.world import OtherRobotsEnv, SceneLayout, sample_layout
from vw2_robot.envs.physics import Physics
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def episodes() -> list[RecordedEpisode]:
    return list(solved_episodes(10, seed=3, image_size=48))


@pytest.fixture
def physics() -> Iterator[Physics]:
    physics = Physics()
    yield physics
    physics.close()


def play(
    physics: Physics, task: environment.Task, seed: int, who: Sequence[str] = EMBODIMENTS
) -> tuple[OtherRobotsEnv, environment.Plan]:
    layout, plan = environment.sample_plan(task, np.random.default_rng(seed), who)
    world = OtherRobotsEnv(physics, layout)
    environment.execute(world, plan, hz=1.0, image_size=8)
    return world, plan


def named(layout: SceneLayout, text: str) -> int:
    """Index of the object whose name comes first in the text."""
    places = [text.find(item.name) for item in layout.objects]
    return min((place, index) for index, place in enumerate(places) if place >= 0)[1]


def test_episodes_are_the_same_whenever_and_however_many_are_made(episodes: list[RecordedEpisode]) -> None:
    for again, first in zip(solved_episodes(3, seed=3, image_size=48), episodes, strict=False):
        assert again.instruction == first.instruction
        np.testing.assert_array_equal(again.images, first.images)
        np.testing.assert_array_equal(again.actions, first.actions)


def test_other_seeds_give_other_episodes(episodes: list[RecordedEpisode]) -> None:
    other = next(solved_episodes(1, seed=4, image_size=48))
    assert not np.array_equal(other.images[0], episodes[0].images[0])


def test_arrays_have_the_promised_types_and_lengths(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes:
        num_frames = len(episode.images)
        assert 10 <= num_frames <= 28
        assert episode.images.shape == (num_frames, 48, 48, 3)
        assert episode.images.dtype == np.uint8
        assert episode.actions.shape == (num_frames, 7)
        assert episode.actions.dtype == np.float32
        assert np.abs(episode.actions).max() <= 3  # 0.06 m or 0.15 rad in 1/30 s
        assert set(np.unique(episode.actions[:, GRIPPER_INDEX])) <= {-1.0, 1.0}
        assert not episode.actions[-1, :GRIPPER_INDEX].any()
        assert episode.success


def test_images_show_motion_between_most_frames(episodes: list[RecordedEpisode]) -> None:
    shares = []
    for episode in episodes:
        change = np.abs(np.diff(episode.images.astype(int), axis=0)).max(axis=3) > 40
        moving = change.reshape(len(change), -1).mean(axis=1)  # share of pixels that changed clearly
        shares.append(float(np.mean(moving > 0.01)))
        assert moving.max() < 0.5
    assert np.mean(shares) > 0.5
    assert min(shares) > 0.2  # a reach ends with a rest


def test_scenes_instructions_and_tasks_vary(episodes: list[RecordedEpisode]) -> None:
    assert len({episode.instruction for episode in episodes}) >= 9
    assert len({episode.task for episode in episodes}) >= 3
    corners = {tuple(episode.images[0][-1, 0] // 8) for episode in episodes}  # the table
    assert len(corners) >= 4


def test_actions_add_up_to_the_way_of_the_tool(physics: Physics) -> None:
    layout, plan = environment.sample_plan(environment.pick, np.random.default_rng(5))
    world = OtherRobotsEnv(physics, layout)
    start = world.tool()[0]
    np.testing.assert_allclose(start, layout.tool_position, atol=1e-3)
    _, actions = environment.execute(world, plan, hz=5.0, image_size=8)
    ticks = 30 / 5
    end = start + actions[:, :3].astype(float).sum(axis=0) * POSITION_UNIT_M * ticks
    np.testing.assert_allclose(end, world.tool()[0], atol=5e-3)  # one physics step lies between both
    np.testing.assert_allclose(end, plan.waypoints[-1].position, atol=0.02)
    assert actions[0, GRIPPER_INDEX] == 1
    assert actions[-1, GRIPPER_INDEX] == -1


def test_the_camera_sees_all_objects_from_before_and_from_both_sides(physics: Physics) -> None:
    around = []
    for seed in range(100):
        layout = sample_layout(np.random.default_rng(seed), embodiments=EMBODIMENTS, plates=1)
        around.append(math.atan2(-layout.ahead[1], -layout.ahead[0]))
        view = (
            np.array(physics.computeViewMatrix(layout.camera_position, layout.camera_target, (0, 0, 1))).reshape(4, 4).T
        )
        projection = np.array(physics.computeProjectionMatrixFOV(layout.fov_deg, 1.0, 0.05, 5.0)).reshape(4, 4).T
        for item in layout.objects:
            x, y, _, w = projection @ view @ [*item.xy, item.height / 2, 1]
            assert max(abs(x / w), abs(y / w)) < 1, f"seed {seed}: the {item.name} is outside the image"
        assert layout.ahead @ layout.right == pytest.approx(0)
    assert min(around) < -1.5
    assert max(around) > 1.5
    assert min(map(abs, around)) < 0.2


def test_frame_rate_sets_the_number_of_frames() -> None:
    slow, fast = (next(solved_episodes(1, seed=8, hz=hz, image_size=8)) for hz in (5.0, 10.0))
    assert slow.instruction == fast.instruction
    assert abs(2 * (len(slow.images) - 1) - (len(fast.images) - 1)) <= 1


@pytest.mark.parametrize("who", EMBODIMENTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_picked_object_hangs_in_the_air(physics: Physics, seed: int, who: str) -> None:
    world, plan = play(physics, environment.pick, seed, (who,))
    assert world.layout.embodiment == who
    index = named(world.layout, plan.instruction)
    assert plan.succeeded(world)
    assert world.object_position(index)[2] > 0.10
    assert world.table not in {body for body, _ in world.contacts(index)}
    assert np.linalg.norm(world.object_position(index) - world.tool()[0]) < 0.04


@pytest.mark.parametrize("seed", [0, 1])
def test_placed_object_rests_on_the_plate_alone(physics: Physics, seed: int) -> None:
    world, plan = play(physics, environment.place, seed)
    item, plate = plan.instruction.split(" on the ")
    index, plate_index = named(world.layout, item), named(world.layout, plate)
    assert plan.succeeded(world)
    assert {body for body, _ in world.contacts(index)} == {world.object_ids[plate_index]}
    bottom = world.object_position(index)[2] - world.layout.objects[index].height / 2
    assert bottom == pytest.approx(world.layout.objects[plate_index].height, abs=3e-3)


@pytest.mark.parametrize("seed", range(4))
def test_pushed_object_goes_where_the_instruction_says_as_seen_by_the_camera(physics: Physics, seed: int) -> None:
    world, plan = play(physics, environment.push, seed)
    assert plan.succeeded(world)
    layout, index = world.layout, named(world.layout, plan.instruction)
    view = np.array(physics.computeViewMatrix(layout.camera_position, layout.camera_target, (0, 0, 1))).reshape(4, 4).T

    def seen(position: np.ndarray) -> np.ndarray:  # camera frame: x right, y up, z toward the viewer
        return np.asarray((view @ [*position, 1])[:3])

    item = layout.objects[index]
    moved = seen(world.object_position(index)) - seen(np.array([*item.xy, item.height / 2]))
    wanted = {"right": (0, 1), "left": (0, -1), "away from the camera": (2, -1), "toward the camera": (2, 1)}
    axis, sign = next(value for ending, value in wanted.items() if plan.instruction.endswith(ending))
    assert sign * moved[axis] > 0.035
    assert world.object_position(index)[2] == pytest.approx(item.height / 2, abs=3e-3), "pushed, not toppled"


def test_reaching_ends_above_the_object_and_touches_nothing(physics: Physics) -> None:
    world, plan = play(physics, environment.reach, 1)
    index = named(world.layout, plan.instruction)
    assert plan.succeeded(world)
    tool, item = world.tool()[0], world.object_position(index)
    assert math.dist(tool[:2], item[:2]) < 0.02
    assert not any(world.robot in {body for body, _ in world.contacts(k)} for k in range(len(world.object_ids)))


@pytest.mark.parametrize("task", [environment.pick, environment.place, environment.push, environment.reach])
def test_an_arm_that_stays_where_it_is_does_not_count_as_success(physics: Physics, task: environment.Task) -> None:
    layout, plan = environment.sample_plan(task, np.random.default_rng(2))
    world = OtherRobotsEnv(physics, layout)
    idle = environment.Waypoint(np.array(layout.tool_position), layout.tool_yaw, False, 1.0)
    environment.execute(
        world, environment.Plan(plan.task, plan.instruction, [idle], plan.succeeded), hz=1.0, image_size=8
    )
    assert not plan.succeeded(world)


@pytest.mark.slow
def test_failed_scripts_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "GRASP_Z", 0.12)  # every grasp closes on air
    made = list(solved_episodes(8, seed=0, image_size=8))
    assert {episode.task for episode in made} <= {"reach", "push"}
    assert sum(episode.num_failed_attempts for episode in made) >= 2


def test_embodiments_differ_in_the_image_and_all_are_sampled() -> None:
    seen = [next(solved_episodes(1, seed=3, image_size=48, embodiments=[who])).images[0] for who in EMBODIMENTS]
    for a, b in itertools.combinations(seen, 2):
        assert not np.array_equal(a, b)
    sampled = {
        environment.sample_plan(environment.reach, np.random.default_rng(seed))[0].embodiment for seed in range(12)
    }
    assert sampled == set(EMBODIMENTS)


@pytest.mark.parametrize("wrong", [[], ["iiwa", "baxter"]])
def test_an_unknown_arm_is_refused_with_a_list_of_the_known(wrong: list[str]) -> None:
    with pytest.raises(InputError, match="expected one or more of iiwa, xarm, gen3"):
        next(solved_episodes(1, seed=0, embodiments=wrong))


@pytest.mark.parametrize("wrong", [{"count": -1}, {"hz": 0.0}, {"hz": 31.0}, {"image_size": 4}])
def test_impossible_requests_are_refused_with_numbers(wrong: dict[str, float]) -> None:
    arguments = {"count": 1, "hz": 5.0, "image_size": 32, **wrong}
    with pytest.raises(InputError, match="image_size >= 8"):
        next(
            solved_episodes(
                int(arguments["count"]), seed=0, hz=arguments["hz"], image_size=int(arguments["image_size"])
            )
        )
