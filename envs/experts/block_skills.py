"""Skills with the three blocks: push, lift, rotate, place, stack, unstack, and when each of them makes sense.

Generators like those of `skills.py`. Blocks are 0.04 m high and 0.04 m across their short side; the gripper opens to
0.08 m. Fingers that point down reach 0.02 m below the tool center point, so a block is taken just below its center. On
the shelf behind the door the hand leans back, because the wall stands 0.03 m behind the blocks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .motion import CLOSE, OPEN, BlockState, Hand, Motion, WorldState, vector, wrap
from .skills import NEUTRAL_YAW, TRAVEL_Z, back_off, move_slider

SHELF_PITCH = -0.3
CORNER_PITCH = -0.6
"""At the right end of the shelf the back wall leans forward; beside the door the hand must stay in front of it."""
SHELF_Y = 0.085
FRONT_Y = -0.13
"""In front of door, knob and lever: here the hand travels along the shelf."""
GRASP_DEPTH_M = 0.004
ABOVE_M = 0.09
"""From here the hand comes down on a block."""
WIDE_M = 0.06
FUNNEL, FUNNEL_M = 2.0, 0.006
"""Slope and opening of the funnel: so much higher for every meter aside, beyond this many."""
STALL_STEPS, STALL_M = 5, 0.025
"""A hand this near its place that has not moved for so many steps does not come nearer."""
HALF_HEIGHT_M = 0.02
HALF_LENGTH_M = 0.04
"""Of the largest block."""
TABLE_EDGE_Y = -0.18
REACH_X = (-0.34, 0.40)
"""Along the table; with a block further to the right the expert fails."""
PUSH_M = 0.115
"""How far a block is pushed; the oracle wants 0.1."""
HAND_HALF_WIDTH_M = 0.105
"""The hand is this wide on both sides of the tool, along the line on which the fingers open."""
DRAWER_REACH_M = 0.13
"""A block this far from the middle of the drawer, along x, still falls into it."""


def push_block(hand: Hand, color: str, *, right: bool) -> Motion:
    """Come down beside the block with closed fingers and push it along x."""
    yield from back_off(hand)
    hand.grip = CLOSE
    side = -1.0 if right else 1.0
    block = hand.world.blocks[color]
    start = block.position[0]
    gap = half_width_x(block) + 0.045
    beside = np.array([start + side * gap, block.position[1], block.position[2] + 0.002])
    yield from hand.go(hand.near(beside + vector(0.0, 0.0, 0.08)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go(beside, yaw=NEUTRAL_YAW)
    yield from _push_until(hand, color, -side * vector(1.0, 0.0, 0.0), PUSH_M)
    yield from back_off(hand)


def lift_block(hand: Hand, color: str) -> Motion:
    """Take a block from wherever it stands and lift it; a door that stands in the way is pushed aside first."""
    if not _is_over(hand, color):
        yield from back_off(hand)
    side = _door_in_the_way(hand.world, hand.world.blocks[color])
    if side is not None:
        yield from move_slider(hand, left=side == "left")
    yield from grasp(hand, color)
    pitch = _pitch(hand)
    away = -0.03 if pitch < 0 else 0.0  # from the back wall of the shelf: a hand that touches it cannot place the block
    yield from hand.go(hand.world.tcp + vector(0.0, away, 0.12), pitch=pitch, speed=0.8, limit=30)


def rotate_block(hand: Hand, color: str, *, right: bool) -> Motion:
    """Grasp and turn by a good quarter, on the spot; left is counter-clockwise from above."""
    if not _is_over(hand, color):
        yield from back_off(hand)
    turn = (-1.0 if right else 1.0) * hand.rng.uniform(1.45, 1.65)
    yield from grasp(hand, color, middle_yaw=NEUTRAL_YAW - turn / 2)
    yield from hand.go(hand.world.tcp + vector(0.0, 0.0, 0.002), yaw=hand.world.target_euler[2] + turn, limit=45)
    yield from hand.squeeze(OPEN, steps=5)
    yield from back_off(hand)


def place_in_slider(hand: Hand) -> Motion:
    """Put the held block on the shelf, in the compartment that the door leaves open."""
    if hand.world.held() is None:
        yield from _take_any(hand)
    x = _shelf_x(hand)
    yield from _carry(hand, (x, -0.09, 0.58), pitch=SHELF_PITCH)
    yield from hand.go((x, SHELF_Y - 0.01, 0.56), pitch=SHELF_PITCH, tolerance=0.025, limit=30)
    yield from hand.go((x, SHELF_Y, 0.472 - _held_offset(hand)), pitch=SHELF_PITCH, tolerance=0.015, limit=30)
    yield from _let_go(hand)


def place_in_drawer(hand: Hand) -> Motion:
    """Put the held block into the open drawer."""
    if hand.world.held() is None:
        yield from _take_any(hand)
    x = hand.world.fixtures.drawer_x + hand.rng.uniform(-0.08, 0.08)
    y = TABLE_EDGE_Y - 0.04 - 0.55 * max(hand.world.drawer - 0.04, 0.0)
    yield from _carry(hand, (x, y, 0.53))
    yield from hand.go((x, y, 0.372 - _held_offset(hand)), tolerance=0.015, limit=40)
    yield from _let_go(hand)


def stack_block(hand: Hand) -> Motion:
    """Put the held block on top of the nearest other block on the table."""
    if hand.world.held() is None:
        yield from _take_any(hand)
    held = hand.world.held()
    others = [b for c, b in hand.world.blocks.items() if c != held and b.rests_on("base_link")]
    if held is None or not others:
        return
    below = min(others, key=lambda block: float(np.linalg.norm(block.position - hand.world.tcp)))
    x, y, z = below.position
    yaw = grasp_yaw(below, hand.world.target_euler[2])
    yield from _carry(hand, (x, y, z + 0.12), yaw=yaw)
    x, y = below.position[:2] - (hand.world.blocks[held].position - hand.world.tcp)[:2]
    top = z + 2 * HALF_HEIGHT_M + 0.003 - _held_offset(hand)
    yield from hand.go((x, y, top), yaw=yaw, tolerance=0.006, speed=0.6, limit=40)
    yield from _let_go(hand)


def unstack_block(hand: Hand) -> Motion:
    """Push the upper block off the lower one with closed fingers."""
    yield from back_off(hand)
    color = stacked(hand.world)
    if color is None:
        return
    hand.grip = CLOSE
    block = hand.world.blocks[color]
    side = 1.0 if block.position[0] > 0.13 else -1.0
    beside = block.position + vector(side * (half_width_x(block) + 0.045), 0.0, 0.004)
    yield from hand.go(hand.near(beside + vector(0.0, 0.0, 0.07)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go(beside, yaw=NEUTRAL_YAW)
    yield from _push_until(hand, color, vector(-side, 0.0, 0.0), PUSH_M)
    yield from back_off(hand)


def push_into_drawer(hand: Hand) -> Motion:
    """Push a block from behind over the front edge of the table into the open drawer."""
    yield from back_off(hand)
    hand.grip = CLOSE
    color = _block_before_drawer(hand.world)
    if color is None:  # none stands in front of the drawer: carry one there instead
        yield from _take_any(hand)
        if hand.world.held() is not None:
            yield from place_in_drawer(hand)
        return
    block = hand.world.blocks[color]
    x, y, z = block.position
    behind = np.array([x, y + half_width_y(block) + 0.035, z + 0.002])
    yield from hand.go(hand.near(behind + vector(0.0, 0.0, 0.08)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go(behind, yaw=NEUTRAL_YAW)
    yield from hand.go((x, TABLE_EDGE_Y - 0.05, z + 0.002), yaw=NEUTRAL_YAW, speed=0.8, limit=40)
    yield from back_off(hand)


def grasp(hand: Hand, color: str, *, middle_yaw: float = NEUTRAL_YAW) -> Motion:
    """Close the fingers across the block's short side; `middle_yaw` says which of the two headings is preferred."""
    if hand.world.blocks[color].rests_on("base_link"):
        yield from _make_room(hand, color, grasp_yaw(hand.world.blocks[color], middle_yaw))
    hand.grip = OPEN
    block = hand.world.blocks[color]
    yaw = _clear_of_door(hand.world, block, grasp_yaw(block, middle_yaw))
    pitch = _lean(hand.world, block)
    if not _is_over(hand, color):
        above = block.position + ABOVE_M * _approach(pitch)
        if pitch < 0 and abs(above[0] - hand.world.tcp[0]) > WIDE_M:  # the straight way leads through the door's knob
            front = vector(above[0], FRONT_Y, max(above[2], TRAVEL_Z))
            yield from hand.go(hand.near(front), yaw=yaw, tolerance=0.05)
        yield from hand.go(hand.near(above), yaw=yaw, pitch=pitch, tolerance=0.035)
    yield from _come_down(hand, color, yaw=yaw, pitch=pitch)
    yield from hand.squeeze(CLOSE, steps=7)


