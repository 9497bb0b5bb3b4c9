"""The 1000 evaluation chains and the states they start from (specification, section 12).

`make_sequences` gives the chains in the benchmark's order; `start_state` turns the symbolic state of a chain into the
numbers that `CalvinEnv.reset` takes. Both equal the published ones exactly: the seeds, the order of the random calls
and a hash of unusual make decide it, so they are spelled out here. Needs no PyBullet. The benchmark is about scene D;
for A to C the same states are put on that scene's furniture, which is ours and published nowhere.

Drawing the chains means rejecting nine million candidates, a minute's work. So their task ids are kept in
`eval_chains.json`, one line for each start state, and `python -m vw2_robot.envs.sequences` draws them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.contracts import EvalSequence
from vw2_robot.errors import InputError

from .scene import DRAWER_OPEN_M, SCENE_OBS_SIZE, SCENES

CHAINS_FILE = Path(__file__).parent / "eval_chains.json"
TOTAL_SEQUENCES = 1000
CHAIN_LENGTH = 5
COLORS = ("red", "blue", "pink")
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

# Numbers of the start states; meters and radians.
_ROBOT_OBS = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,
    -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
_LEVER_UP_M = 0.088
_YAW_RANGE = (3 * np.pi / 8, 5 * np.pi / 8)

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class StartPlaces:
    """Where the blocks of a start state stand in one scene: center, meters."""

    compartments: dict[str, Vector]
    table: tuple[Vector, Vector]


_PLACES_D = StartPlaces(
    compartments={
        "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
        "slider_right": (0.070341633, 0.0924044687, 0.460990009),
    },
    table=((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001)),
)
# Not of the benchmark: A has D's shelf; B and C have theirs further right, B its button where D has the second spot.
_COMPARTMENTS_BC: dict[str, Vector] = {"slider_left": (-0.03, 0.092, 0.461), "slider_right": (0.225, 0.092, 0.461)}
_PLACES = {
    "A": _PLACES_D,
    "B": StartPlaces(_COMPARTMENTS_BC, table=((-0.2, -0.12, 0.46), (0.02, -0.12, 0.46))),
    "C": StartPlaces(_COMPARTMENTS_BC, table=_PLACES_D.table),
    "D": _PLACES_D,
}


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
        raise InputError(
            f"asked for {count} sequences; the benchmark has {TOTAL_SEQUENCES}, choose 1 to {TOTAL_SEQUENCES}"
        )
    return [
        EvalSequence(number=number, initial_state=dict(state), subtasks=subtasks)
        for number, (state, subtasks) in enumerate(_all_chains()[:count])
    ]


def start_state(initial_state: State, scene: str = "D") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`robot_obs` [15] and `scene_obs` [24] of a chain's symbolic state; the same for the same state and scene."""
    _check_state(initial_state)
    if scene not in _PLACES:
        raise InputError(f"unknown scene {scene!r}; known: {', '.join(_PLACES)}")
    places, furniture = _PLACES[scene], SCENES[scene]
    rng = np.random.RandomState(fnv_of(_text_of(initial_state)))
    spots = [np.array(spot) for spot in places.table]
    rng.shuffle(spots)  # a list of arrays, as in the reference: shuffling one array draws differently
    scene_obs = np.zeros(SCENE_OBS_SIZE)
    scene_obs[0] = furniture.slide_range if initial_state["slider"] == "left" else 0
    scene_obs[1] = DRAWER_OPEN_M if initial_state["drawer"] == "open" else 0
    scene_obs[3] = _LEVER_UP_M if initial_state["lightbulb"] else 0
    scene_obs[4], scene_obs[5] = initial_state["lightbulb"], initial_state["led"]
    for color in COLORS:
        place = initial_state[f"{color}_block"]
        first = 6 + 6 * furniture.block_order.index(f"block_{color}")
        block = scene_obs[first : first + 6]
        block[:3] = spots[_spot(initial_state, color)] if place == "table" else places.compartments[place]
        block[5] = rng.uniform(*_YAW_RANGE)  # drawn for every block, in this order
    return np.array(_ROBOT_OBS), scene_obs


def all_initial_states() -> list[dict[str, Any]]:
    """The 192 symbolic start states: one or two blocks on the table, at most one in each compartment."""
    states = [dict(zip(_STATE_VALUES, values, strict=True)) for values in product(*_STATE_VALUES.values())]
    return [state for state in states if _is_possible(state)]


def fnv_of(text: str) -> int:
    """The 32-bit hash behind the start states.

    Not textbook FNV-1: the library of the reference starts from 0 instead of 0x811c9dc5, and reads UTF-16, little
    endian, without byte order mark. Any other hash silently moves the blocks of nearly all start states.
    """
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


