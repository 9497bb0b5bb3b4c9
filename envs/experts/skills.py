"""Skills with drawer, door, lever and button: one small generator of waypoints each.

A skill yields one CALVIN relative action per control step and reads `ee.world`, which is renewed between actions. It
ends with its plan, whether the task is solved or not; `demonstrator.py` then starts it again from the present state,
which is how the expert recovers from a slip. Lengths are meters in the world frame. The numbers follow the furniture:
the bar of the drawer hangs 0.24 to 0.26 m in front of the table's center line with a 0.05 m gap behind it, the knob of
the door stands out 0.03 m, the lever moves up and back along (0, 0.5, 0.866).

Three details decide success: the button must be released before it toggles again; the gripper must retreat from the
lever, or it drags the lever along; a gripper that is still hooked into something must first leave the way it came in.
"""

from __future__ import annotations

import functools

import numpy as np

from .motion import CLOSE, OPEN, EndEffector, Motion, vector

TRAVEL_Z = 0.55
"""Height at which the tool travels: above blocks, handles and lever."""
HOOK_Z = 0.352
"""Height of the closed fingers behind the drawer's bar."""
BAR_Y = -0.25
"""The drawer's bar while the drawer is closed."""
KNOB_Y = -0.016
KNOB_Z = 0.535
LEVER_DIRECTION = np.array([0.0, 0.5, 0.866])
NEUTRAL_YAW = 1.5
ASIDE_M = 0.06
"""How far to the side a route from the left or right begins."""
LEVER_PITCH = -0.7
"""The raised lever is at the edge of the arm's reach; a gripper that leans forward gets there."""


def back_off(ee: EndEffector) -> Motion:
    """Retreat from whatever the gripper touches: up out of the drawer, away from door and lever, then to travel height.

    A block between the fingers is released first, and the gripper rises above all near blocks before it moves sideways.
    """
    if ee.world.target_grip < 0 and ee.world.blocks_near_tool(0.045):
        yield from ee.set_gripper(OPEN, env_steps=5)
    x, y, z = ee.world.tcp
    pitch = ee.pitch
    close = ee.world.blocks_near_tool(0.075)
    if close:
        clear = max(float(block.position[2]) for block in close) + 0.095
        yield from ee.move_to((x, y, max(clear, z)), pitch=pitch, tolerance=0.015, limit=20)
        x, y, z = ee.world.tcp
    if y < -0.17:  # in front of the table, perhaps in the drawer: straight up
        if z < TRAVEL_Z - 0.03:
            yield from ee.move_to((x, y, TRAVEL_Z), tolerance=0.03)
        return
    if y > -0.07:  # near door or lever: away from them before up
        yield from ee.move_to((x, y - 0.04, max(z, 0.49)), pitch=pitch, tolerance=0.02, limit=15)
        yield from ee.move_to((x, -0.11, max(z, TRAVEL_Z)), tolerance=0.03)
    elif z < TRAVEL_Z - 0.04:
        yield from ee.move_to((x, y, TRAVEL_Z), tolerance=0.03)