def _approach(pitch: float) -> NDArray[np.float64]:
    """Direction from a block to where a hand that leans by `pitch` comes from."""
    return vector(0.0, math.sin(pitch), math.cos(pitch))


def _is_over(hand: Hand, color: str) -> bool:
    """Say whether the open hand is so near the way down on a block that it need not leave first."""
    block = hand.world.blocks[color]
    height, aside = _seen_from(hand, color, _lean(hand.world, block))
    return hand.world.target_grip > 0 and hand.world.width > 0.07 and -0.02 < height < 0.2 and aside < WIDE_M


def _seen_from(hand: Hand, color: str, pitch: float) -> tuple[float, float]:
    """How far the tool is from where it would close on the block: along the way down, and aside of it; meters."""
    offset = hand.world.tcp - hand.world.blocks[color].position + vector(0.0, 0.0, GRASP_DEPTH_M)
    height = float(offset @ _approach(pitch))
    return height, float(np.linalg.norm(offset - height * _approach(pitch)))


def _come_down(hand: Hand, color: str, *, yaw: float, pitch: float, limit: int = 80) -> Motion:
    """Down a funnel: the further aside, or the more askew, the higher up.

    What is commanded follows from where hand and block are now, at every step: a hand that came down beside the block
    goes up again, and nothing has to be remembered that an image does not show. A hand that stands still over the
    block, held up by door or wall, is as near as it gets.
    """
    before = [hand.world.tcp] * STALL_STEPS
    for _ in range(limit):
        _, aside = _seen_from(hand, color, pitch)
        askew = abs(float(wrap(hand.world.euler[2] - yaw)))
        rise = min(ABOVE_M, FUNNEL * max(0.0, aside - FUNNEL_M) + 0.2 * max(0.0, askew - 0.2))
        place = hand.world.blocks[color].position - vector(0.0, 0.0, GRASP_DEPTH_M)
        short = float(np.linalg.norm(hand.world.tcp - place))
        stalls = short < STALL_M and np.linalg.norm(hand.world.tcp - before[0]) < 0.002
        if (rise == 0.0 and short < 0.007) or stalls:
            return
        before = [*before[1:], hand.world.tcp]
        yield from hand.go(place + rise * _approach(pitch), yaw=yaw, pitch=pitch, limit=1)


