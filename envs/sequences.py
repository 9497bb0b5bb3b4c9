"""The 1000 evaluation chains and the states they start from.

`make_sequences` returns the chains in the benchmark's order, or 1000 others of the same protocol from another seed;
`start_state` converts the symbolic state of a chain into the numbers that `CalvinEnv.reset` takes. Chains of seed 0 and
start states equal the published ones exactly. That depends on the seeds, the order of
the random calls and an unusual hash, so all of them are written out here. Needs no PyBullet. The benchmark is defined
for scene D; for A to C the same symbolic states are applied to that scene's furniture, which is our own definition.

Sampling the chains means rejecting nine million candidates, which takes a minute. Their task ids are therefore stored
in `eval_chains.json`, one line for each start state; `python -m vw2_robot.envs.sequences` samples them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
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

# The order of keys and of values is part of the benchmark: it decides the order of the states, and their hash.
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

# Numbers of the start states, in meters and radians.
_ROBOT_OBS = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,
    -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
_LEVER_UP_M = 0.088
JITTER_M = 0.01
"""Farthest that blocks stand from the benchmark's places along x and y in other start states."""
_YAW_RANGE = (3 * np.pi / 8, 5 * np.pi / 8)

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class StartPlaces:
    """Centers of the blocks of a start state in one scene: one per compartment, two on the table; meters."""

    compartments: dict[str, Vector]
    table: tuple[Vector, Vector]


_PLACES_D = StartPlaces(
    compartments={
        "slider_left": (-0.240851662, 0.0924044687, 0.460990009),
        "slider_right": (0.070341633, 0.0924044687, 0.460990009),
    },
    table=((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001)),
)
# Not part of the benchmark. A has the shelf of D; that of B and C is further right, and the button of B is where D has
# the second spot on the table.
_COMPARTMENTS_BC: dict[str, Vector] = {"slider_left": (-0.03, 0.092, 0.461), "slider_right": (0.225, 0.092, 0.461)}
_PLACES = {
    "A": _PLACES_D,
    "B": StartPlaces(_COMPARTMENTS_BC, table=((-0.2, -0.12, 0.46), (0.02, -0.12, 0.46))),
    "C": StartPlaces(_COMPARTMENTS_BC, table=_PLACES_D.table),
    "D": _PLACES_D,
}


@dataclass(frozen=True)
class SymbolicTask:
    """One task as a symbolic rule: `alternatives` are (condition, effect) pairs over a symbolic state."""

    name: str
    category: int
    alternatives: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = field(default=())

    def apply(self, state: State) -> dict[str, Any] | None:
        """Return the state after the task, or None unless exactly one alternative is possible."""
        effects = [effect for condition, effect in self.alternatives if condition.items() <= state.items()]
        return {**state, **effects[0]} if len(effects) == 1 else None


def make_sequences(count: int = TOTAL_SEQUENCES, *, seed: int = 0) -> list[EvalSequence]:
    """Return the first `count` of 1000 chains, numbered from 0.

    Args:
        count: 1 to 1000.
        seed: 0: the benchmark's chains; another: chains sampled by its protocol from that seed.

    Raises:
        InputError: `count` is not from 1 to 1000.
    """
    if not 1 <= count <= TOTAL_SEQUENCES:
        raise InputError(
            f"{count} sequences requested; the benchmark has {TOTAL_SEQUENCES}, choose 1 to {TOTAL_SEQUENCES}"
        )
    return [
        EvalSequence(number=number, initial_state=dict(state), subtasks=subtasks)
        for number, (state, subtasks) in enumerate((_all_chains() if seed == 0 else _other_chains(seed))[:count])
    ]


