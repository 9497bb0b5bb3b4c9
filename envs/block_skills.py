"""Skills with the three blocks: push, lift, rotate, place, stack, unstack, and when each of them makes sense.

Generators like those of `skills.py`. Blocks are 0.04 m high and 0.04 m across their short side; the gripper opens to
0.08 m. Fingers that point down reach 0.02 m below the tool centre point, so a block is taken just below its centre. On
the shelf behind the door the hand leans back, because the wall stands 0.03 m behind the blocks.
"""

from __future__ import annotations

import math

import numpy as np

from .motion import CLOSE, OPEN, Block, Hand, Motion, World, vector
from .skills import NEUTRAL_YAW, TRAVEL_Z, back_off

SHELF_PITCH = -0.3
SHELF_Y = 0.085
GRASP_DEPTH_M = 0.004
HALF_HEIGHT_M = 0.02
TABLE_EDGE_Y = -0.18


def push_block(hand: Hand, colour: str, *, right: bool) -> Motion:
    """Come down beside the block with closed fingers and push it along x."""
    yield from back_off(hand)
    hand.grip = CLOSE
    side = -1.0 if right else 1.0
    block = hand.world.blocks[colour]
    start = block.position[0]
    gap = half_width_x(block) + 0.045
    beside = np.array([start + side * gap, block.position[1], block.position[2] + 0.002])
    yield from hand.go(hand.near(beside + vector(0.0, 0.0, 0.08)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go(beside, yaw=NEUTRAL_YAW)
    for action in hand.go(beside - vector(side * (0.15 + 0.045), 0.0, 0.0), yaw=NEUTRAL_YAW, speed=0.8, limit=35):
        yield action
        if -side * (hand.world.blocks[colour].position[0] - start) > 0.13:
            break
    yield from back_off(hand)


def lift_block(hand: Hand, colour: str) -> Motion:
    """Take a block from wherever it stands and lift it."""
    yield from back_off(hand)
    yield from grasp(hand, colour)
    yield from hand.go(hand.world.tcp + vector(0.0, 0.0, 0.12), pitch=_pitch(hand), speed=0.8, limit=30)


def rotate_block(hand: Hand, colour: str, *, right: bool) -> Motion:
    """Grasp and turn by a good quarter, on the spot; left is counter-clockwise from above."""
    yield from back_off(hand)
    turn = (-1.0 if right else 1.0) * hand.rng.uniform(1.45, 1.65)
    yield from grasp(hand, colour, middle_yaw=NEUTRAL_YAW - turn / 2)
    yield from hand.go(hand.world.tcp + vector(0.0, 0.0, 0.002), yaw=hand.world.target_euler[2] + turn, limit=45)
    yield from hand.squeeze(OPEN, steps=5)
    yield from back_off(hand)


def place_in_slider(hand: Hand) -> Motion:
    """Put the held block on the shelf, in the compartment that the door leaves open."""
    if hand.world.held() is None:
        yield from _take_any(hand)
    x = _shelf_x(hand)
    yield from _carry(hand, (x, SHELF_Y - 0.01, 0.60), pitch=SHELF_PITCH)
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
    """Take the upper block off and set it down beside."""
    pair = stacked(hand.world)
    if pair is None:
        yield from back_off(hand)
        return
    yield from lift_block(hand, pair)
    x, y = hand.world.tcp[:2]
    side = -0.11 if x > 0.15 else 0.11
    yield from hand.go((x + side, y, TRAVEL_Z), limit=30)
    yield from hand.go((x + side, y, 0.47), limit=30)
    yield from _let_go(hand)


def push_into_drawer(hand: Hand) -> Motion:
    """Push a block from behind over the front edge of the table into the open drawer."""
    yield from back_off(hand)
    hand.grip = CLOSE
    colour = _block_before_drawer(hand.world)
    if colour is None:
        return
    block = hand.world.blocks[colour]
    x, y, z = block.position
    behind = np.array([x, y + half_width_y(block) + 0.035, z + 0.002])
    yield from hand.go(hand.near(behind + vector(0.0, 0.0, 0.08)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go(behind, yaw=NEUTRAL_YAW)
    yield from hand.go((x, TABLE_EDGE_Y - 0.05, z + 0.002), yaw=NEUTRAL_YAW, speed=0.8, limit=40)
    yield from back_off(hand)


def grasp(hand: Hand, colour: str, *, middle_yaw: float = NEUTRAL_YAW) -> Motion:
    """Close the fingers across the block's short side; `middle_yaw` says which of the two headings is preferred."""
    hand.grip = OPEN
    block = hand.world.blocks[colour]
    yaw = grasp_yaw(block, middle_yaw)
    pitch = SHELF_PITCH if block.position[1] > 0.03 else 0.0
    back = np.array([0.0, 0.12 * math.sin(pitch), 0.0])
    yield from hand.go(hand.near(block.position + back + vector(0.0, 0.0, 0.09)), yaw=yaw, pitch=pitch, tolerance=0.025)
    place = hand.world.blocks[colour].position - vector(0.0, 0.0, GRASP_DEPTH_M)
    yield from hand.go(place, yaw=yaw, pitch=pitch, tolerance=0.007, limit=40)
    yield from hand.squeeze(CLOSE, steps=7)


def grasp_yaw(block: Block, middle: float) -> float:
    """Return the heading nearest to `middle` whose fingers close across the block's short side."""
    return middle + (block.yaw - middle + math.pi / 2) % math.pi - math.pi / 2


def half_width_x(block: Block, *, long_m: float = 0.04, short_m: float = 0.02) -> float:
    """Half extent along x of a block with these half edges; the default is the largest block."""
    return long_m * abs(math.cos(block.yaw)) + short_m * abs(math.sin(block.yaw))


def half_width_y(block: Block, *, long_m: float = 0.04, short_m: float = 0.02) -> float:
    """Half extent along y of a block with these half edges; the default is the largest block."""
    return long_m * abs(math.sin(block.yaw)) + short_m * abs(math.cos(block.yaw))


def stands_free(world: World, colour: str) -> bool:
    """Say whether a block stands on the table top, within reach, with nothing close to it."""
    block = world.blocks[colour]
    x, y, z = block.position
    others = [float(np.linalg.norm(b.position - block.position)) for c, b in world.blocks.items() if c != colour]
    inside = -0.28 < x < 0.36 and TABLE_EDGE_Y + 0.03 < y < -0.02 and abs(z - 0.46) < 0.01
    return inside and block.rests_on("base_link") and min(others) > 0.09


def can_lift(world: World, colour: str, place: str) -> bool:
    """Say whether a block stands on the "table", in the open part of the "slider", or in the open "drawer"."""
    block = world.blocks[colour]
    if place == "table":
        return stands_free(world, colour)
    if place == "drawer":
        return block.rests_on("drawer_link") and world.drawer > 0.12 and block.position[1] < TABLE_EDGE_Y - 0.02
    span = _open_span(world)
    return span is not None and block.rests_on("plank_link") and span[0] <= block.position[0] <= span[1]


def stacked(world: World) -> str | None:
    """Return the colour of a block that lies on another one and touches nothing else."""
    for colour, block in world.blocks.items():
        if {kind for kind, _ in block.touches} == {"block"}:
            return colour
    return None


def has_room(world: World, task: str) -> bool:
    """Say whether the held block has somewhere to go."""
    if task == "place_in_drawer":
        return world.drawer > 0.12
    if task == "place_in_slider":
        return _open_span(world) is not None
    held = world.held()
    return any(stands_free(world, colour) for colour in world.blocks if colour != held)


def can_push_into_drawer(world: World) -> bool:
    """Say whether the drawer is open and exactly one block stands on the table, in front of it."""
    return world.drawer > 0.15 and _block_before_drawer(world) is not None


def _block_before_drawer(world: World) -> str | None:
    def lies_before(block: Block) -> bool:
        inside = abs(block.position[0] - world.fixtures.drawer_x) < 0.15
        return inside and {("table", "base_link")} == set(block.touches) - {("robot", "")}

    return next((colour for colour, block in world.blocks.items() if lies_before(block)), None)


def _open_span(world: World) -> tuple[float, float] | None:
    """Stretch of the shelf, along x, that the door leaves open; None while the door stands in the middle."""
    fixtures = world.fixtures
    if world.slide < 0.05:
        return fixtures.open_compartments[0]
    return fixtures.open_compartments[1] if world.slide > fixtures.slide_range - 0.05 else None


def _shelf_x(hand: Hand) -> float:
    """A free place on the open part of the shelf: the one farthest from blocks that stand there already."""
    low, high = _open_span(hand.world) or hand.world.fixtures.open_compartments[0]
    held = hand.world.held()
    taken = [b.position[0] for c, b in hand.world.blocks.items() if c != held and b.position[1] > 0.03]
    middle = (low + high) / 2 + hand.rng.uniform(-0.015, 0.015)
    places = [middle, low + 0.02, high - 0.02]
    return max(places, key=lambda x: min([0.1, *(abs(x - other) for other in taken)]))


def _take_any(hand: Hand) -> Motion:
    """The block slipped out of the hand: take the nearest one that stands free."""
    yield from back_off(hand)
    free = [colour for colour in hand.world.blocks if stands_free(hand.world, colour)]
    if free:
        yield from lift_block(
            hand, min(free, key=lambda c: float(np.linalg.norm(hand.world.blocks[c].position - hand.world.tcp)))
        )


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
    """Height of the held block's centre over the tool centre point, 0 when nothing is held."""
    held = hand.world.held()
    return 0.0 if held is None else float(hand.world.blocks[held].position[2] - hand.world.tcp[2])


def _pitch(hand: Hand) -> float:
    return float(hand.world.target_euler[1])
