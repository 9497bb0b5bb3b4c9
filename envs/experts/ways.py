"""Ways to do a task: the routes that lead to its goal from a state, and how fast the arm moves along them.

People do one thing in many ways. The expert by itself has nearly one (`vw2-record ways=single`); with `ways=several`
every demonstration gets a route and a speed at random, and the recording states them. What a route means:

- push a block left or right: bring the closed fingers, low, around the block "in front" of it or "behind" it.
- push into the drawer: around the block on its "left" or "right"; of two blocks before the drawer that one.
- lift: rotate the wrist to the "wrist left" or "wrist right" of the two grasps that differ by half a rotation, where
  neither is near; otherwise "low" or "high" over the table, and from the "left" or "right" along the shelf.
- rotate a block: "low", on the table, or "high", in the air.
- stack: on the "left" or the "right" of two blocks. Unstack: push the upper block to the "left" or "right".
- place on the shelf or in the drawer: at the "left" or "right" free place.
- drawer: at the "left" or "right" end of its bar. Door: to its knob from "in front" or from "above".
- lever and button: come from the "left" or "right".

Where a state leaves one route only, it is called "only", and the expert does what it does with `ways=single`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .block_skills import is_over
from .block_states import (
    HALF_HEIGHT_M,
    REACH_X,
    blocks_before_drawer,
    clearance,
    free_shelf_places,
    grasp_yaws,
    is_low_near,
    stack_places,
    stacked,
)
from .motion import BLOCK_COLORS, WorldState, vector

Ways = Literal["single", "several"]
SIDES = ("left", "right")
SPEEDS: Mapping[str, tuple[float, float]] = {"slow": (0.5, 0.65), "fast": (0.85, 1.0)}
"""Name of a speed -> range of the share of full speed."""
BEHIND_Y = -0.02
BEFORE_KNOB_Y = -0.035
"""Farthest the closed fingers go behind a block, before the door and before its knob."""
KNOB_HALF_WIDTH_M = 0.07
"""Of the door's knob together with the fingers, along x."""
KNOB_REACH_M = 0.15
"""A block that near to the knob, along x, is passed before the knob."""
FORKS: Mapping[str, tuple[str, str]] = {
    **{f"push_{color}_block_{side}": ("in front", "behind") for color in BLOCK_COLORS for side in SIDES},
    **{f"lift_{color}_block_table": ("wrist left", "wrist right") for color in BLOCK_COLORS},
    "push_into_drawer": SIDES,
    "stack_block": SIDES,
    "unstack_block": SIDES,
}
"""Tasks with two routes whose mean is bad: it leads through the block, to a place between two blocks, or to a wrist
that closes the fingers on a block's long side. Where routes differ in anything else, their mean is one more good route.
A policy that learns the mean of its demonstrations is seen to fail here, and hardly elsewhere (`protocol=fork`)."""


@dataclass(frozen=True)
class Way:
    """How one demonstration does its task: a route of `routes`, and a key of `SPEEDS`."""

    route: str
    speed: str

    def __str__(self) -> str:
        """Return the name that a recording states."""
        return f"{self.route}, {self.speed}"


def choose_way(task: str, world: WorldState, rng: np.random.Generator) -> Way:
    """Return a random way to do a task.

    Args:
        task: name of the task.
        world: the state from which it is done.
        rng: generator of the choice.
    """
    possible = routes(task, world)
    return Way(possible[int(rng.integers(len(possible)))], str(rng.choice(list(SPEEDS))))


def routes(task: str, world: WorldState) -> tuple[str, ...]:
    """Return the routes that a state leaves open for a task."""
    verb, color, *rest = task.split("_")
    if task.startswith("move_slider"):
        return "in front", "above"
    if verb == "rotate":
        return "low", "high"
    if verb == "push" and color in BLOCK_COLORS:
        return FORKS[task] if _has_room_behind(world, color) else ("in front",)
    if verb == "lift" and rest[-1] == "slider":
        return SIDES
    if verb == "lift":
        if len(set(grasp_yaws(world, color).values())) == 2:
            return "wrist left", "wrist right"
        return ("only",) if rest[-1] == "drawer" or is_over(world, color) else ("low", "high")
    return SIDES if _has_two_sides(task, world) else ("only",)


def _has_room_behind(world: WorldState, color: str) -> bool:
    """Return whether the closed fingers can pass behind a block: in front of the door and of its knob."""
    x, y, _ = world.blocks[color].position
    behind = y + clearance(world.blocks[color], vector(0.0, 1.0, 0.0))
    to_knob = abs(world.fixtures.slide_handle_x - world.slide - x)
    if to_knob < KNOB_HALF_WIDTH_M and not is_low_near(world, color):
        return False  # the fingers would come down on it
    return behind < (BEHIND_Y if to_knob > KNOB_REACH_M else BEFORE_KNOB_Y)


def _has_two_sides(task: str, world: WorldState) -> bool:
    """Return whether a state leaves open both sides of a task that has a left and a right one."""
    if task == "stack_block":
        return len(stack_places(world)) > 1
    if task == "place_in_slider":
        places = free_shelf_places(world)
        return len(places) > 1 and places[-1] - places[0] > HALF_HEIGHT_M
    if task == "unstack_block":
        color = stacked(world)
        return color is not None and REACH_X[0] + 0.16 < world.blocks[color].position[0] < REACH_X[1] - 0.16
    if task == "push_into_drawer":
        return bool(blocks_before_drawer(world))
    return True