def start_state(
    initial_state: State, scene: str = "D", *, poses: np.random.RandomState | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `robot_obs` [15] and `scene_obs` [24] of a symbolic state; a pure function of its arguments.

    Args:
        initial_state: as in `EvalSequence.initial_state`.
        scene: "A", "B", "C" or "D".
        poses: decides spots and yaws of the blocks in place of the benchmark's seed, and moves each block by up to
            `JITTER_M` along x and y; None: the benchmark's poses.

    Raises:
        InputError: an unknown scene, or an impossible state.
    """
    for key, values in _STATE_VALUES.items():
        if key not in initial_state or initial_state[key] not in values:
            raise InputError(f"start state: {key} must be one of {values}, found {initial_state.get(key)!r}")
    if not _is_possible(initial_state):
        raise InputError(
            f"start state: one or two blocks on the table and one in a compartment, found {dict(initial_state)}"
        )
    if scene not in _PLACES:
        raise InputError(f"unknown scene {scene!r}; known: {', '.join(_PLACES)}")
    places = _PLACES[scene]
    furniture = SCENES[scene]
    # The seed is a hash of the state's text, dict_values([...]), as the reference computes it.
    text = str({key: initial_state[key] for key in _STATE_VALUES}.values())
    rng = np.random.RandomState(fnv_of(text)) if poses is None else poses
    spots = [np.array(spot) for spot in places.table]
    rng.shuffle(spots)  # a list of arrays, as in the reference; shuffling one array takes other random numbers
    scene_obs = np.zeros(SCENE_OBS_SIZE)
    scene_obs[0] = furniture.slide_range if initial_state["slider"] == "left" else 0
    scene_obs[1] = DRAWER_OPEN_M if initial_state["drawer"] == "open" else 0
    scene_obs[3] = _LEVER_UP_M if initial_state["lightbulb"] else 0
    scene_obs[4] = initial_state["lightbulb"]
    scene_obs[5] = initial_state["led"]
    # Which of the two (shuffled) spots a block on the table takes: red the first, pink the second, blue the free one.
    spot_of = {"red": 0, "blue": 1 if initial_state["red_block"] == "table" else 0, "pink": 1}
    for color in COLORS:
        place = initial_state[f"{color}_block"]
        first = 6 + 6 * furniture.block_order.index(f"block_{color}")
        block = scene_obs[first : first + 6]
        block[:3] = spots[spot_of[color]] if place == "table" else places.compartments[place]
        block[5] = rng.uniform(*_YAW_RANGE)  # sampled for every block, in this order
        if poses is not None:
            block[:2] += poses.uniform(-JITTER_M, JITTER_M, size=2)
    return np.array(_ROBOT_OBS), scene_obs


def all_initial_states() -> list[dict[str, Any]]:
    """Return the 192 symbolic start states: one or two blocks on the table, at most one in each compartment."""
    states = [dict(zip(_STATE_VALUES, values, strict=True)) for values in product(*_STATE_VALUES.values())]
    return [state for state in states if _is_possible(state)]


def fnv_of(text: str) -> int:
    """Return the 32-bit hash that seeds a start state.

    This differs from textbook FNV-1: the library of the reference starts from 0 instead of 0x811c9dc5, and reads
    UTF-16, little endian, without byte order mark. Any other hash silently moves the blocks of nearly all start states.
    """
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) % 2**32 ^ byte
    return value


@lru_cache(maxsize=1)
def _other_chains(seed: int) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Return 1000 chains of the benchmark's protocol from another seed; takes about a second."""
    # Rejection sampling accepts all chains of a state with the same probability, so picking from their list is the
    # same distribution, without its minute. The legacy generator, whose numbers never change between NumPy releases.
    rng = np.random.RandomState(seed)
    names = list(TASKS)
    chains = []
    for state, count in zip(all_initial_states(), chains_per_state(), strict=True):
        possible = possible_chains(state)
        chosen = [possible[index] for index in rng.randint(len(possible), size=count)]
        chains += [(state, tuple(names[task] for task in chain)) for chain in chosen]
    return [chains[index] for index in rng.permutation(len(chains))]


def possible_chains(initial_state: State) -> list[tuple[int, ...]]:
    """Return all chains of a start state, as task ids: those that `sample_chains` would accept."""
    begun: list[tuple[tuple[int, ...], frozenset[int], tuple[Any, ...]]]
    begun = [((), frozenset(), tuple(initial_state.values()))]
    for _ in range(CHAIN_LENGTH):
        begun = [
            ((*chain, task), categories | {category}, after)
            for chain, categories, state in begun
            for task, category, after in _possible_tasks(state)
            if category not in categories
        ]
    return [chain for chain, _, _ in begun]


@cache
def _possible_tasks(values: tuple[Any, ...]) -> tuple[tuple[int, int, tuple[Any, ...]], ...]:
    """Return what can be done in a state, given by its values: task id, category, and the values after the task."""
    state = dict(zip(_STATE_VALUES, values, strict=True))
    effects = ((number, task.category, task.apply(state)) for number, task in enumerate(TASKS.values()))
    return tuple((number, category, tuple(after.values())) for number, category, after in effects if after is not None)


@lru_cache(maxsize=1)
def _all_chains() -> tuple[tuple[dict[str, Any], tuple[str, ...]], ...]:
    """Return all chains in the benchmark's order, which is the shuffled order of the start states."""
    names = list(TASKS)
    stored: list[list[list[int]]] = json.loads(CHAINS_FILE.read_text())
    chains = [
        (state, tuple(names[task] for task in chain))
        for state, chains_of_state in zip(all_initial_states(), stored, strict=True)
        for chain in chains_of_state
    ]
    np.random.RandomState(0).shuffle(chains)  # type: ignore[arg-type]
    return tuple(chains)


def chains_per_state() -> list[int]:
    """Return how many of the 1000 chains start from each of the 192 states: 6 from the first 40, 5 from the others."""
    return [len(share) for share in np.array_split(range(TOTAL_SEQUENCES), len(all_initial_states()))]


def sample_chains(number: int) -> list[list[int]]:
    """Sample the chains of a start state anew, as task ids; takes up to a few seconds.

    Rejection sampling: five different tasks are a chain if they are of five categories and possible one after another.

    Args:
        number: of the start state, 0 to 191.
    """
    state = all_initial_states()[number]
    count = chains_per_state()[number]
    rng = np.random.RandomState(number)
    tasks = list(TASKS.values())
    accepted: list[list[int]] = []
    while len(accepted) < count:
        # The same as `choice(names, size=5, replace=False)`, without building an array of names each time.
        chain: list[int] = rng.permutation(len(tasks))[:CHAIN_LENGTH].tolist()
        if len({tasks[task].category for task in chain}) < CHAIN_LENGTH:
            continue
        after: State | None = state
        for task in chain:
            after = None if after is None else tasks[task].apply(after)
        if after is not None:
            accepted.append(chain)
    return accepted


def _is_possible(state: State) -> bool:
    """Return whether a symbolic state is one of the benchmark's start states, as far as the blocks are concerned."""
    places = [state[f"{color}_block"] for color in COLORS]
    return places.count("table") in (1, 2) and all(places.count(compartment) < 2 for compartment in COMPARTMENTS)


def _build_tasks() -> dict[str, SymbolicTask]:
    """Return the symbolic rules of the 34 tasks, in the order of their ids; the number is the task's category."""
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
    """Add the rules of the tasks that place, stack or unstack a block."""
    held = {color: {f"{color}_block": "grasped", "grasped": 1} for color in COLORS}
    in_slider = []
    in_drawer = []
    stacked = []
    unstacked = []
    for color in COLORS:
        block = f"{color}_block"
        # The benchmark names the compartment after the door's side, although the door covers it.
        for side in ("right", "left"):
            in_slider.append(({**held[color], "slider": side}, {block: f"slider_{side}", "grasped": 0}))
        in_drawer.append(({**held[color], "drawer": "open"}, {block: "drawer", "grasped": 0}))
        for other in (f"{name}_block" for name in COLORS if name != color):
            stack = {block: "stacked_top", other: "stacked_bottom"}
            stacked.append(({**held[color], other: "table"}, {**stack, "grasped": 0}))
            unstacked.append(({**stack, "grasped": 0}, {block: "table", other: "table"}))
    add("place_in_slider", 7, *in_slider)
    add("place_in_drawer", 7, *in_drawer)
    add("stack_block", 10, *stacked)
    add("unstack_block", 11, *unstacked)


TASKS: dict[str, SymbolicTask] = _build_tasks()


def write_chains(path: Path = CHAINS_FILE) -> None:
    """Sample all chains anew and write them to `path`, one line for each start state; takes about a minute."""
    lines = [json.dumps(sample_chains(number), separators=(",", ":")) for number in range(len(chains_per_state()))]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    temporary.replace(path)


if __name__ == "__main__":
    write_chains()
