"""Each predicate on a hand-made world: just enough, just not enough."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.errors import InputError

ROBOT, RED, BLUE, PINK, TABLE = 0, 2, 3, 4, 5
LINKS = {"drawer_link": 3, "plank_link": 6, "base_link": -1}
BASE, DRAWER, PLANK = (TABLE, -1), (TABLE, 3), (TABLE, 6)
ORACLE = TaskOracle()


def world() -> dict[str, Any]:
    """Three blocks at rest on the table, everything closed and dark, the robot in the air."""

    def block(uid: int, x: float) -> dict[str, Any]:
        still = (0.0, 0.0, 0.0)
        pose = {"current_pos": (x, 0.0, 0.46), "current_orn": (0.0, 0.0, 0.0, 1.0)}
        return {"uid": uid, **pose, "current_lin_vel": still, "current_ang_vel": still, "contacts": touching(BASE)}

    return {
        "robot_info": {"uid": ROBOT, "contacts": []},
        "scene_info": {
            "fixed_objects": {"table": {"uid": TABLE, "links": LINKS, "contacts": []}},
            "movable_objects": {
                "block_red": block(RED, 0.0),
                "block_blue": block(BLUE, 0.2),
                "block_pink": block(PINK, 0.4),
            },
            "doors": {"base__slide": {"current_state": 0.0}, "base__drawer": {"current_state": 0.0}},
            "lights": {"lightbulb": {"logical_state": 0}, "led": {"logical_state": 0}},
        },
    }


def touching(*links: tuple[int, int]) -> list[tuple[int, ...]]:
    return [(0, 99, uid, -1, link) for uid, link in links]


def red(info: dict[str, Any]) -> dict[str, Any]:
    block: dict[str, Any] = info["scene_info"]["movable_objects"]["block_red"]
    return block


def turned(degrees: float, axis: int = 2) -> tuple[float, ...]:
    quaternion = np.zeros(4)
    quaternion[axis], quaternion[3] = np.sin(np.deg2rad(degrees) / 2), np.cos(np.deg2rad(degrees) / 2)
    return tuple(quaternion)


def tasks_after(**changes_of_red: Any) -> set[str]:
    start = world()
    end = copy.deepcopy(start)
    red(end).update(changes_of_red)
    return ORACLE.get_task_info(start, end)


def test_nothing_happens_between_a_moment_and_itself() -> None:
    assert ORACLE.get_task_info(world(), world()) == set()


@pytest.mark.parametrize(
    ("degrees", "task"),
    [
        (61, {"rotate_red_block_left"}),
        (-61, {"rotate_red_block_right"}),
        (59, set()),
        (-59, set()),
        (179, {"rotate_red_block_left"}),
    ],
)
def test_a_rotation_counts_beyond_sixty_degrees(degrees: float, task: set[str]) -> None:
    assert tasks_after(current_orn=turned(degrees)) == task


def test_a_rotation_does_not_count_when_moved_tilted_or_held() -> None:
    left = turned(90)
    assert tasks_after(current_orn=left, current_pos=(0.0, 0.11, 0.46)) == set()
    assert tasks_after(current_orn=turned(90, axis=0)) == set()
    assert tasks_after(current_orn=left, contacts=touching((ROBOT, 9))) == set()
    assert tasks_after(current_orn=left, contacts=touching((ROBOT, 9), BASE)) == {"rotate_red_block_left"}


def test_a_push_counts_beyond_ten_centimeters_on_the_same_surface() -> None:
    assert tasks_after(current_pos=(0.101, 0.0, 0.46)) == {"push_red_block_right"}
    assert tasks_after(current_pos=(-0.101, 0.0, 0.46)) == {"push_red_block_left"}
    assert tasks_after(current_pos=(0.099, 0.0, 0.46)) == set()
    assert tasks_after(current_pos=(0.2, 0.0, 0.46), contacts=touching(PLANK)) == set()
    assert tasks_after(current_pos=(0.2, 0.0, 0.46), contacts=touching((ROBOT, 9))) == set()
    assert tasks_after(current_pos=(0.2, 0.0, 0.46), contacts=touching(BASE, PLANK)) == {"push_red_block_right"}


@pytest.mark.parametrize(
    ("surface", "place", "dz"), [(BASE, "table", 0.05), (DRAWER, "drawer", 0.05), (PLANK, "slider", 0.03)]
)
def test_a_lift_counts_from_each_surface_beyond_its_height(surface: tuple[int, int], place: str, dz: float) -> None:
    start = world()
    red(start)["contacts"] = touching(surface)
    for height, tasks in [(dz + 0.001, {f"lift_red_block_{place}"}), (dz - 0.001, set())]:
        end = copy.deepcopy(start)
        red(end).update(current_pos=(0.0, 0.0, 0.46 + height), contacts=touching((ROBOT, 9), (ROBOT, 11)))
        assert ORACLE.get_task_info(start, end) == tasks
    red(end).update(current_pos=(0.0, 0.0, 0.6), contacts=touching((ROBOT, 9), PLANK))
    assert ORACLE.get_task_info(start, end) == set()


@pytest.mark.parametrize(("surface", "task"), [(PLANK, "place_in_slider"), (DRAWER, "place_in_drawer")])
def test_placing_needs_a_block_held_alone_and_let_go(surface: tuple[int, int], task: str) -> None:
    start = world()
    red(start)["contacts"] = touching((ROBOT, 9))
    start["robot_info"]["contacts"] = touching((RED, -1))
    end = copy.deepcopy(start)
    red(end)["contacts"] = touching(surface)
    assert ORACLE.get_task_info(start, end) == set()  # still touched
    end["robot_info"]["contacts"] = []
    assert ORACLE.get_task_info(start, end) == {task}
    start["robot_info"]["contacts"] = touching((RED, -1), (TABLE, 2))
    assert ORACLE.get_task_info(start, end) == set()  # the robot touched the door, too


def test_from_the_table_into_the_drawer_counts_as_pushed_even_if_carried() -> None:
    assert tasks_after(contacts=touching(DRAWER)) == {"push_into_drawer"}
    start, end = world(), world()
    red(start)["contacts"] = touching(BASE, (ROBOT, 9))
    red(end)["contacts"] = touching(DRAWER)
    assert ORACLE.get_task_info(start, end) == set()  # touched more than the table at the start


@pytest.mark.parametrize(
    ("joint", "change", "task"),
    [
        ("base__slide", 0.16, "move_slider_left"),
        ("base__slide", -0.16, "move_slider_right"),
        ("base__drawer", 0.13, "open_drawer"),
        ("base__drawer", -0.13, "close_drawer"),
    ],
)
def test_a_door_counts_once_it_has_moved_far_enough(joint: str, change: float, task: str) -> None:
    start, end = world(), world()
    for share, tasks in [(1.0, {task}), (0.9, set())]:
        start["scene_info"]["doors"][joint]["current_state"] = 0.2
        end["scene_info"]["doors"][joint]["current_state"] = 0.2 + change * share
        assert ORACLE.get_task_info(start, end) == tasks


@pytest.mark.parametrize("light", ["lightbulb", "led"])
def test_a_light_counts_when_it_changes(light: str) -> None:
    dark, bright = world(), world()
    bright["scene_info"]["lights"][light]["logical_state"] = 1
    assert ORACLE.get_task_info(dark, bright) == {f"turn_on_{light}"}
    assert ORACLE.get_task_info(bright, dark) == {f"turn_off_{light}"}
    assert ORACLE.get_task_info(bright, bright) == set()


def test_stacking_and_unstacking_need_a_block_at_rest_on_blocks_only() -> None:
    flat, piled = world(), world()
    red(piled)["contacts"] = touching((BLUE, -1))
    assert ORACLE.get_task_info(flat, piled) == {"stack_block"}
    assert ORACLE.get_task_info(piled, flat) == {"unstack_block"}
    red(piled)["current_ang_vel"] = (0.0, 0.0, -1.5)
    assert ORACLE.get_task_info(flat, piled) == set()
    assert ORACLE.get_task_info(piled, flat) == set()
    red(piled).update(current_ang_vel=(0.0, 0.0, 0.0), contacts=touching((BLUE, -1), (ROBOT, 9)))
    assert ORACLE.get_task_info(flat, piled) == set()


def test_an_unknown_task_or_predicate_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="unknown task 'fly'"):
        ORACLE.get_task_info_for_set(world(), world(), ["fly"])
    with pytest.raises(InputError, match="task fly: unknown predicate 'flap'"):
        TaskOracle({"fly": ["flap"]})
    with pytest.raises(InputError, match="takes 1 arguments, found 2"):
        TaskOracle({"stack_block": ["stack_objects", 1, 2]})
