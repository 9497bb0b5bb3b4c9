"""Which of the 34 tasks happened between two moments: pure functions of two info dictionaries (specification, 11).

A moment is what `CalvinEnv.task_info()` returns (or the `info` of a step). `tasks.yaml` says which predicate, with
which arguments, is behind each task; the predicates here carry the names used there. All comparisons are strict.

A contact is a row of PyBullet's contact list: element 2 is the other body, element 4 its link. Rows include near
contacts without force, and all of them count. Quirk kept on purpose: `push_object_into` was meant to require that the
robot does not touch the block, but the reference compares things that are never equal, so a block that was lifted from
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
    """Judges the tasks of a task file, by default those of the benchmark. Task ids are positions in that file."""

    def __init__(self, tasks: Mapping[str, list[Any]] | None = None) -> None:
        tasks = load_tasks() if tasks is None else tasks
        self._checks: dict[str, Predicate] = {name: _bind(name, *entry) for name, entry in tasks.items()}
        self.task_to_id = {name: number for number, name in enumerate(self._checks)}
        self.id_to_task = dict(enumerate(self._checks))
        self.num_tasks = len(self._checks)

    def get_task_info(self, start_info: Info, end_info: Info) -> set[str]:
        """Names of all tasks that happened between `start_info` and `end_info`."""
        return {name for name, check in self._checks.items() if check(start_info, end_info)}

    def get_task_info_for_set(self, start_info: Info, end_info: Info, task_filter: Iterable[str]) -> set[str]:
        """The same, asked only about the tasks named in `task_filter`."""
        return {name for name in task_filter if self._check(name)(start_info, end_info)}

    def _check(self, name: str) -> Predicate:
        if name not in self._checks:
            raise InputError(f"unknown task {name!r}; known: {', '.join(self._checks)}")
        return self._checks[name]


def load_tasks(path: Path = TASKS_FILE) -> dict[str, list[Any]]:
    """Task name -> [predicate, *arguments], in the order of the task ids."""
    tasks = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(tasks, dict)
    return {str(name): list(entry) for name, entry in tasks.items()}


def rotate_object(start: Info, end: Info, *, block: str, degrees: float) -> bool:
    """Turned about the vertical beyond `degrees` (positive: counter-clockwise), not moved, not tilted, put down."""
    before, after = _block(start, block), _block(end, block)
    if np.linalg.norm(_shift(before, after)) > ROTATE_MAX_SHIFT_M:
        return False
    if not _touched_bodies(after) - {_robot(end)["uid"]}:
        return False
    x, y, z = _turn_deg(before["current_orn"], after["current_orn"])
    if abs(x) >= ROTATE_MAX_TILT_DEG or abs(y) >= ROTATE_MAX_TILT_DEG:
        return False
    return degrees < z < 180 if degrees > 0 else -180 < z < degrees


def push_object(start: Info, end: Info, *, block: str, dx: float, dy: float) -> bool:
    """Moved sideways by more than `dx` (negative: to the left), still on what it stood on."""
    assert dy == 0, "the benchmark pushes along x only"
    before, after = _block(start, block), _block(end, block)
    robot = _robot(start)["uid"]
    stood_on = {contact for contact in _touched_links(before) if contact[0] != robot}
    stands_on = {contact for contact in _touched_links(after) if contact[0] != robot}
    if not stood_on or not stands_on or not stood_on <= stands_on:
        return False
    shift = _shift(before, after)[0]
    return bool(shift > dx if dx > 0 else shift < dx)


def lift_object(start: Info, end: Info, *, block: str, dz: float, body: str, link: str) -> bool:
    """Raised by more than `dz` from `link` of `body`, and held by the robot alone. It may have been touched before."""
    before, after = _block(start, block), _block(end, block)
    return bool(
        _shift(before, after)[2] > dz
        and _touched_bodies(after) == {_robot(end)["uid"]}
        and _surface(start, body, link) in _touched_links(before)
    )


def place_object(start: Info, end: Info, *, body: str, link: str) -> bool:
    """The one block that hung in the gripper has been let go and touches `link` of `body`."""
    robot = _robot(start)
    held = _touched_bodies(robot)
    blocks = {entry["uid"]: name for name, entry in _blocks(start).items()}
    if len(held) != 1 or not held <= blocks.keys():
        return False
    (uid,) = held
    if _touched_bodies(_block(start, blocks[uid])) != {robot["uid"]}:
        return False
    lands = _touched_links(_block(end, blocks[uid]))
    return uid not in _touched_bodies(_robot(end)) and _surface(end, body, link) in lands


def push_object_into(
    start: Info, end: Info, *, blocks: list[str], from_body: str, from_link: str, to_body: str, to_link: str
) -> bool:
    """Some block stood on one surface and on nothing else, and now touches the other (quirk: head of this file)."""
    source, goal = _surface(start, from_body, from_link), _surface(end, to_body, to_link)
    return any(
        _touched_links(_block(start, block)) == {source} and goal in _touched_links(_block(end, block))
        for block in blocks
    )


def move_door_rel(start: Info, end: Info, *, joint: str, change: float) -> bool:
    """Slide or drawer moved by more than `change` meters, in its direction."""
    before, after = (info["scene_info"]["doors"][joint]["current_state"] for info in (start, end))
    return bool(after - before > change if change > 0 else after - before < change)


def toggle_light(start: Info, end: Info, *, light: str, before: int, after: int) -> bool:
    """The light was `before` and is `after`."""
    states = [info["scene_info"]["lights"][light]["logical_state"] for info in (start, end)]
    return bool(states == [before, after])


def stack_objects(start: Info, end: Info, *, max_velocity: float = 1) -> bool:
    """Some block touched no other block, and now touches blocks and nothing else, at rest."""
    uids = _block_uids(end)
    for name, after in _blocks(end).items():
        before_touched, after_touched = _touched_bodies(_block(start, name)), _touched_bodies(after)
        rests_on_blocks = bool(after_touched) and after_touched <= uids
        if not before_touched & uids and rests_on_blocks and _is_slow(after, max_velocity):
            return True
    return False


def unstack_objects(start: Info, end: Info, *, max_velocity: float = 1) -> bool:
    """Some block touched blocks and nothing else, at rest, and now touches no block. It may still be in the gripper."""
    uids = _block_uids(start)
    for name, before in _blocks(start).items():
        before_touched, after_touched = _touched_bodies(before), _touched_bodies(_block(end, name))
        rested_on_blocks = bool(before_touched) and before_touched <= uids
        if rested_on_blocks and not after_touched & uids and _is_slow(before, max_velocity):
            return True
    return False


# predicate name in tasks.yaml -> function, names of its positional arguments there
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


def _bind(task: str, predicate: str, *arguments: Any) -> Predicate:
    if predicate not in _PREDICATES:
        raise InputError(f"task {task}: unknown predicate {predicate!r}; known: {', '.join(_PREDICATES)}")
    function, names = _PREDICATES[predicate]
    if len(arguments) > len(names):
        raise InputError(f"task {task}: {predicate} takes {len(names)} arguments, found {len(arguments)}")
    return partial(function, **dict(zip(names, arguments, strict=False)))


def _robot(info: Info) -> Info:
    robot: Info = info["robot_info"]
    return robot


def _blocks(info: Info) -> Mapping[str, Info]:
    blocks: Mapping[str, Info] = info["scene_info"]["movable_objects"]
    return blocks


def _block(info: Info, name: str) -> Info:
    return _blocks(info)[name]


def _block_uids(info: Info) -> set[int]:
    return {block["uid"] for block in _blocks(info).values()}


def _surface(info: Info, body: str, link: str) -> tuple[int, int]:
    """(uid, link index) of a part of the furniture."""
    entry = info["scene_info"]["fixed_objects"][body]
    return entry["uid"], entry["links"][link]


def _touched_bodies(entry: Info) -> set[int]:
    return {contact[2] for contact in entry["contacts"]}


def _touched_links(entry: Info) -> set[tuple[int, int]]:
    return {(contact[2], contact[4]) for contact in entry["contacts"]}


def _shift(before: Info, after: Info) -> NDArray[np.float64]:
    return np.asarray(after["current_pos"], np.float64) - np.asarray(before["current_pos"], np.float64)


def _is_slow(block: Info, max_velocity: float) -> bool:
    velocity = np.abs([*block["current_lin_vel"], *block["current_ang_vel"]])
    return bool((velocity < max_velocity).all())


def _turn_deg(before: Iterable[float], after: Iterable[float]) -> tuple[float, float, float]:
    """The rotation from one quaternion to another, as fixed-axis x-y-z Euler angles in degrees."""
    turn = _rotation_matrix(after) @ _rotation_matrix(before).T
    x = np.arctan2(turn[2, 1], turn[2, 2])
    y = np.arctan2(-turn[2, 0], np.hypot(turn[2, 1], turn[2, 2]))
    z = np.arctan2(turn[1, 0], turn[0, 0])
    return float(np.rad2deg(x)), float(np.rad2deg(y)), float(np.rad2deg(z))


def _rotation_matrix(quaternion: Iterable[float]) -> NDArray[np.float64]:
    x, y, z, w = np.array(tuple(quaternion), np.float64) / np.linalg.norm(tuple(quaternion))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
