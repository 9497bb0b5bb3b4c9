"""The task oracle: which of the 34 tasks happened between two moments.

All predicates are pure functions of two info dictionaries, as `CalvinEnv.task_info()` returns them (or the `info` of
a step). `tasks.yaml` lists for each task a predicate and its arguments; the predicates here have the names used there.
All comparisons are strict. In every predicate `start` and `end` are the two moments, `block` is the name of a block,
`body` and `link` name a part of the furniture; lengths are meters.

A contact is a row of PyBullet's contact list: element 2 is the other body, element 4 its link. Rows include near
contacts without force, and all of them count. Quirk kept on purpose: `push_object_into` was meant to require that the
robot does not touch the block, but the reference compares values that are never equal, so a block that was lifted from
the table into the drawer counts as pushed into it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from vw2_robot.errors import InputError

TASKS_FILE = Path(__file__).parent / "tasks.yaml"

Info = Mapping[str, Any]
Predicate = Callable[[Info, Info], bool]

ROTATE_MAX_SHIFT_M = 0.1
ROTATE_MAX_TILT_DEG = 30


class TaskOracle:
    """The predicates of the tasks of a task file, by default those of the benchmark.

    Args:
        tasks: task name -> [predicate, *arguments], as `load_tasks` returns it. Task ids are positions in it.

    Raises:
        InputError: an unknown predicate, or too many arguments.
    """

    def __init__(self, tasks: Mapping[str, list[Any]] | None = None) -> None:
        tasks = load_tasks() if tasks is None else tasks
        self._checks: dict[str, Predicate] = {}
        for name, (predicate, *arguments) in tasks.items():
            if predicate not in _PREDICATES:
                raise InputError(f"task {name}: unknown predicate {predicate!r}; known: {', '.join(_PREDICATES)}")
            function, parameters = _PREDICATES[predicate]
            if len(arguments) > len(parameters):
                raise InputError(f"task {name}: {predicate} takes {len(parameters)} arguments, found {len(arguments)}")
            self._checks[name] = partial(function, **dict(zip(parameters, arguments, strict=False)))
        self.task_to_id = {name: number for number, name in enumerate(self._checks)}
        self.id_to_task = dict(enumerate(self._checks))
        self.num_tasks = len(self._checks)

    def get_task_info(self, start_info: Info, end_info: Info) -> set[str]:
        """Return the names of all tasks that happened between `start_info` and `end_info`."""
        return {name for name, check in self._checks.items() if check(start_info, end_info)}

    def get_task_info_for_set(self, start_info: Info, end_info: Info, task_filter: Iterable[str]) -> set[str]:
        """Return the names in `task_filter` whose tasks happened between `start_info` and `end_info`.

        Args:
            start_info: task info at the first of the two moments.
            end_info: task info at the second one.
            task_filter: names of the tasks to check.

        Raises:
            InputError: an unknown name.
        """
        names = tuple(task_filter)
        for name in names:
            if name not in self._checks:
                raise InputError(f"unknown task {name!r}; known: {', '.join(self._checks)}")
        return {name for name in names if self._checks[name](start_info, end_info)}


def load_tasks(path: Path = TASKS_FILE) -> dict[str, list[Any]]:
    """Return task name -> [predicate, *arguments], in the order of the task ids."""
    tasks = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(tasks, dict)
    return {str(name): list(entry) for name, entry in tasks.items()}


def rotate_object(start: Info, end: Info, *, block: str, degrees: float) -> bool:
    """Return whether a block was rotated about the vertical by more than `degrees` (positive: counter-clockwise).

    It must also be neither shifted nor tilted, and put down.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        block: name of the block.
        degrees: threshold of the rotation in degrees in (-180, 180), with its direction as the sign.
    """
    before = _block(start, block)
    after = _block(end, block)
    # A block that was carried elsewhere and put down rotated does not count.
    if np.linalg.norm(_shift(before, after)) > ROTATE_MAX_SHIFT_M:
        return False
    # Something other than the robot must carry the block at the end.
    if not _touched_bodies(after) - {end["robot_info"]["uid"]}:
        return False
    # The rotation between both poses, as fixed-axis x-y-z Euler angles in degrees.
    rotation = _rotation_matrix(after["current_orn"]) @ _rotation_matrix(before["current_orn"]).T
    x = np.rad2deg(np.arctan2(rotation[2, 1], rotation[2, 2]))
    y = np.rad2deg(np.arctan2(-rotation[2, 0], np.hypot(rotation[2, 1], rotation[2, 2])))
    z = np.rad2deg(np.arctan2(rotation[1, 0], rotation[0, 0]))
    if abs(x) >= ROTATE_MAX_TILT_DEG or abs(y) >= ROTATE_MAX_TILT_DEG:
        return False
    return bool(degrees < z < 180 if degrees > 0 else -180 < z < degrees)


def push_object(start: Info, end: Info, *, block: str, dx: float, dy: float) -> bool:
    """Return whether a block moved along x by more than `dx` (negative: to the left) and still stands on the same.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        block: name of the block.
        dx: threshold of the shift along x in meters, with its direction as the sign.
        dy: must be 0.

    Raises:
        AssertionError: `dy` is not 0.
    """
    assert dy == 0, "the benchmark pushes along x only"
    before = _block(start, block)
    after = _block(end, block)
    robot = start["robot_info"]["uid"]
    # Contacts with the robot do not count; all surfaces below at the start must still be below at the end.
    stood_on = {contact for contact in _touched_links(before) if contact[0] != robot}
    stands_on = {contact for contact in _touched_links(after) if contact[0] != robot}
    if not stood_on or not stands_on or not stood_on <= stands_on:
        return False
    # Along x alone; a block may be pushed askew.
    shift = _shift(before, after)[0]
    return bool(shift > dx if dx > 0 else shift < dx)


def lift_object(start: Info, end: Info, *, block: str, dz: float, body: str, link: str) -> bool:
    """Return whether a block that was on `link` of `body` was raised by more than `dz` and touches only the robot.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        block: name of the block.
        dz: threshold of the rise in meters.
        body: piece of furniture that the block was on.
        link: link of `body` that the block was on.
    """
    before = _block(start, block)
    after = _block(end, block)
    return bool(
        _shift(before, after)[2] > dz
        and _touched_bodies(after) == {end["robot_info"]["uid"]}
        and _surface(start, body, link) in _touched_links(before)
    )


def place_object(start: Info, end: Info, *, body: str, link: str) -> bool:
    """Return whether the one block in the gripper has been released and touches `link` of `body`.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        body: piece of furniture to place the block on.
        link: link of `body` that the block must touch at the end.
    """
    robot = start["robot_info"]
    held = _touched_bodies(robot)
    # At the start the robot touches one block and nothing else, and that block touches only the robot.
    blocks = {entry["uid"]: name for name, entry in _blocks(start).items()}
    if len(held) != 1 or not held <= blocks.keys():
        return False
    # The gripper must hold the block free of everything else before it places it.
    (uid,) = held
    if _touched_bodies(_block(start, blocks[uid])) != {robot["uid"]}:
        return False
    lands = _touched_links(_block(end, blocks[uid]))
    return uid not in _touched_bodies(end["robot_info"]) and _surface(end, body, link) in lands


def push_object_into(
    start: Info, end: Info, *, blocks: list[str], from_body: str, from_link: str, to_body: str, to_link: str
) -> bool:
    """Return whether a block that touched only one surface now touches the other (quirk: module docstring).

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        blocks: names of the blocks; any one of them is enough.
        from_body: piece of furniture that the block touched at the start.
        from_link: link of `from_body` that it touched, and nothing else.
        to_body: piece of furniture that the block must touch at the end.
        to_link: link of `to_body` that it must touch.
    """
    source = _surface(start, from_body, from_link)
    goal = _surface(end, to_body, to_link)
    return any(
        _touched_links(_block(start, block)) == {source} and goal in _touched_links(_block(end, block))
        for block in blocks
    )


def move_door_rel(start: Info, end: Info, *, joint: str, change: float) -> bool:
    """Return whether slide or drawer moved by more than `change` meters, in the direction of its sign.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        joint: name of the joint of slide or drawer.
        change: threshold of the joint's change in meters, with its direction as the sign.
    """
    before, after = (info["scene_info"]["doors"][joint]["current_state"] for info in (start, end))
    return bool(after - before > change if change > 0 else after - before < change)


def toggle_light(start: Info, end: Info, *, light: str, before: int, after: int) -> bool:
    """Return whether the light was `before` (0 or 1) and is `after`.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        light: name of the light, `lightbulb` or `led`.
        before: state at the start, 0 (off) or 1 (on).
        after: state at the end, 0 (off) or 1 (on).
    """
    states = [info["scene_info"]["lights"][light]["logical_state"] for info in (start, end)]
    return bool(states == [before, after])


def stack_objects(start: Info, end: Info, *, max_velocity: float = 1) -> bool:
    """Return whether a block that touched no other block now touches blocks and nothing else, at rest.

    At rest: every component of its velocity is below `max_velocity`, m/s or rad/s.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        max_velocity: limit at the end, of linear velocity in m/s and of angular velocity in rad/s.
    """
    uids = {block["uid"] for block in _blocks(end).values()}
    for name, after in _blocks(end).items():
        before_touched = _touched_bodies(_block(start, name))
        after_touched = _touched_bodies(after)
        rests_on_blocks = bool(after_touched) and after_touched <= uids
        if not before_touched & uids and rests_on_blocks and _is_slow(after, max_velocity):
            return True
    return False


def unstack_objects(start: Info, end: Info, *, max_velocity: float = 1) -> bool:
    """Return whether a block that touched blocks and nothing else, at rest, now touches none; it may be held.

    Args:
        start: task info at the first of the two moments.
        end: task info at the second one.
        max_velocity: limit at the start, of linear velocity in m/s and of angular velocity in rad/s.
    """
    uids = {block["uid"] for block in _blocks(start).values()}
    for name, before in _blocks(start).items():
        before_touched = _touched_bodies(before)
        after_touched = _touched_bodies(_block(end, name))
        rested_on_blocks = bool(before_touched) and before_touched <= uids
        if rested_on_blocks and not after_touched & uids and _is_slow(before, max_velocity):
            return True
    return False


# Predicate in tasks.yaml -> function, names of its positional arguments there.
_PREDICATES: dict[str, tuple[Callable[..., bool], tuple[str, ...]]] = {
    "rotate_object": (rotate_object, ("block", "degrees")),
    "push_object": (push_object, ("block", "dx", "dy")),
    "lift_object": (lift_object, ("block", "dz", "body", "link")),
    "place_object": (place_object, ("body", "link")),
    "push_object_into": (push_object_into, ("blocks", "from_body", "from_link", "to_body", "to_link")),
    "move_door_rel": (move_door_rel, ("joint", "change")),
    "toggle_light": (toggle_light, ("light", "before", "after")),
    "stack_objects": (stack_objects, ("max_velocity",)),
    "unstack_objects": (unstack_objects, ("max_velocity",)),
}


def _blocks(info: Info) -> Mapping[str, Info]:
    blocks: Mapping[str, Info] = info["scene_info"]["movable_objects"]
    return blocks


def _block(info: Info, name: str) -> Info:
    return _blocks(info)[name]


def _surface(info: Info, body: str, link: str) -> tuple[int, int]:
    """Return (uid, link index) of a part of the furniture."""
    entry = info["scene_info"]["fixed_objects"][body]
    return entry["uid"], entry["links"][link]


def _touched_bodies(entry: Info) -> set[int]:
    return {contact[2] for contact in entry["contacts"]}


def _touched_links(entry: Info) -> set[tuple[int, int]]:
    return {(contact[2], contact[4]) for contact in entry["contacts"]}


def _shift(before: Info, after: Info) -> NDArray[np.float64]:
    return np.asarray(after["current_pos"], np.float64) - np.asarray(before["current_pos"], np.float64)


def _is_slow(block: Info, max_velocity: float) -> bool:
    # All six components, linear in m/s and angular in rad/s, against one limit.
    velocity = np.abs([*block["current_lin_vel"], *block["current_ang_vel"]])
    return bool((velocity < max_velocity).all())


def _rotation_matrix(quaternion: Iterable[float]) -> NDArray[np.float64]:
    """Return the rotation matrix [3, 3] of a quaternion (x, y, z, w) of any length but 0."""
    x, y, z, w = np.array(tuple(quaternion), np.float64) / np.linalg.norm(tuple(quaternion))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
