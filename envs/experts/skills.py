"""Skills with drawer, door, lever and button, one small generator each: waypoints of somebody who knows the furniture.

A skill yields one CALVIN relative action per control step and looks at `hand.world`, which is renewed between actions.
It ends when its plan ends, solved or not; `demonstrator.py` starts it again from wherever things then stand, which is
how recovery from a slip comes about. Lengths are meters in the world frame. The numbers follow the furniture: the bar
of the drawer hangs 0.24..0.26 m in front of the table's center line with a 0.05 m gap behind it, the knob of the door
stands out 0.03 m, the lever runs up and back along (0, 0.5, 0.866).

Traps, all met in practice: the button must be let go before it toggles again; the lever must be backed away from, or it
is dragged along; a hand that is still hooked somewhere from the task before must first back out the way it came in.
"""

from __future__ import annotations

import functools

import numpy as np

from .motion import CLOSE, OPEN, Hand, Motion, vector

TRAVEL_Z = 0.55
HOOK_Z = 0.352
BAR_Y = -0.25
KNOB_Y, KNOB_Z = -0.016, 0.535
LEVER_DIRECTION = np.array([0.0, 0.5, 0.866])
NEUTRAL_YAW = 1.5
LEVER_PITCH = -0.7
"""The raised lever is at the edge of reach; a hand that leans forward gets there."""


def back_off(hand: Hand) -> Motion:
    """Leave whatever the hand touches: up out of the drawer, forward away from door and lever, then to travel height.

    A block between the fingers is let go first, and left below before the hand moves sideways.
    """
    if hand.world.target_grip < 0 and hand.world.near_hand(0.045):
        yield from hand.squeeze(OPEN, steps=5)
    x, y, z = hand.world.tcp
    pitch = float(hand.world.target_euler[1])
    close = hand.world.near_hand(0.075)
    if close:
        clear = max(float(block.position[2]) for block in close) + 0.095
        yield from hand.go((x, y, max(clear, z)), pitch=pitch, tolerance=0.015, limit=20)
        x, y, z = hand.world.tcp
    if y < -0.17:
        if z < TRAVEL_Z - 0.03:
            yield from hand.go((x, y, TRAVEL_Z), tolerance=0.03)
        return
    if y > -0.07:
        yield from hand.go((x, y - 0.04, max(z, 0.49)), pitch=pitch, tolerance=0.02, limit=15)
        yield from hand.go((x, -0.11, max(z, TRAVEL_Z)), tolerance=0.03)
    elif z < TRAVEL_Z - 0.04:
        yield from hand.go((x, y, TRAVEL_Z), tolerance=0.03)


def open_drawer(hand: Hand) -> Motion:
    """Hook the closed fingers behind the bar and pull."""
    yield from back_off(hand)
    hand.grip = CLOSE
    x = hand.world.fixtures.drawer_x + hand.rng.uniform(-0.05, 0.05)
    hook_y = BAR_Y + 0.037 - hand.world.drawer
    yield from hand.go(hand.near((x, hook_y, 0.46)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go((x, hook_y, 0.43), yaw=NEUTRAL_YAW)
    yield from hand.go((x, hook_y, HOOK_Z), yaw=NEUTRAL_YAW)
    yield from hand.go((x, BAR_Y - 0.20, HOOK_Z), yaw=NEUTRAL_YAW)
    yield from back_off(hand)


def close_drawer(hand: Hand) -> Motion:
    """Come down in front of the bar and push it home."""
    yield from back_off(hand)
    hand.grip = CLOSE
    x = hand.world.fixtures.drawer_x + hand.rng.uniform(-0.06, 0.06)
    front_y = BAR_Y - hand.world.drawer - 0.06
    yield from hand.go(hand.near((x, front_y, 0.48)), yaw=NEUTRAL_YAW, tolerance=0.03)
    yield from hand.go((x, front_y, HOOK_Z + 0.005), yaw=NEUTRAL_YAW)
    yield from hand.go((x, BAR_Y - 0.02, HOOK_Z + 0.005), yaw=NEUTRAL_YAW)
    yield from back_off(hand)


def move_slider(hand: Hand, *, left: bool) -> Motion:
    """Put the closed fingers beside the knob and push; left is toward -x, the joint's positive direction."""
    yield from back_off(hand)
    hand.grip = CLOSE
    fixtures = hand.world.fixtures
    side = 1.0 if left else -1.0
    knob = fixtures.slide_handle_x - hand.world.slide
    end = fixtures.slide_handle_x - (fixtures.slide_range if left else 0.0)
    z = KNOB_Z + hand.rng.uniform(-0.008, 0.008)
    yield from hand.go(hand.near((knob + side * 0.065, -0.12, z + 0.01)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from hand.go((knob + side * 0.065, KNOB_Y, z), yaw=NEUTRAL_YAW)
    yield from hand.go((end + side * 0.02, KNOB_Y, z), yaw=NEUTRAL_YAW)
    yield from back_off(hand)


def move_lever(hand: Hand, *, up: bool) -> Motion:
    """Push the lever along its rail, from below and in front to switch on, from above to switch off."""
    yield from back_off(hand)
    hand.grip = CLOSE
    bar = np.array([hand.world.fixtures.switch_x, 0.02, 0.527]) + LEVER_DIRECTION * hand.world.switch
    bar[0] += hand.rng.uniform(-0.02, 0.01)
    travel = LEVER_DIRECTION * (0.088 - hand.world.switch if up else -hand.world.switch)
    if up:
        below = bar + vector(0.0, -0.055, -0.03)
        yield from hand.go(hand.near(below + vector(0.0, -0.05, 0.03)), yaw=NEUTRAL_YAW, tolerance=0.025)
        yield from hand.go(below, yaw=NEUTRAL_YAW)
        yield from hand.go(bar + vector(0.0, -0.01, -0.025), yaw=NEUTRAL_YAW, limit=12)
        yield from hand.go(bar + travel + vector(0.0, 0.02, 0.02), yaw=NEUTRAL_YAW, limit=30)
    else:
        above = bar + vector(0.0, 0.0, 0.05)
        lean = functools.partial(hand.go, yaw=NEUTRAL_YAW, pitch=LEVER_PITCH)
        yield from lean(hand.near(above + vector(0.0, -0.08, 0.02)), tolerance=0.025)
        yield from lean(above, limit=30)
        yield from lean(bar + travel + vector(0.0, 0.01, 0.015), limit=30)
    yield from back_off(hand)


def press_button(hand: Hand) -> Motion:
    """Press once and let go; the release matters, because only a new press toggles."""
    yield from back_off(hand)
    hand.grip = CLOSE
    x, y = hand.world.fixtures.button
    x, y = x + hand.rng.uniform(-0.012, 0.012), y + hand.rng.uniform(-0.012, 0.012)
    yield from hand.go(hand.near((x, y, 0.53)), yaw=NEUTRAL_YAW, tolerance=0.025)
    for action in hand.go((x, y, 0.462), yaw=NEUTRAL_YAW, limit=25, speed=0.8):
        yield action
        if hand.world.button > 0.014:
            break
    yield from hand.go((x, y, 0.55), tolerance=0.03)
