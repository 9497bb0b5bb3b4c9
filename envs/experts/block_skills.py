"""Skills with the three blocks: push, lift, rotate, place, stack, unstack.

Generators like those of `skills.py`. Blocks are 0.04 m high and 0.04 m wide along their short side; the gripper opens
to 0.08 m. Fingers that point down reach 0.02 m below the tool center point (TCP), so a block is grasped just below its
center. On the shelf behind the door the gripper leans back, because the wall stands 0.03 m behind the blocks.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from .block_states import (
    HALF_HEIGHT_M,
    REACH_X,
    SHELF_PITCH,
    TABLE_EDGE_Y,
    WRIST_YAW,
    blocks_before_drawer,
    clearance,
    free_shelf_places,
    grasp_pitch,
    grasp_yaw,
    grasp_yaws,
    half_width_x,
    half_width_y,
    is_beside_door,
    is_low_near,
    shelf_places,
    stack_places,
    stacked,
)
from .motion import CLOSE, OPEN, EndEffector, Motion, WorldState, vector, wrap
from .skills import ASIDE_M, NEUTRAL_YAW, TRAVEL_Z, back_off, move_slider

SHELF_Y = 0.085
FRONT_Y = -0.13
"""In front of door, knob and lever: the line on which the gripper travels along the shelf."""
GRASP_DEPTH_M = 0.004
"""How far below a block's center the fingers close."""
ABOVE_M = 0.09
"""Distance from a block, along the approach, at which the descent begins."""
HIGH_M = 0.1
"""How much higher a "high" route leads."""
WIDE_M = 0.06
"""Lateral offset beyond which the gripper has to go around."""
FUNNEL_SLOPE = 2.0
"""Height over the block for each meter of lateral offset beyond `FUNNEL_M`."""
FUNNEL_M = 0.006
WRIST_MIDDLE = sum(WRIST_YAW) / 2
STALL_STEPS = 5
STALL_M = 0.025
"""A gripper this near its goal that has not moved for `STALL_STEPS` steps does not come nearer."""
PUSH_M = 0.115
"""How far a block is pushed; the task oracle demands 0.1."""


def push_block(ee: EndEffector, color: str, *, right: bool) -> Motion:
    """Descend beside the block with closed fingers and push it along x.

    Args:
        ee: the end effector.
        color: of the block, "red", "blue" or "pink".
        right: whether to push toward +x; otherwise toward -x.

    Returns:
        Generator of relative actions [7].
    """
    way = vector(1.0 if right else -1.0, 0.0, 0.0)
    aside = {"in front": -1.0, "behind": 1.0}.get(ee.route)
    if aside is not None:
        yield from _go_around(ee, color, way, vector(0.0, aside, 0.0))
    else:
        yield from back_off(ee)
        ee.gripper = CLOSE
        block = ee.world.blocks[color]
        beside = block.position - way * clearance(block, way) + vector(0.0, 0.0, 0.002)
        yield from ee.move_to(ee.near(beside + vector(0.0, 0.0, 0.08)), yaw=NEUTRAL_YAW, tolerance=0.025)
        yield from ee.move_to(beside, yaw=NEUTRAL_YAW)
    yield from _push_until(ee, color, way, PUSH_M)
    yield from back_off(ee)


def lift_block(ee: EndEffector, color: str) -> Motion:
    """Grasp a block wherever it stands and lift it; a door in the way is pushed aside first."""
    if not is_over(ee.world, color):
        yield from back_off(ee)
    world = ee.world
    block = world.blocks[color]
    if is_beside_door(world, block):
        # Push the door away from the block, unless it is at its end already.
        is_left = block.position[0] > sum(world.door_span()) / 2
        room = world.fixtures.slide_range - world.slide if is_left else world.slide
        if room > 0.02:
            yield from move_slider(ee, left=is_left)
    yield from grasp(ee, color, middle_yaw=grasp_yaws(ee.world, color).get(ee.route, NEUTRAL_YAW))
    pitch = ee.pitch
    away = -0.03 if pitch < 0 else 0.0  # a gripper that touches the back wall of the shelf cannot place the block
    yield from ee.move_to(ee.world.tcp + vector(0.0, away, 0.12), pitch=pitch, speed=0.8, limit=30)


