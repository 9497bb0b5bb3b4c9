"""Scripted episodes of other robots: reach, push, pick, and place on a plate, with an instruction each.

This is the cross-embodiment half of the pre-training data that needs no download: other robots than CALVIN's, another
table, another camera. `vw2-record` writes it as an RLDS data set. Each episode is a pure function of (seed, index). A
script decides in advance where the tool moves; the physics decides whether that succeeds. Failed attempts are dropped
and counted, so no episode has a wrong label.

Time: frame t is taken t / hz seconds after the start; action t is the motion between frame t and frame t + 1.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX, POSITION_UNIT_M, ROTATION_UNIT_RAD
from vw2_robot.errors import InputError

from ..physics import Physics
from .arm import HOME, LEFT_FINGER, RIGHT_FINGER
from .world import (
    CONTROL_STEPS,
    PHYSICS_HZ,
    OtherRobotsEnv,
    SceneLayout,
    SceneObject,
    sample_layout,
)

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

COMMAND_HZ = PHYSICS_HZ / CONTROL_STEPS  # 30
EMBODIMENTS = tuple(HOME)
MAX_ATTEMPTS = 20  # per episode; about one script in forty fails
TRAVEL_SPEED = 0.30  # mean speed of a free motion, m/s
PUSH_SPEED = 0.14
GRASP_Z = 0.020  # height of the tool when the fingers close
CLEARANCE_M = 0.055  # between a path of the gripper and an object that it must not touch


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One solved episode of T frames."""

    images: NDArray[np.uint8]
    """[T, H, W, 3]"""
    actions: NDArray[np.float32]
    """[T, 7]: the tool's measured motion until the next frame, as the mean over that time in the units of a CALVIN
    action (0.02 m and 0.05 rad per 1/30 s), and the gripper command, -1 closed or +1 open; the last row moves nothing
    """
    instruction: str
    task: str
    success: bool
    """computed from the physics state at the end; always true, since failures are dropped"""
    num_failed_attempts: int
    """attempts that were dropped before this one"""
    hz: float


