"""The 1000 evaluation chains and the states they start from, made anew from seeds (specification, section 12).

`make_sequences` gives the chains in the benchmark's order; `start_state` turns the symbolic state of a chain into the
numbers that `CalvinEnv.reset` takes. Both equal the published ones exactly: the seeds, the order of the random calls and a
hash of unusual make decide it, so they are spelt out here. Needs NumPy and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

TOTAL_SEQUENCES = 1000
CHAIN_LENGTH = 5
COLOURS = ("red", "blue", "pink")
COMPARTMENTS = ("slider_left", "slider_right")

State = Mapping[str, Any]

# The order of keys and of values is part of the benchmark: it decides the order of states, and their hash.
_STATE_VALUES: dict[str, tuple[Any, ...]] = {
    "led": (0, 1),
    "lightbulb": (0, 1),
    "slider": ("right", "left"),
    "drawer": ("closed", "open"),
    "red_block": ("table", "slider_right", "slider_left"),
    "blue_block": ("table", "slider_right", "slider_left"),
    "pink_block": ("table", "slider_right", "slider_left"),
    "grasped": (0,),
}

# Numbers of the start states; metres and radians, scene D.
_ROBOT_OBS = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,
    -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
_COMPARTMENT_POSITIONS = {
    "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
    "slider_right": (0.070341633, 0.0924044687, 0.460990009),
}
_TABLE_SPOTS = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
_SLIDE_LEFT_M, _DRAWER_OPEN_M, _LEVER_UP_M = 0.28, 0.22, 0.088
_YAW_RANGE = (3 * np.pi / 8, 5 * np.pi / 8)


@dataclass(frozen=True)
class SymbolicTask:
    """One task as a rule: `alternatives` are (condition, effect) pairs over a symbolic state."""

    name: str
    category: int
    alternatives: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = field(default=())

    def apply(self, state: State) -> dict[str, Any] | None:
        """The state after the task, or None unless exactly one alternative is possible."""
        effects = [effect for condition, effect in self.alternatives if condition.items() <= state.items()]
        return {**state, **effects[0]} if len(effects) == 1 else None


def make_sequences(count: int = TOTAL_SEQUENCES) -> list[EvalSequence]:
    """The first `count` of the benchmark's 1000 chains, numbered from 0."""
    if not 1 <= count <= TOTAL_SEQUENCES:
        raise InputError(f"the benchmark has {TOTAL_SEQUENCES} sequences; asked for {count}, choose 1 to {TOTAL_SEQUENCES}")
    return [
        EvalSequence(number=number, initial_state=dict(state), subtasks=subtasks)
        for number, (state, subtasks) in enumerate(_all_chains()[:count])
    ]