def rotate_block(ee: EndEffector, color: str, *, right: bool) -> Motion:
    """Grasp a block and rotate it in place by a little more than 90 degrees; left is counter-clockwise from above.

    The grasp begins half of that rotation before the neutral yaw, so that the wrist stays within its limits.

    Args:
        ee: the end effector.
        color: of the block, "red", "blue" or "pink".
        right: whether to rotate clockwise, seen from above; otherwise counter-clockwise.

    Returns:
        Generator of relative actions [7].
    """
    if not is_over(ee.world, color):
        yield from back_off(ee)
    angle = (-1.0 if right else 1.0) * ee.rng.uniform(1.45, 1.65)
    yield from grasp(ee, color, middle_yaw=NEUTRAL_YAW - angle / 2)
    grasped = ee.world.tcp
    yaw = ee.world.target_euler[2] + angle
    if ee.route == "high":
        yield from ee.move_to(grasped + vector(0.0, 0.0, 0.05), tolerance=0.02, limit=15)
        yield from ee.move_to(grasped + vector(0.0, 0.0, 0.05), yaw=yaw, limit=60)
    yield from ee.move_to(ee.world.tcp * (1, 1, 0) + (0, 0, grasped[2] + 0.002), yaw=yaw, limit=45)
    yield from ee.set_gripper(OPEN, env_steps=5)
    yield from back_off(ee)


def place_in_slider(ee: EndEffector) -> Motion:
    """Place the held block on the shelf, in the compartment that the door leaves open."""
    if ee.world.held() is None:
        yield from _take_any(ee)
    x = _shelf_x(ee)
    # In front of the shelf, then in over its edge, then down; the release height depends on how the block is held.
    yield from _carry(ee, (x, -0.09, 0.58), pitch=SHELF_PITCH)
    yield from ee.move_to((x, SHELF_Y - 0.01, 0.56), pitch=SHELF_PITCH, tolerance=0.025, limit=30)
    yield from ee.move_to((x, SHELF_Y, 0.472 - ee.world.held_offset()), pitch=SHELF_PITCH, tolerance=0.015, limit=30)
    yield from _release(ee)


def place_in_drawer(ee: EndEffector) -> Motion:
    """Place the held block in the open drawer."""
    if ee.world.held() is None:
        yield from _take_any(ee)
    x = ee.world.fixtures.drawer_x + ee.along(0.08)
    y = TABLE_EDGE_Y - 0.04 - 0.55 * max(ee.world.drawer - 0.04, 0.0)  # a little behind the middle of the open part
    yield from _carry(ee, (x, y, 0.53))
    yield from ee.move_to((x, y, 0.372 - ee.world.held_offset()), tolerance=0.015, limit=40)
    yield from _release(ee)


def stack_block(ee: EndEffector) -> Motion:
    """Place the held block on top of the nearest other block on the table."""
    if ee.world.held() is None:
        yield from _take_any(ee)
    held = ee.world.held()
    others = stack_places(ee.world)
    if held is None or not others:
        return
    nearest = min(others, key=lambda block: float(np.linalg.norm(block.position - ee.world.tcp)))
    below = {"left": others[0], "right": others[-1]}.get(ee.route, nearest)
    x, y, z = below.position
    yaw = grasp_yaw(below, ee.world.target_euler[2])
    if ee.side and ee.world.tcp[1] > 0.0:  # from the shelf: before the door's knob, which the straight line may meet
        ee.gripper = CLOSE
        shelf_x, shelf_y, _ = ee.world.tcp
        for front_y in (min(shelf_y, 0.06), FRONT_Y):
            yield from ee.move_to((shelf_x, front_y, TRAVEL_Z + 0.03), pitch=ee.pitch, tolerance=0.03, limit=30)
    yield from _carry(ee, (x, y, z + 0.12), yaw=yaw)
    # The block must be over the other one, not the tool: subtract where the block sits between the fingers.
    x, y = below.position[:2] - (ee.world.blocks[held].position - ee.world.tcp)[:2]
    top = z + 2 * HALF_HEIGHT_M + 0.003 - ee.world.held_offset()
    yield from ee.move_to((x, y, top), yaw=yaw, tolerance=0.006, speed=0.6, limit=40)
    yield from _release(ee)