@dataclass(frozen=True)
class Waypoint:
    """One part of a script: move the tool to a pose in `seconds`, with the fingers open or closed on the way."""

    position: Floats
    yaw: float
    closed: bool
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A task in one layout: instruction, script, and the success criterion for the state at the end."""

    task: str
    instruction: str
    waypoints: list[Waypoint]
    succeeded: Callable[[OtherRobotsEnv], bool]


def solved_episodes(
    count: int, *, seed: int, hz: float = 5.0, image_size: int = 128, embodiments: Sequence[str] = EMBODIMENTS
) -> Iterator[RecordedEpisode]:
    """Yield solved episodes of about 12 to 25 frames at 5 Hz.

    Args:
        count: number of episodes.
        seed: of all random choices; episode i depends on (seed, i) and `embodiments` alone.
        hz: frames per second.
        image_size: height and width of the images in pixels.
        embodiments: names of the robots; each episode samples one.

    Raises:
        InputError: a count, rate, size or robot that cannot work.
        RuntimeError: one episode failed `MAX_ATTEMPTS` times, which means that the simulation is broken.
    """
    check_world(count, hz, image_size, embodiments)
    physics = Physics()
    dropped = 0
    try:
        for index in range(count):
            episode = solved_episode(
                physics, seed=seed, index=index, hz=hz, image_size=image_size, embodiments=embodiments
            )
            dropped += episode.num_failed_attempts
            yield episode
    finally:
        physics.close()
    logger.info("other robots: %d episodes recorded, %d failed attempts dropped", count, dropped)


def check_world(count: int, hz: float, image_size: int, embodiments: Sequence[str]) -> None:
    """Check the arguments of `solved_episodes`.

    Args:
        count: number of episodes, at least 0.
        hz: frames per second, above 0 and at most `COMMAND_HZ` (30).
        image_size: height and width of the images in pixels, at least 8.
        embodiments: names of the robots, one or more of `EMBODIMENTS`.

    Raises:
        InputError: a number that cannot work, no robot, or an unknown one.
    """
    if count < 0 or not 0 < hz <= COMMAND_HZ or image_size < 8:
        raise InputError(
            f"other robots: found count={count}, hz={hz}, image_size={image_size}; "
            f"need count >= 0, 0 < hz <= {COMMAND_HZ:g}, image_size >= 8"
        )
    if not embodiments or set(embodiments) - set(EMBODIMENTS):
        raise InputError(f"embodiments={list(embodiments)}, expected one or more of {', '.join(EMBODIMENTS)}")


def solved_episode(
    physics: Physics, *, seed: int, index: int, hz: float, image_size: int, embodiments: Sequence[str] = EMBODIMENTS
) -> RecordedEpisode:
    """Return episode `index`, a function of (seed, index, embodiments).

    Args:
        physics: a simulation; what it was used for before does not matter.
        seed: of all random choices.
        index: number of the episode.
        hz: frames per second.
        image_size: height and width of the images in pixels.
        embodiments: names of the robots; the episode samples one.

    Raises:
        RuntimeError: it failed `MAX_ATTEMPTS` times.
    """
    for attempt in range(MAX_ATTEMPTS):
        # One generator per attempt, so that an episode does not depend on the episodes before it.
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, attempt])))
        task = TASKS[int(rng.choice(len(TASKS), p=SHARES))]
        layout, plan = sample_plan(task, rng, embodiments)
        world = OtherRobotsEnv(physics, layout)
        images, actions = execute(world, plan, hz=hz, image_size=image_size)
        if plan.succeeded(world):
            return RecordedEpisode(images, actions, plan.instruction, plan.task, True, attempt, hz)
    raise RuntimeError(f"other robots: episode {index} of seed {seed} failed {MAX_ATTEMPTS} times")


def sample_plan(
    task: Task, rng: np.random.Generator, embodiments: Sequence[str] = EMBODIMENTS
) -> tuple[SceneLayout, Plan]:
    """Return a random layout in which a task is possible, and a plan for it, by rejection sampling.

    Args:
        task: one of `TASKS`.
        rng: generator of all random choices.
        embodiments: names of the robots to choose from.
    """
    while True:
        layout = sample_layout(rng, embodiments=embodiments, plates=1 if task is place else int(rng.random() < 0.3))
        plan = task(layout, rng)
        if plan is not None:
            return layout, plan


def execute(
    world: OtherRobotsEnv, plan: Plan, *, hz: float, image_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Run a script to its end and to the next frame.

    Args:
        world: the simulation, in the state of its layout.
        plan: the script.
        hz: frames per second.
        image_size: height and width of the images in pixels.

    Returns:
        Images, uint8 [T, H, W, 3], and actions, float32 [T, 7].
    """
    images: list[NDArray[np.uint8]] = []
    poses: list[Floats] = []
    grips: list[float] = []
    commands = interpolate(world.layout, plan.waypoints)
    # Frames fall on physics steps; the small constant keeps a script that ends on a frame from getting one more.
    last_frame = math.ceil(len(commands) * CONTROL_STEPS * hz / PHYSICS_HZ - 1e-9)
    frame_steps = [round(frame * PHYSICS_HZ / hz) for frame in range(last_frame + 1)]
    closed = False
    for step in range(frame_steps[-1] + 1):
        if step == frame_steps[len(images)]:
            images.append(world.image(image_size))
            poses.append(np.concatenate(world.tool()))
            grips.append(-1.0 if closed else 1.0)
        if step % CONTROL_STEPS == 0:
            position, yaw, closed = commands[min(step // CONTROL_STEPS, len(commands) - 1)]
            world.command(position, yaw, closed=closed)
        world.step()
    return np.stack(images), relative_actions(np.stack(poses), np.array(grips), hz=hz)


def interpolate(layout: SceneLayout, waypoints: list[Waypoint]) -> list[tuple[Floats, float, bool]]:
    """Return one (position, yaw, closed) per command: minimum-jerk interpolation between waypoints."""
    commands = []
    position = np.array(layout.tool_position)
    yaw = layout.tool_yaw
    for waypoint in waypoints:
        count = max(1, round(waypoint.seconds * COMMAND_HZ))
        for k in range(1, count + 1):
            s = k / count
            # 10 s^3 - 15 s^4 + 6 s^5: velocity and acceleration are 0 at both ends (Flash and Hogan 1985).
            blend = s**3 * (10 - 15 * s + 6 * s * s)
            commands.append(
                (position + blend * (waypoint.position - position), yaw + blend * (waypoint.yaw - yaw), waypoint.closed)
            )
        position = waypoint.position
        yaw = waypoint.yaw
    return commands


def relative_actions(poses: Floats, grips: Floats, *, hz: float) -> NDArray[np.float32]:
    """Return the actions between consecutive frames, float32 [T, 7], in the units of a CALVIN action.

    Args:
        poses: [T, 6], position in meters and Euler angles in radians at each frame.
        grips: [T], gripper command at each frame; an action has that of the next frame.
        hz: frames per second.
    """
    actions = np.zeros((len(poses), ACTION_DIM), dtype=np.float32)
    moved = np.diff(poses, axis=0)
    # Angles by the shorter way around.
    moved[:, 3:] = (moved[:, 3:] + math.pi) % (2 * math.pi) - math.pi
    control_steps = COMMAND_HZ / hz  # between two frames
    actions[:-1, :3] = moved[:, :3] / (POSITION_UNIT_M * control_steps)
    actions[:-1, 3:6] = moved[:, 3:] / (ROTATION_UNIT_RAD * control_steps)
    actions[:-1, GRIPPER_INDEX] = grips[1:]
    actions[-1, GRIPPER_INDEX] = grips[-1]
    return actions


# The tasks. Each returns a plan, or None where the layout does not allow the task.

Task = Callable[[SceneLayout, np.random.Generator], "Plan | None"]


def reach(layout: SceneLayout, rng: np.random.Generator) -> Plan:
    """Plan to move the open gripper over an object and to stop close above it."""
    index = _choose(layout, rng)
    item = layout.objects[index]
    goal = np.array([*item.xy, item.height + rng.uniform(0.025, 0.045)])
    over = goal + np.array([0.0, 0.0, 0.09])
    hover = float(rng.uniform(0.4, 0.8))
    waypoints = [
        _travel(layout.tool_position, over, _grasp_yaw(item)),
        Waypoint(goal, _grasp_yaw(item), False, 0.8),
        Waypoint(goal, _grasp_yaw(item), False, hover),
    ]

    def succeeded(world: OtherRobotsEnv) -> bool:
        return bool(np.linalg.norm(world.tool()[0] - goal) < 0.02) and _others_at_rest(world, except_for=None)

    verb = rng.choice(["move the gripper to", "reach for", "go to", "hover over", "move above"])
    return Plan("reach", f"{verb} the {item.name}", waypoints, succeeded)


def push(layout: SceneLayout, rng: np.random.Generator) -> Plan | None:
    """Plan to push an object by about a decimeter in a direction of the image."""
    index = _choose(layout, rng)
    item = layout.objects[index]
    # Directions are those of the image, because an instruction can refer to nothing else that the policy sees.
    names = {
        "to the right": layout.right,
        "to the left": -layout.right,
        "away from the camera": layout.ahead,
        "toward the camera": -layout.ahead,
    }
    where = str(rng.choice(sorted(names)))
    direction = names[where]
    distance = float(rng.uniform(0.09, 0.13))
    start = np.array(item.xy) - direction * 0.085
    end = np.array(item.xy) + direction * (distance - 0.028)
    reachable = all(0.30 < np.linalg.norm(point) < 0.68 and abs(point[1]) < 0.34 for point in (start, end))
    if not _is_clear(layout, start, end + direction * 0.06, except_for=(index,)) or not reachable:
        return None
    yaw = _fold(math.atan2(direction[1], direction[0]), math.pi)
    low = min(0.024, item.height / 2)
    above = np.array([*start, 0.13])
    down = np.array([*start, low])
    far = np.array([*end, low])
    away = far + np.array([*(-0.02 * direction), 0.08])
    waypoints = [
        _travel(layout.tool_position, above, yaw, closed=True),
        Waypoint(down, yaw, True, 0.6),
        Waypoint(far, yaw, True, float(np.linalg.norm(end - start)) / PUSH_SPEED),
        Waypoint(away, yaw, True, 0.6),
    ]

    def succeeded(world: OtherRobotsEnv) -> bool:
        moved = world.object_position(index)[:2] - item.xy
        along = float(moved @ direction)
        sideways = float(np.linalg.norm(moved - along * direction))
        return along > 0.06 and sideways < 0.5 * along and _others_at_rest(world, except_for=index)

    verb = rng.choice(["push", "slide", "shove"])
    return Plan("push", f"{verb} the {item.name} {where}", waypoints, succeeded)


def pick(layout: SceneLayout, rng: np.random.Generator) -> Plan:
    """Plan to grasp an object and to lift it."""
    index = _choose(layout, rng)
    item = layout.objects[index]
    lift = np.array([*item.xy, rng.uniform(0.16, 0.22)])
    waypoints = [*_grasp(layout, item), Waypoint(lift, _grasp_yaw(item), True, 0.9)]

    def succeeded(world: OtherRobotsEnv) -> bool:
        raised = world.object_position(index)[2] - item.height / 2
        # Both fingers press against the object, and nothing else does.
        held = world.contacts(index) == {(world.robot, LEFT_FINGER), (world.robot, RIGHT_FINGER)}
        return raised > 0.08 and held and _others_at_rest(world, except_for=index)

    verb = rng.choice(["pick up", "lift", "grasp and lift", "take"])
    return Plan("pick", f"{verb} the {item.name}", waypoints, succeeded)


def place(layout: SceneLayout, rng: np.random.Generator) -> Plan | None:
    """Plan to place an object on the plate."""
    index = _choose(layout, rng)
    plate_index = next(k for k, item in enumerate(layout.objects) if item.shape == "plate")
    item = layout.objects[index]
    plate = layout.objects[plate_index]
    if not _is_clear(layout, np.array(item.xy), np.array(plate.xy), except_for=(index, plate_index)):
        return None
    yaw = _grasp_yaw(item)
    up = np.array([*item.xy, 0.14])
    over = np.array([*plate.xy, 0.14])
    down = np.array([*plate.xy, GRASP_Z + plate.height + 0.004])
    waypoints = [
        *_grasp(layout, item),
        Waypoint(up, yaw, True, 0.6),
        _travel((up[0], up[1], up[2]), over, yaw, closed=True),
        Waypoint(down, yaw, True, 0.6),
        Waypoint(down, yaw, False, 0.35),
        Waypoint(over, yaw, False, 0.6),
    ]

    def succeeded(world: OtherRobotsEnv) -> bool:
        apart = float(np.linalg.norm(world.object_position(index)[:2] - world.object_position(plate_index)[:2]))
        touched = {body for body, _ in world.contacts(index)}
        at_rest = world.object_speed(index) < 0.02 and touched == {world.object_ids[plate_index]}
        return apart < 0.05 and at_rest and _others_at_rest(world, except_for=index)

    verb = rng.choice(["put", "place", "set"])
    return Plan("place", f"{verb} the {item.name} on the {plate.name}", waypoints, succeeded)


TASKS: tuple[Task, ...] = (reach, push, pick, place)
SHARES = (0.15, 0.35, 0.25, 0.25)  # probability of each task


# Shared by the tasks.


def _choose(layout: SceneLayout, rng: np.random.Generator) -> int:
    """Return the index of a random object that is not a plate."""
    return int(rng.choice([k for k, item in enumerate(layout.objects) if item.shape != "plate"]))


def _travel(start: tuple[float, float, float], goal: Floats, yaw: float, *, closed: bool = False) -> Waypoint:
    """Return the waypoint of a free motion at `TRAVEL_SPEED`."""
    return Waypoint(goal, yaw, closed, max(0.6, float(np.linalg.norm(goal - start)) / TRAVEL_SPEED))


def _grasp(layout: SceneLayout, item: SceneObject) -> list[Waypoint]:
    """Return the waypoints of a grasp: over the object, down, close the fingers."""
    yaw = _grasp_yaw(item)
    over = np.array([*item.xy, item.height + 0.08])
    at = np.array([*item.xy, GRASP_Z])
    return [_travel(layout.tool_position, over, yaw), Waypoint(at, yaw, False, 0.7), Waypoint(at, yaw, True, 0.35)]


def _grasp_yaw(item: SceneObject) -> float:
    """Return the yaw at which the fingers close across the short side, nearest to the arm's middle position."""
    return _fold(item.yaw, math.pi if item.shape == "brick" else math.pi / 2)


def _fold(angle: float, period: float) -> float:
    """Return the angle equal to `angle` modulo `period` that is nearest to 0."""
    return (angle + period / 2) % period - period / 2


def _is_clear(layout: SceneLayout, start: Floats, end: Floats, *, except_for: tuple[int, ...]) -> bool:
    """Return whether the segment from `start` to `end` keeps its distance from all other objects."""
    for index, item in enumerate(layout.objects):
        way = end - start
        # The point of the segment that is nearest to the object's center.
        nearest = start + way * float(np.clip((item.xy - start) @ way / (way @ way), 0.0, 1.0))
        margin = CLEARANCE_M + (0.06 if item.shape == "plate" else 0.03)
        if index not in except_for and np.linalg.norm(nearest - item.xy) < margin:
            return False
    return True


def _others_at_rest(world: OtherRobotsEnv, *, except_for: int | None) -> bool:
    """Return whether all other objects are within a centimeter of where they were."""
    return all(
        np.linalg.norm(world.object_position(k)[:2] - item.xy) < 0.01
        for k, item in enumerate(world.layout.objects)
        if k != except_for
    )