def grasp_yaw(block: BlockState, middle: float) -> float:
    """Return the heading nearest to `middle` whose fingers close across the block's short side."""
    return middle + (block.yaw - middle + math.pi / 2) % math.pi - math.pi / 2


def half_width_x(block: BlockState, *, long_m: float = HALF_LENGTH_M, short_m: float = 0.02) -> float:
    """Half extent along x of a block with these half edges; the default is the largest block."""
    return long_m * abs(math.cos(block.yaw)) + short_m * abs(math.sin(block.yaw))


def half_width_y(block: BlockState, *, long_m: float = HALF_LENGTH_M, short_m: float = 0.02) -> float:
    """Half extent along y of a block with these half edges; the default is the largest block."""
    return long_m * abs(math.sin(block.yaw)) + short_m * abs(math.cos(block.yaw))


def stands_in_reach(world: WorldState, color: str) -> bool:
    """Say whether a block stands on the table top where the hand can take it, with none on top of it.

    Others may stand beside it, as they do where one was pushed against another: `grasp` makes room first.
    """
    block = world.blocks[color]
    x, y, z = block.position
    inside = REACH_X[0] < x < REACH_X[1] and TABLE_EDGE_Y + 0.02 < y < 0.0 and abs(z - 0.46) < 0.01
    return inside and block.rests_on("base_link") and not any(_lies_on(b, block) for b in world.blocks.values())


def stands_free(world: WorldState, color: str) -> bool:
    """Say whether a block stands in reach, nothing close to it and room to go, so that it can be pushed by itself."""
    place = world.blocks[color].position
    others = [float(np.linalg.norm(b.position - place)) for c, b in world.blocks.items() if c != color]
    inside = -0.28 < place[0] < 0.36 and TABLE_EDGE_Y + 0.03 < place[1] < -0.02
    return inside and stands_in_reach(world, color) and min(others) > 0.09