def start_state(initial_state: State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`robot_obs` [15] and `scene_obs` [24] (scene D) of a chain's symbolic state; the same for the same state."""
    _check_state(initial_state)
    rng = np.random.RandomState(fnv_of(_text_of(initial_state)))
    spots = [np.array(spot) for spot in _TABLE_SPOTS]
    rng.shuffle(spots)  # type: ignore[arg-type]  # a list of arrays, as in the reference: other calls differ
    scene_obs = np.zeros(24)
    scene_obs[0] = _SLIDE_LEFT_M if initial_state["slider"] == "left" else 0
    scene_obs[1] = _DRAWER_OPEN_M if initial_state["drawer"] == "open" else 0
    scene_obs[3] = _LEVER_UP_M if initial_state["lightbulb"] else 0
    scene_obs[4], scene_obs[5] = initial_state["lightbulb"], initial_state["led"]
    for number, colour in enumerate(COLOURS):
        place = initial_state[f"{colour}_block"]
        block = scene_obs[6 + 6 * number : 12 + 6 * number]
        block[:3] = spots[_spot(initial_state, colour)] if place == "table" else _COMPARTMENT_POSITIONS[place]
        block[5] = rng.uniform(*_YAW_RANGE)  # drawn for every block, in this order
    return np.array(_ROBOT_OBS), scene_obs


def all_initial_states() -> list[dict[str, Any]]:
    """The 192 symbolic start states: one or two blocks on the table, at most one in each compartment."""
    states = [dict(zip(_STATE_VALUES, values, strict=True)) for values in product(*_STATE_VALUES.values())]
    return [state for state in states if _is_possible(state)]


def fnv_of(text: str) -> int:
    """The 32-bit hash behind the start states.

    Not textbook FNV-1: the reference's library starts from 0 instead of 0x811c9dc5, and reads the text as UTF-16, little
    endian, without byte order mark. Any other hash silently moves the blocks of nearly all start states.
    """
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


@lru_cache(maxsize=1)
def _all_chains() -> tuple[tuple[dict[str, Any], tuple[str, ...]], ...]:
    states = all_initial_states()
    shares = [len(share) for share in np.array_split(range(TOTAL_SEQUENCES), len(states))]
    chains: list[tuple[dict[str, Any], tuple[str, ...]]] = []
    for seed, (state, share) in enumerate(zip(states, shares, strict=True)):
        chains += [(state, subtasks) for subtasks in _chains_from(state, share, seed=seed)]
    np.random.RandomState(0).shuffle(chains)  # type: ignore[arg-type]
    return tuple(chains)


def _chains_from(state: State, count: int, *, seed: int) -> list[tuple[str, ...]]:
    """Draw five different tasks until `count` draws can be done in turn and are of five categories."""
    rng = np.random.RandomState(seed)
    names = list(TASKS)
    accepted: list[tuple[str, ...]] = []
    while len(accepted) < count:
        chain = tuple(str(name) for name in rng.choice(names, size=CHAIN_LENGTH, replace=False))
        if len({TASKS[name].category for name in chain}) == CHAIN_LENGTH and _is_feasible(state, chain):
            accepted.append(chain)
    return accepted


def _is_feasible(state: State, chain: tuple[str, ...]) -> bool:
    current: State | None = state
    for name in chain:
        current = TASKS[name].apply(current)
        if current is None:
            return False
    return True


def _is_possible(state: State) -> bool:
    places = [state[f"{colour}_block"] for colour in COLOURS]
    return places.count("table") in (1, 2) and all(places.count(compartment) < 2 for compartment in COMPARTMENTS)


def _spot(state: State, colour: str) -> int:
    """Which of the two (shuffled) table spots a block on the table takes."""
    if colour == "red":
        return 0
    if colour == "blue":
        return 1 if state["red_block"] == "table" else 0
    return 1


def _text_of(state: State) -> str:
    return str({key: state[key] for key in _STATE_VALUES}.values())


def _check_state(state: State) -> None:
    for key, values in _STATE_VALUES.items():
        if key not in state or state[key] not in values:
            raise InputError(f"start state: {key} must be one of {values}, found {state.get(key)!r}")
    if not _is_possible(state):
        raise InputError(f"start state: one or two blocks on the table and one in a compartment, found {dict(state)}")


def _build_tasks() -> dict[str, SymbolicTask]:
    free = {"grasped": 0}
    tasks: list[SymbolicTask] = []

    def add(name: str, category: int, *alternatives: tuple[dict[str, Any], dict[str, Any]]) -> None:
        tasks.append(SymbolicTask(name, category, alternatives))

    for verb in ("rotate", "push"):
        for colour in COLOURS:
            for side in ("right", "left"):
                add(f"{verb}_{colour}_block_{side}", 1, ({f"{colour}_block": "table", **free}, {}))
    add("move_slider_left", 2, ({"slider": "right", **free}, {"slider": "left"}))
    add("move_slider_right", 2, ({"slider": "left", **free}, {"slider": "right"}))
    add("open_drawer", 3, ({"drawer": "closed", **free}, {"drawer": "open"}))
    add("close_drawer", 3, ({"drawer": "open", **free}, {"drawer": "closed"}))
    for colour in COLOURS:
        block = f"{colour}_block"
        held = {block: "grasped", "grasped": 1}
        add(f"lift_{block}_table", 4, ({block: "table", **free}, held))
        add(
            f"lift_{block}_slider",
            5,
            ({block: "slider_left", "slider": "right", **free}, held),
            ({block: "slider_right", "slider": "left", **free}, held),
        )
        add(f"lift_{block}_drawer", 6, ({block: "drawer", "drawer": "open", **free}, held))
    _add_placing(add)
    add("turn_on_lightbulb", 8, ({"lightbulb": 0, **free}, {"lightbulb": 1}))
    add("turn_off_lightbulb", 8, ({"lightbulb": 1, **free}, {"lightbulb": 0}))
    add("turn_on_led", 8, ({"led": 0, **free}, {"led": 1}))
    add("turn_off_led", 8, ({"led": 1, **free}, {"led": 0}))
    into_drawer = []
    for colour in COLOURS:
        others = [f"{other}_block" for other in COLOURS if other != colour]
        for places in product(COMPARTMENTS, repeat=2):
            condition = {f"{colour}_block": "table", **dict(zip(others, places, strict=True)), "drawer": "open", **free}
            into_drawer.append((condition, {f"{colour}_block": "drawer"}))
    add("push_into_drawer", 9, *into_drawer)
    return {task.name: task for task in tasks}


def _add_placing(add: Any) -> None:
    """The tasks that need or make a pile, or end with an empty gripper."""
    held = {colour: {f"{colour}_block": "grasped", "grasped": 1} for colour in COLOURS}
    in_slider, in_drawer, stacked, unstacked = [], [], [], []
    for colour in COLOURS:
        block = f"{colour}_block"
        # Named after the door's side, which is the compartment that the door covers: the benchmark has it so.
        for side in ("right", "left"):
            in_slider.append(({**held[colour], "slider": side}, {block: f"slider_{side}", "grasped": 0}))
        in_drawer.append(({**held[colour], "drawer": "open"}, {block: "drawer", "grasped": 0}))
        for other in (f"{name}_block" for name in COLOURS if name != colour):
            pile = {block: "stacked_top", other: "stacked_bottom"}
            stacked.append(({**held[colour], other: "table"}, {**pile, "grasped": 0}))
            unstacked.append(({**pile, "grasped": 0}, {block: "table", other: "table"}))
    add("place_in_slider", 7, *in_slider)
    add("place_in_drawer", 7, *in_drawer)
    add("stack_block", 10, *stacked)
    add("unstack_block", 11, *unstacked)


TASKS: dict[str, SymbolicTask] = _build_tasks()