def open_drawer(ee: EndEffector) -> Motion:
    """Hook the closed fingers behind the bar and pull."""
    yield from back_off(ee)
    ee.gripper = CLOSE
    x = ee.world.fixtures.drawer_x + ee.along(0.05)
    hook_y = BAR_Y + 0.037 - ee.world.drawer  # in the gap behind the bar
    yield from ee.move_to(ee.near((x, hook_y, 0.46)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from ee.move_to((x, hook_y, 0.43), yaw=NEUTRAL_YAW)
    yield from ee.move_to((x, hook_y, HOOK_Z), yaw=NEUTRAL_YAW)
    yield from ee.move_to((x, BAR_Y - 0.20, HOOK_Z), yaw=NEUTRAL_YAW)
    yield from back_off(ee)


def close_drawer(ee: EndEffector) -> Motion:
    """Descend in front of the bar and push it in."""
    yield from back_off(ee)
    ee.gripper = CLOSE
    x = ee.world.fixtures.drawer_x + ee.along(0.06)
    front_y = BAR_Y - ee.world.drawer - 0.06
    yield from ee.move_to(ee.near((x, front_y, 0.48)), yaw=NEUTRAL_YAW, tolerance=0.03)
    yield from ee.move_to((x, front_y, HOOK_Z + 0.005), yaw=NEUTRAL_YAW)
    yield from ee.move_to((x, BAR_Y - 0.02, HOOK_Z + 0.005), yaw=NEUTRAL_YAW)
    yield from back_off(ee)


def move_slider(ee: EndEffector, *, left: bool) -> Motion:
    """Place the closed fingers beside the knob and push; left is toward -x, the joint's positive direction."""
    yield from back_off(ee)
    ee.gripper = CLOSE
    fixtures = ee.world.fixtures
    side = 1.0 if left else -1.0
    knob = fixtures.slide_handle_x - ee.world.slide
    end = fixtures.slide_handle_x - (fixtures.slide_range if left else 0.0)
    z = KNOB_Z + ee.rng.uniform(-0.008, 0.008)
    y, height = (KNOB_Y, z + 0.1) if ee.route == "above" else (-0.12, z + 0.01)
    yield from ee.move_to(ee.near((knob + side * 0.065, y, height)), yaw=NEUTRAL_YAW, tolerance=0.025)
    yield from ee.move_to((knob + side * 0.065, KNOB_Y, z), yaw=NEUTRAL_YAW)
    yield from ee.move_to((end + side * 0.02, KNOB_Y, z), yaw=NEUTRAL_YAW)
    yield from back_off(ee)


def move_lever(ee: EndEffector, *, up: bool) -> Motion:
    """Push the lever along its rail, from below and in front to switch on, from above to switch off."""
    yield from back_off(ee)
    ee.gripper = CLOSE
    bar = np.array([ee.world.fixtures.switch_x, 0.02, 0.527]) + LEVER_DIRECTION * ee.world.switch
    bar[0] += ee.rng.uniform(-0.02, 0.01)
    travel = LEVER_DIRECTION * (0.088 - ee.world.switch if up else -ee.world.switch)
    if up:
        # From below and in front, under the bar, then up and back along the rail and a little beyond its end.
        below = bar + vector(0.0, -0.055, -0.03)
        begin = below + vector(ASIDE_M * ee.side, -0.05, 0.03)
        yield from ee.move_to(ee.near(begin), yaw=NEUTRAL_YAW, tolerance=0.025)
        yield from ee.move_to(below, yaw=NEUTRAL_YAW)
        yield from ee.move_to(bar + vector(0.0, -0.01, -0.025), yaw=NEUTRAL_YAW, limit=12)
        yield from ee.move_to(bar + travel + vector(0.0, 0.02, 0.02), yaw=NEUTRAL_YAW, limit=30)
    else:
        above = bar + vector(0.0, 0.0, 0.05)
        move_leaning = functools.partial(ee.move_to, yaw=NEUTRAL_YAW, pitch=LEVER_PITCH)
        yield from move_leaning(ee.near(above + vector(ASIDE_M * ee.side, -0.08, 0.02)), tolerance=0.025)
        yield from move_leaning(above, limit=30)
        yield from move_leaning(bar + travel + vector(0.0, 0.01, 0.015), limit=30)
    yield from back_off(ee)


def press_button(ee: EndEffector) -> Motion:
    """Press once and release; only a new press toggles the light again."""
    yield from back_off(ee)
    ee.gripper = CLOSE
    x, y = ee.world.fixtures.button
    x += ee.rng.uniform(-0.012, 0.012)
    y += ee.rng.uniform(-0.012, 0.012)
    yield from ee.move_to(ee.near((x + ASIDE_M * ee.side, y, 0.53)), yaw=NEUTRAL_YAW, tolerance=0.025)
    for action in ee.move_to((x, y, 0.462), yaw=NEUTRAL_YAW, limit=25, speed=0.8):
        yield action
        if ee.world.button > 0.014:  # the light toggles at 0.01
            break
    yield from ee.move_to((x, y, 0.55), tolerance=0.03)