def _lies_on(upper: BlockState, lower: BlockState) -> bool:
    """Say whether a block is where one on top of the other is; one that is carried higher over it is not."""
    x, y, z = upper.position - lower.position
    return HALF_HEIGHT_M < z < 3 * HALF_HEIGHT_M and math.hypot(x, y) < 2 * HALF_LENGTH_M


def can_lift(world: WorldState, color: str, place: str) -> bool:
    """Say whether a block stands on the "table", in the open part of the "slider", or in the open "drawer"."""
    block = world.blocks[color]
    if place == "table":
        return stands_in_reach(world, color)
    if place == "drawer":
        return block.rests_on("drawer_link") and world.drawer > 0.12 and block.position[1] < TABLE_EDGE_Y - 0.02
    span = _open_span(world)
    return span is not None and block.rests_on("plank_link") and span[0] <= block.position[0] <= span[1]


def stacked(world: WorldState) -> str | None:
    """Return the color of a block that lies on another one and touches nothing else."""
    for color, block in world.blocks.items():
        if {kind for kind, _ in block.touches} == {"block"}:
            return color
    return None


def has_room(world: WorldState, task: str) -> bool:
    """Say whether the held block has somewhere to go."""
    if task == "place_in_drawer":
        return world.drawer > 0.12
    if task == "place_in_slider":
        return _open_span(world) is not None
    held = world.held()
    return any(stands_in_reach(world, color) for color in world.blocks if color != held)


def can_push_into_drawer(world: WorldState) -> bool:
    """Say whether the drawer is open and a block stands in front of it, or where the hand can fetch it from.

    What the hand touches at the start does not count for the oracle, even if it ends in the drawer.
    """
    before = _block_before_drawer(world)
    candidates = list(world.blocks) if before is None else [before]
    return world.drawer > 0.15 and any(
        (color == before or stands_in_reach(world, color)) and ("robot", "") not in world.blocks[color].touches
        for color in candidates
    )


def _block_before_drawer(world: WorldState) -> str | None:
    def lies_before(block: BlockState) -> bool:
        inside = abs(block.position[0] - world.fixtures.drawer_x) < DRAWER_REACH_M
        return inside and {("table", "base_link")} == set(block.touches) - {("robot", "")}

    return next((color for color, block in world.blocks.items() if lies_before(block)), None)


def _open_span(world: WorldState) -> tuple[float, float] | None:
    """Stretch of the shelf, along x, that the door leaves open; None while the door stands in the middle."""
    fixtures = world.fixtures
    if world.slide < 0.05:
        return fixtures.open_compartments[0]
    return fixtures.open_compartments[1] if world.slide > fixtures.slide_range - 0.05 else None


def _lean(world: WorldState, block: BlockState) -> float:
    """Pitch of the hand that clears what stands behind a block, and beside it."""
    if block.position[1] < 0.03:
        return 0.0
    right_end = world.fixtures.open_compartments[1][1] + 0.03
    is_in_corner = block.position[0] + HAND_HALF_WIDTH_M > right_end
    return CORNER_PITCH if is_in_corner or _is_beside_door(world, block) else SHELF_PITCH


def _is_beside_door(world: WorldState, block: BlockState) -> bool:
    """Say whether the hand, over a block on the shelf, reaches over the door's edge."""
    low, high = world.door_span()
    return block.position[1] > 0.03 and low - HAND_HALF_WIDTH_M < block.position[0] < high + HAND_HALF_WIDTH_M


def _clear_of_door(world: WorldState, block: BlockState, yaw: float) -> float:
    """Keep the finger on the door's side from lying deeper than the other; closing turns the block the rest."""
    if not _is_beside_door(world, block):
        return yaw
    is_on_right = block.position[0] < sum(world.door_span()) / 2
    return min(yaw, math.pi / 2) if is_on_right else max(yaw, math.pi / 2)


def _door_in_the_way(world: WorldState, block: BlockState) -> str | None:
    """Where to push the door ("left" or "right") before the hand can get at a block on the shelf; None if it can."""
    low, high = world.door_span()
    x = block.position[0]
    if block.position[1] < 0.03 or not low - HAND_HALF_WIDTH_M < x < high + HAND_HALF_WIDTH_M:
        return None
    side = "left" if x > (low + high) / 2 else "right"
    room = world.fixtures.slide_range - world.slide if side == "left" else world.slide
    return side if room > 0.02 else None


