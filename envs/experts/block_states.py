"""The blocks as the expert sees them: where they can be grasped, pushed, lifted, stacked or placed, and what is free.

Pure functions of the state, in meters and radians, world frame; they move nothing. `block_skills.py` acts on them,
`ways.py` and `demonstrator.py` choose by them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .motion import BlockState, WorldState

SHELF_PITCH = -0.3
CORNER_PITCH = -0.6
"""Pitch at the right end of the shelf, where the back wall leans forward, and beside the door."""
WRIST_YAW = (-0.7, 4.8)
"""Range of the wrist, with a margin."""
NEAR_GRASP_RAD = 0.5
FARTHEST_GRASP_RAD = 2.4
"""Nearer than the first, the wrist is nearly at a grasp; farther than the second, another is much nearer."""
HALF_HEIGHT_M = 0.02
HALF_LENGTH_M = 0.04
"""Half edges of the largest block."""
TABLE_EDGE_Y = -0.18
REACH_X = (-0.34, 0.40)
"""Along the table; with a block further to the right the expert fails."""
PLACE_GAP_M = 0.1
"""A place on the shelf this far from other blocks is free."""
GRIPPER_HALF_WIDTH_M = 0.105
"""Half extent of the gripper along the line on which the fingers open."""
DRAWER_REACH_M = 0.13
"""A block this far from the middle of the drawer, along x, still falls into it."""


def grasp_yaw(block: BlockState, middle: float) -> float:
    """Return the yaw nearest to `middle` at which the fingers close across the block's short side."""
    return middle + (block.yaw - middle + math.pi / 2) % math.pi - math.pi / 2


def grasp_yaws(world: WorldState, color: str) -> dict[str, float]:
    """Return the grasps that a block offers to the left and to the right of the wrist's present yaw, by route.

    A wrist that is nearly at one of them already finds it on both sides; those far away or out of reach are left out.
    """
    present = float(world.target_euler[2])
    nearest = grasp_yaw(world.blocks[color], present)
    reachable = [
        yaw
        for yaw in (nearest - math.pi, nearest, nearest + math.pi)
        if WRIST_YAW[0] < yaw < WRIST_YAW[1] and abs(yaw - present) < FARTHEST_GRASP_RAD
    ]
    left = [yaw for yaw in reachable if yaw > present - NEAR_GRASP_RAD]
    right = [yaw for yaw in reachable if yaw < present + NEAR_GRASP_RAD]
    return ({"wrist left": min(left)} if left else {}) | ({"wrist right": max(right)} if right else {})


def clearance(block: BlockState, way: NDArray[np.float64]) -> float:
    """Return how far from a block's center the closed fingers are free of it, along `way`, the x or the y axis."""
    return half_width_x(block) + 0.045 if way[0] else half_width_y(block) + 0.035


def half_width_x(block: BlockState, *, long_m: float = HALF_LENGTH_M, short_m: float = 0.02) -> float:
    """Return the half extent along x of a block with these half edges; the default is the largest block.

    Args:
        block: its yaw is used, radians.
        long_m: half of the block's long edge, meters.
        short_m: half of the block's short edge, meters.

    Returns:
        The half extent in meters.
    """
    return long_m * abs(math.cos(block.yaw)) + short_m * abs(math.sin(block.yaw))


def half_width_y(block: BlockState, *, long_m: float = HALF_LENGTH_M, short_m: float = 0.02) -> float:
    """Return the half extent along y of a block with these half edges; the default is the largest block.

    Args:
        block: its yaw is used, radians.
        long_m: half of the block's long edge, meters.
        short_m: half of the block's short edge, meters.

    Returns:
        The half extent in meters.
    """
    return long_m * abs(math.sin(block.yaw)) + short_m * abs(math.cos(block.yaw))


def stands_in_reach(world: WorldState, color: str) -> bool:
    """Return whether a block stands on the table top within reach, with no other block on top of it.

    Others may stand beside it, as they do where one was pushed against another: `grasp` makes room first.
    """
    block = world.blocks[color]
    x, y, z = block.position
    is_inside = REACH_X[0] < x < REACH_X[1] and TABLE_EDGE_Y + 0.02 < y < 0.0 and abs(z - 0.46) < 0.01
    if not is_inside or not block.rests_on("base_link"):
        return False
    for other in world.blocks.values():
        dx, dy, dz = other.position - block.position
        # One on top lies one block height above; one that is carried higher over it does not count.
        if HALF_HEIGHT_M < dz < 3 * HALF_HEIGHT_M and math.hypot(dx, dy) < 2 * HALF_LENGTH_M:
            return False
    return True


def stands_free(world: WorldState, color: str) -> bool:
    """Return whether a block can be pushed: it stands in reach, has room to move, and no other block is near it."""
    place = world.blocks[color].position
    others = [float(np.linalg.norm(b.position - place)) for c, b in world.blocks.items() if c != color]
    inside = -0.28 < place[0] < 0.36 and TABLE_EDGE_Y + 0.03 < place[1] < -0.02
    return inside and stands_in_reach(world, color) and min(others) > 0.09