@lru_cache(maxsize=1)
def _all_chains() -> tuple[tuple[dict[str, Any], tuple[str, ...]], ...]:
    names = list(TASKS)
    drawn: list[list[list[int]]] = json.loads(CHAINS_FILE.read_text())
    chains = [
        (state, tuple(names[task] for task in chain))
        for state, chains_of_state in zip(all_initial_states(), drawn, strict=True)
        for chain in chains_of_state
    ]
    np.random.RandomState(0).shuffle(chains)  # type: ignore[arg-type]
    return tuple(chains)


def chains_per_state() -> list[int]:
    """How many of the 1000 chains start from each of the 192 states: 6 from the first 40, 5 from the others."""
    return [len(share) for share in np.array_split(range(TOTAL_SEQUENCES), len(all_initial_states()))]


def sample_chains(number: int) -> list[list[int]]:
    """The chains of start state `number` (0 to 191) as task ids, drawn anew; a tenth of a second or a few.

    Five different tasks are drawn until enough draws can be done in turn and are of five categories.
    """
    state, count = all_initial_states()[number], chains_per_state()[number]
    rng = np.random.RandomState(number)
    tasks = list(TASKS.values())
    accepted: list[list[int]] = []
    while len(accepted) < count:
        # What `choice(names, size=5, replace=False)` does inside, without building an array of names each time.
        chain: list[int] = rng.permutation(len(tasks))[:CHAIN_LENGTH].tolist()
        if len({tasks[task].category for task in chain}) < CHAIN_LENGTH:
            continue
        if _is_feasible(state, [tasks[task] for task in chain]):
            accepted.append(chain)
    return accepted


def _is_feasible(state: State, chain: list[SymbolicTask]) -> bool:
    for task in chain:
        after = task.apply(state)
        if after is None:
            return False
        state = after
    return True


def _is_possible(state: State) -> bool:
    places = [state[f"{color}_block"] for color in COLORS]
    return places.count("table") in (1, 2) and all(places.count(compartment) < 2 for compartment in COMPARTMENTS)


def _spot(state: State, color: str) -> int:
    """Which of the two (shuffled) table spots a block on the table takes."""
    if color == "red":
        return 0
    if color == "blue":
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
        for color in COLORS:
            for side in ("right", "left"):
                add(f"{verb}_{color}_block_{side}", 1, ({f"{color}_block": "table", **free}, {}))
    add("move_slider_left", 2, ({"slider": "right", **free}, {"slider": "left"}))
    add("move_slider_right", 2, ({"slider": "left", **free}, {"slider": "right"}))
    add("open_drawer", 3, ({"drawer": "closed", **free}, {"drawer": "open"}))
    add("close_drawer", 3, ({"drawer": "open", **free}, {"drawer": "closed"}))
    for color in COLORS:
        block = f"{color}_block"
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
    for color in COLORS:
        others = [f"{other}_block" for other in COLORS if other != color]
        for places in product(COMPARTMENTS, repeat=2):
            condition = {f"{color}_block": "table", **dict(zip(others, places, strict=True)), "drawer": "open", **free}
            into_drawer.append((condition, {f"{color}_block": "drawer"}))
    add("push_into_drawer", 9, *into_drawer)
    return {task.name: task for task in tasks}


def _add_placing(add: Any) -> None:
    """The tasks that need or make a pile, or end with an empty gripper."""
    held = {color: {f"{color}_block": "grasped", "grasped": 1} for color in COLORS}
    in_slider, in_drawer, stacked, unstacked = [], [], [], []
    for color in COLORS:
        block = f"{color}_block"
        # Named after the door's side, which is the compartment that the door covers: the benchmark has it so.
        for side in ("right", "left"):
            in_slider.append(({**held[color], "slider": side}, {block: f"slider_{side}", "grasped": 0}))
        in_drawer.append(({**held[color], "drawer": "open"}, {block: "drawer", "grasped": 0}))
        for other in (f"{name}_block" for name in COLORS if name != color):
            pile = {block: "stacked_top", other: "stacked_bottom"}
            stacked.append(({**held[color], other: "table"}, {**pile, "grasped": 0}))
            unstacked.append(({**pile, "grasped": 0}, {block: "table", other: "table"}))
    add("place_in_slider", 7, *in_slider)
    add("place_in_drawer", 7, *in_drawer)
    add("stack_block", 10, *stacked)
    add("unstack_block", 11, *unstacked)


TASKS: dict[str, SymbolicTask] = _build_tasks()


def write_chains(path: Path = CHAINS_FILE) -> None:
    """Draw all chains anew and write them to `path`, one line for each start state; about a minute."""
    lines = [json.dumps(sample_chains(number), separators=(",", ":")) for number in range(len(chains_per_state()))]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    temporary.replace(path)


if __name__ == "__main__":
    write_chains()