def _shelf_x(hand: Hand) -> float:
    """A free place on the open part of the shelf: far from the door and from blocks that stand there already."""
    world = hand.world
    is_left = world.slide < world.fixtures.slide_range / 2
    low, high = world.fixtures.open_compartments[0 if is_left else 1]
    door_low, door_high = world.door_span()
    if is_left:
        high = max(low, min(high, door_low - HAND_HALF_WIDTH_M))
    else:
        low = min(high, max(low, door_high + HAND_HALF_WIDTH_M))
    held = world.held()
    taken = [b.position[0] for c, b in world.blocks.items() if c != held and b.position[1] > 0.03]
    places = [(low + high) / 2, low, high]
    return max(places, key=lambda x: min([0.1, *(abs(x - other) for other in taken)]))


def _take_any(hand: Hand) -> Motion:
    """Take a block from the table: the one nearest to its middle."""
    yield from back_off(hand)
    on_table = {color: block for color, block in hand.world.blocks.items() if block.rests_on("base_link")}
    if on_table:
        yield from lift_block(hand, min(on_table, key=lambda color: abs(on_table[color].position[0] - 0.1)))


def _push_until(hand: Hand, color: str, direction: NDArray[np.float64], distance: float) -> Motion:
    """Push with what is now beside the block until it has moved `distance`; slowly at the end, lest it slide on."""
    start = hand.world.blocks[color].position
    goal = hand.world.tcp + direction * (distance + 0.12)
    goal[2] = hand.world.tcp[2]
    for speed, share in ((0.8, 0.5), (0.45, 1.0)):
        for action in hand.go(goal, yaw=NEUTRAL_YAW, speed=speed, limit=30):
            yield action
            if (hand.world.blocks[color].position - start) @ direction > distance * share:
                break


def _make_room(hand: Hand, color: str, yaw: float) -> Motion:
    """Where another block stands in the way of an open finger, push this one across by a block's width first."""
    block = hand.world.blocks[color]
    fingers = vector(math.sin(yaw), -math.cos(yaw), 0.0)
    for other, neighbor in hand.world.blocks.items():
        offset = neighbor.position - block.position
        along = float(offset @ fingers)
        across = float(np.linalg.norm(offset - along * fingers))
        if other == color or abs(along) > 0.11 or across > 0.055:
            continue
        hand.grip = CLOSE
        way = vector(0.0, 1.0 if block.position[1] < -0.09 else -1.0, 0.0)
        beside = block.position - way * (half_width_y(block) + 0.035) + vector(0.0, 0.0, 0.002)
        yield from hand.go(beside + vector(0.0, 0.0, 0.08), yaw=NEUTRAL_YAW, tolerance=0.02)
        yield from hand.go(beside, yaw=NEUTRAL_YAW, limit=25)
        yield from _push_until(hand, color, way, 0.06)
        yield from back_off(hand)
        return


def _carry(hand: Hand, place: tuple[float, float, float], *, yaw: float | None = None, pitch: float = 0.0) -> Motion:
    """Bring a held block over `place`: up first, then across."""
    hand.grip = CLOSE
    x, y, z = hand.world.tcp
    if z < TRAVEL_Z:
        yield from hand.go((x, min(y, 0.06), TRAVEL_Z + 0.03), pitch=_pitch(hand), tolerance=0.03, limit=30)
    yield from hand.go(hand.near(place), yaw=yaw, pitch=pitch, tolerance=0.025)


def _let_go(hand: Hand) -> Motion:
    yield from hand.squeeze(OPEN, steps=6)
    x, y, z = hand.world.tcp
    yield from hand.go((x, y, max(z + 0.08, TRAVEL_Z)), pitch=_pitch(hand), tolerance=0.03, limit=30)


def _held_offset(hand: Hand) -> float:
    """Height of the held block's center over the tool center point, 0 when nothing is held."""
    held = hand.world.held()
    return 0.0 if held is None else float(hand.world.blocks[held].position[2] - hand.world.tcp[2])


def _pitch(hand: Hand) -> float:
    return float(hand.world.target_euler[1])