def can_lift(world: WorldState, color: str, place: str) -> bool:
    """Return whether a block can be lifted from a place.

    Args:
        world: the present state.
        color: of the block.
        place: "table", "slider" (the part that the door leaves open), or "drawer" (open).
    """
    block = world.blocks[color]
    if place == "table":
        return stands_in_reach(world, color)
    if place == "drawer":
        return block.rests_on("drawer_link") and world.drawer > 0.12 and block.position[1] < TABLE_EDGE_Y - 0.02
    span = world.open_compartment()
    return span is not None and block.rests_on("plank_link") and span[0] <= block.position[0] <= span[1]


def stacked(world: WorldState) -> str | None:
    """Return the color of a block that lies on another one and touches nothing else."""
    for color, block in world.blocks.items():
        if {kind for kind, _ in block.touches} == {"block"}:
            return color
    return None


def has_room(world: WorldState, task: str) -> bool:
    """Return whether there is a free place for the held block."""
    if task == "place_in_drawer":
        return world.drawer > 0.12
    if task == "place_in_slider":
        return world.open_compartment() is not None
    held = world.held()
    return any(stands_in_reach(world, color) for color in world.blocks if color != held)


def can_push_into_drawer(world: WorldState) -> bool:
    """Return whether the drawer is open and a block stands in front of it or elsewhere within reach.

    A block that the robot touches at the start does not count for the task oracle, even if it ends in the drawer.
    """
    before = blocks_before_drawer(world)
    return world.drawer > 0.15 and any(
        (color in before or stands_in_reach(world, color)) and ("robot", "") not in world.blocks[color].touches
        for color in before[:1] or world.blocks
    )


def blocks_before_drawer(world: WorldState) -> list[str]:
    """Return the colors of the blocks on the table in front of the drawer."""

    def lies_before(block: BlockState) -> bool:
        inside = abs(block.position[0] - world.fixtures.drawer_x) < DRAWER_REACH_M
        return inside and {("table", "base_link")} == set(block.touches) - {("robot", "")}

    return [color for color, block in world.blocks.items() if lies_before(block)]


def stack_places(world: WorldState) -> list[BlockState]:
    """Return the blocks on the table that the held block can be stacked on, from left to right."""
    held = world.held()
    others = [b for c, b in world.blocks.items() if c != held and b.rests_on("base_link")]
    return sorted(others, key=lambda block: float(block.position[0]))


def grasp_pitch(world: WorldState, block: BlockState) -> float:
    """Return the pitch at which the gripper clears what stands behind and beside a block."""
    if block.position[1] < 0.03:
        return 0.0
    right_end = world.fixtures.open_compartments[1][1] + 0.03
    is_in_corner = block.position[0] + GRIPPER_HALF_WIDTH_M > right_end
    return CORNER_PITCH if is_in_corner or is_beside_door(world, block) else SHELF_PITCH


def is_beside_door(world: WorldState, block: BlockState) -> bool:
    """Return whether the gripper, over a block on the shelf, overlaps the door."""
    low, high = world.door_span()
    return block.position[1] > 0.03 and low - GRIPPER_HALF_WIDTH_M < block.position[0] < high + GRIPPER_HALF_WIDTH_M


def free_shelf_places(world: WorldState) -> list[float]:
    """Return x of the free places on the open part of the shelf, from left to right; perhaps none is quite free."""
    return sorted(x for x, room in shelf_places(world).items() if room == PLACE_GAP_M)


def shelf_places(world: WorldState) -> dict[float, float]:
    """Return the middle and the ends of the open part of the shelf, and how far each is from other blocks.

    They are clear of the door. Distances are cut at `PLACE_GAP_M`, which is far enough.
    """
    is_left = world.slide < world.fixtures.slide_range / 2
    low, high = world.fixtures.open_compartments[0 if is_left else 1]
    door_low, door_high = world.door_span()
    if is_left:
        high = max(low, min(high, door_low - GRIPPER_HALF_WIDTH_M))
    else:
        low = min(high, max(low, door_high + GRIPPER_HALF_WIDTH_M))
    held = world.held()
    taken = [b.position[0] for c, b in world.blocks.items() if c != held and b.position[1] > 0.03]
    return {x: min([PLACE_GAP_M, *(abs(x - other) for other in taken)]) for x in ((low + high) / 2, low, high)}


def is_low_near(world: WorldState, color: str) -> bool:
    """Return whether the closed fingers are low beside a block, so that they need not rise to get around it."""
    offset = world.tcp - world.blocks[color].position
    return world.target_grip < 0 and abs(offset[2]) < HALF_HEIGHT_M and float(np.linalg.norm(offset)) < 0.16