def unstack_block(ee: EndEffector) -> Motion:
    """Push the upper block off the lower one with closed fingers."""
    yield from back_off(ee)
    color = stacked(ee.world)
    if color is None:
        return
    ee.gripper = CLOSE
    block = ee.world.blocks[color]
    # Without a route it is pushed toward the middle of the table.
    side = -ee.side or (1.0 if block.position[0] > 0.13 else -1.0)
    beside = block.position + vector(side * (half_width_x(block) + 0.045), 0.0, 0.004)
    yield from ee.move_to(ee.near(beside + vector(0.0, 0.0, 0.07)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from ee.move_to(beside, yaw=NEUTRAL_YAW)
    yield from _push_until(ee, color, vector(-side, 0.0, 0.0), PUSH_M)
    yield from back_off(ee)


def push_into_drawer(ee: EndEffector) -> Motion:
    """Push a block from behind over the front edge of the table into the open drawer."""
    if not ee.side:
        yield from back_off(ee)
        ee.gripper = CLOSE
    before = blocks_before_drawer(ee.world)
    if not before:  # no block stands in front of the drawer: carry one into it instead
        yield from _take_any(ee)
        if ee.world.held() is not None:
            yield from place_in_drawer(ee)
        return
    ordered = sorted(before, key=lambda color: float(ee.world.blocks[color].position[0]))
    color = {"left": ordered[0], "right": ordered[-1]}.get(ee.route, before[0])
    block = ee.world.blocks[color]
    x, y, z = block.position
    # From the wall side toward the edge, far enough beyond it for the block to fall.
    if ee.side:
        yield from _go_around(ee, color, vector(0.0, -1.0, 0.0), vector(ee.side, 0.0, 0.0))
    else:
        behind = np.array([x, y + half_width_y(block) + 0.035, z + 0.002])
        yield from ee.move_to(ee.near(behind + vector(0.0, 0.0, 0.08)), yaw=NEUTRAL_YAW, tolerance=0.025)
        yield from ee.move_to(behind, yaw=NEUTRAL_YAW)
    yield from ee.move_to((x, TABLE_EDGE_Y - 0.05, z + 0.002), yaw=NEUTRAL_YAW, speed=0.8, limit=40)
    yield from back_off(ee)


def wait_before(ee: EndEffector, color: str, way: NDArray[np.float64]) -> Motion:
    """Bring the closed fingers down on the side of a block to which a push leads, so that a push must go around it.

    Args:
        ee: the end effector.
        color: of the block.
        way: unit vector [3] of the push, along x or y.
    """
    yield from back_off(ee)
    ee.gripper = CLOSE
    block = ee.world.blocks[color]
    place = block.position + way * (clearance(block, way) + 0.01) + vector(0.0, 0.0, 0.002)
    if REACH_X[0] < place[0] < REACH_X[1]:
        yield from ee.move_to(place + vector(0.0, 0.0, 0.08), yaw=NEUTRAL_YAW, tolerance=0.02)
        yield from ee.move_to(place, yaw=NEUTRAL_YAW)


def cross_over(ee: EndEffector, color: str) -> Motion:
    """Bring the open gripper over a block with the wrist across it, halfway between the two grasps if it can."""
    yield from back_off(ee)
    ee.gripper = OPEN
    block = ee.world.blocks[color]
    yaw = min(
        (grasp_yaw(block, WRIST_MIDDLE) + quarter for quarter in (-math.pi / 2, math.pi / 2)),
        key=lambda yaw: abs(yaw - WRIST_MIDDLE),
    )
    yield from ee.move_to(block.position + vector(0.0, 0.0, ABOVE_M), yaw=yaw + ee.rng.uniform(-0.3, 0.3))


def grasp(ee: EndEffector, color: str, *, middle_yaw: float = NEUTRAL_YAW) -> Motion:
    """Grasp a block: approach, descend, and close the fingers across its short side.

    Args:
        ee: the end effector.
        color: of the block.
        middle_yaw: of the two possible yaws the one nearer to this is taken, radians.
    """
    if ee.world.blocks[color].rests_on("base_link"):
        yield from _make_room(ee, color, grasp_yaw(ee.world.blocks[color], middle_yaw))
    ee.gripper = OPEN
    block = ee.world.blocks[color]
    yaw = grasp_yaw(block, middle_yaw)
    if is_beside_door(ee.world, block):
        # The finger on the door's side must not lie deeper than the other; closing the fingers rotates the block.
        is_on_right = block.position[0] < sum(ee.world.door_span()) / 2
        yaw = min(yaw, math.pi / 2) if is_on_right else max(yaw, math.pi / 2)
    pitch = grasp_pitch(ee.world, block)
    if not is_over(ee.world, color):
        above = block.position + ABOVE_M * _approach(pitch)
        # The straight line leads through the door's knob.
        if pitch < 0 and (abs(above[0] - ee.world.tcp[0]) > WIDE_M or ee.side):
            front = vector(above[0] + ASIDE_M * ee.side, FRONT_Y, max(above[2], TRAVEL_Z))
            yield from ee.move_to(ee.near(front), yaw=yaw, tolerance=0.05)
        if ee.route == "high":
            yield from ee.move_to(ee.near(above + vector(0.0, 0.0, HIGH_M)), yaw=yaw, pitch=pitch, tolerance=0.05)
        yield from ee.move_to(ee.near(above), yaw=yaw, pitch=pitch, tolerance=0.035)
    yield from _descend(ee, color, yaw=yaw, pitch=pitch)
    yield from ee.set_gripper(CLOSE, env_steps=7)


def _approach(pitch: float) -> NDArray[np.float64]:
    """Return the unit vector from a block toward a gripper that approaches with this pitch."""
    return vector(0.0, math.sin(pitch), math.cos(pitch))


def is_over(world: WorldState, color: str) -> bool:
    """Return whether the open gripper is so near the approach to a block that it need not retreat first."""
    height, lateral = _offset_from_grasp(world, color, grasp_pitch(world, world.blocks[color]))
    return world.target_grip > 0 and world.width > 0.07 and -0.02 < height < 0.2 and lateral < WIDE_M


def _offset_from_grasp(world: WorldState, color: str, pitch: float) -> tuple[float, float]:
    """Return the offset of the tool from its grasp of a block: along the approach, and lateral to it; meters."""
    offset = world.tcp - world.blocks[color].position + vector(0.0, 0.0, GRASP_DEPTH_M)
    height = float(offset @ _approach(pitch))
    return height, float(np.linalg.norm(offset - height * _approach(pitch)))


def _descend(ee: EndEffector, color: str, *, yaw: float, pitch: float, limit: int = 80) -> Motion:
    """Descend on a block inside a funnel: the larger the lateral or angular error, the higher the tool stays.

    Each command depends on the present poses of tool and block alone. A gripper that came down beside the block
    therefore rises again, and the motion has no hidden state that an image does not show. The descent ends at the
    grasp, or where the gripper stands still near it because door or wall blocks it.
    """
    last_positions = [ee.world.tcp] * STALL_STEPS
    for _ in range(limit):
        _, lateral = _offset_from_grasp(ee.world, color, pitch)
        yaw_error = abs(float(wrap(ee.world.euler[2] - yaw)))
        rise = min(ABOVE_M, FUNNEL_SLOPE * max(0.0, lateral - FUNNEL_M) + 0.2 * max(0.0, yaw_error - 0.2))
        goal = ee.world.blocks[color].position - vector(0.0, 0.0, GRASP_DEPTH_M)
        distance = float(np.linalg.norm(ee.world.tcp - goal))
        is_blocked = distance < STALL_M and np.linalg.norm(ee.world.tcp - last_positions[0]) < 0.002
        if (rise == 0.0 and distance < 0.007) or is_blocked:
            return
        last_positions = [*last_positions[1:], ee.world.tcp]
        yield from ee.move_to(goal + rise * _approach(pitch), yaw=yaw, pitch=pitch, limit=1)


def _shelf_x(ee: EndEffector) -> float:
    """Return x of a place on the shelf: the free one that the route names, else the freest; the middle wins a tie."""
    free, places = free_shelf_places(ee.world), shelf_places(ee.world)
    if ee.side and free:
        return free[0] if ee.side < 0 else free[-1]
    return max(places, key=places.__getitem__)


def _take_any(ee: EndEffector) -> Motion:
    """Lift a block from the table: the one nearest to its middle."""
    yield from back_off(ee)
    on_table = {color: block for color, block in ee.world.blocks.items() if block.rests_on("base_link")}
    if on_table:
        yield from lift_block(ee, min(on_table, key=lambda color: abs(on_table[color].position[0] - 0.1)))


def _go_around(ee: EndEffector, color: str, way: NDArray[np.float64], aside: NDArray[np.float64]) -> Motion:
    """Bring the closed fingers to where a push begins: low, and around the block on one side.

    From above they come down at that side of the block. Fingers that are low already, on the side where the push leads,
    first leave it sideways.

    Args:
        ee: the end effector.
        color: of the block.
        way: unit vector [3] of the push, along x or y.
        aside: unit vector [3] across, toward the side on which to pass.
    """
    if not is_low_near(ee.world, color):
        yield from back_off(ee)
    ee.gripper = CLOSE
    center = ee.world.blocks[color].position + vector(0.0, 0.0, 0.002)
    passing = aside * (clearance(ee.world.blocks[color], aside) + 0.005)
    start = -way * clearance(ee.world.blocks[color], way)
    offset = ee.world.tcp - center
    # Behind a block the gripper leans back, clear of the door's knob.
    move_low = functools.partial(
        ee.move_to, yaw=NEUTRAL_YAW, pitch=SHELF_PITCH if aside[1] > 0 else 0.0, tolerance=0.02
    )
    if offset[2] > 2 * HALF_HEIGHT_M:
        yield from move_low(ee.near(center + passing + vector(0.0, 0.0, 0.08)))
        yield from move_low(center + passing)
    elif offset @ way > 0.5 * (start @ way):
        along, across = float(offset @ way), float(offset @ aside)
        if abs(across) < passing @ aside:
            # Off the block before sideways, or friction takes it along.
            along = max(along, -float(start @ way))
            yield from move_low(center + way * along + aside * across, limit=10)
        yield from move_low(center + way * max(along, 0.0) + passing, limit=25)
    yield from move_low(center + start + passing, limit=25)
    yield from ee.move_to(center + start, yaw=NEUTRAL_YAW, tolerance=0.006, limit=30)


def _push_until(ee: EndEffector, color: str, direction: NDArray[np.float64], distance: float) -> Motion:
    """Push a block that the gripper is beside until it has moved `distance`; slowly at the end, so that it stops."""
    start = ee.world.blocks[color].position
    goal = ee.world.tcp + direction * (distance + 0.12)  # beyond the end: what ends the push is how far the block moved
    goal[2] = ee.world.tcp[2]
    for speed, share in ((0.8, 0.5), (0.45, 1.0)):
        for action in ee.move_to(goal, yaw=NEUTRAL_YAW, speed=speed, limit=30):
            yield action
            if (ee.world.blocks[color].position - start) @ direction > distance * share:
                break


def _make_room(ee: EndEffector, color: str, yaw: float) -> Motion:
    """Push a block across by its own width if another block stands where a finger would open."""
    block = ee.world.blocks[color]
    fingers = vector(math.sin(yaw), -math.cos(yaw), 0.0)  # the line on which they open
    for other, neighbor in ee.world.blocks.items():
        offset = neighbor.position - block.position
        along = float(offset @ fingers)
        across = float(np.linalg.norm(offset - along * fingers))
        if other == color or abs(along) > 0.11 or across > 0.055:
            continue
        # Push away from the nearer edge of the table, with closed fingers from the other side.
        ee.gripper = CLOSE
        way = vector(0.0, 1.0 if block.position[1] < -0.09 else -1.0, 0.0)
        beside = block.position - way * (half_width_y(block) + 0.035) + vector(0.0, 0.0, 0.002)
        yield from ee.move_to(beside + vector(0.0, 0.0, 0.08), yaw=NEUTRAL_YAW, tolerance=0.02)
        yield from ee.move_to(beside, yaw=NEUTRAL_YAW, limit=25)
        yield from _push_until(ee, color, way, 0.06)
        yield from back_off(ee)
        return


def _carry(
    ee: EndEffector, place: tuple[float, float, float], *, yaw: float | None = None, pitch: float = 0.0
) -> Motion:
    """Carry a held block to a point over `place`: up first, then across."""
    ee.gripper = CLOSE
    x, y, z = ee.world.tcp
    if z < TRAVEL_Z:
        yield from ee.move_to((x, min(y, 0.06), TRAVEL_Z + 0.03), pitch=ee.pitch, tolerance=0.03, limit=30)
    yield from ee.move_to(ee.near(place), yaw=yaw, pitch=pitch, tolerance=0.025)


def _release(ee: EndEffector) -> Motion:
    """Open the fingers and rise to travel height."""
    yield from ee.set_gripper(OPEN, env_steps=6)
    x, y, z = ee.world.tcp
    yield from ee.move_to((x, y, max(z + 0.08, TRAVEL_Z)), pitch=ee.pitch, tolerance=0.03, limit=30)
