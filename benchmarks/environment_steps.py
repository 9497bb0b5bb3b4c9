"""What a control step costs in our simulator, as a multiple of the original's speed in the same run: one table.

Run: python -m benchmarks.environment_steps [--reference-python PATH/TO/python]

The original (`calvin_env`, see vw2_robot/envs/calvin_reference.py) runs in a child process, under an interpreter that
has it; without it the table gives our own figures alone. It is measured in its kindest setting, `env.step(action)` with
the static camera only (by default it draws the gripper's, too); it draws at every step, ours when asked, every
fourth step here, as a policy with chunks of four does. Our "evaluation" rows also pay for the oracle, which the
original's do not.

Both execute the same recorded actions, with contacts, and take turns in short rounds, so that a busy machine hits both
alike; a ratio is the median over the rounds, of CPU seconds of the one process. In the same run the states of all steps
and all images taken are compared bit by bit. Only the row about two workers goes by the clock on the wall.

Exit status 1 if states or images differ.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.envs.actions import parse_action
from vw2_robot.envs.calvin import PHYSICS_STEPS
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.physics import pybullet_version
from vw2_robot.errors import InputError

from .environment_worlds import LOOK_EVERY, RECORDING, TASK, Original, Ours, Walk, is_look, read_walk

GOALS = {"same": 3.5, "builtin": 8.0, "state": 20.0, "workers": 1.8}


@dataclass
class Row:
    """One line of the table: `run(first, last)` executes those actions and returns CPU seconds."""

    name: str
    run: Callable[[int, int], float]
    goal: float | None = None
    seconds: list[float] = field(default_factory=list)


def rounds(count: int, length: int) -> list[tuple[int, int]]:
    """The actions in pieces of equal length; what is left over at the end is not used."""
    return [(first, first + length) for first in range(0, count - length + 1, length)]


def measure(rows: list[Row], pieces: list[tuple[int, int]]) -> None:
    """All rows take turns; every other round in reverse order."""
    for number, piece in enumerate(pieces):
        for row in rows if number % 2 == 0 else reversed(rows):
            row.seconds.append(row.run(*piece))


def print_rows(rows: list[Row], original: Row | None, length: int) -> None:
    print(f"\n{'world':<55}{'ms/step':>9}{'steps/s':>9}{'x original':>12}{'rounds':>14}  goal")
    for row in rows:
        ms = 1000 * statistics.median(row.seconds) / length
        line = f"{row.name:<55}{ms:>9.2f}{1000 / ms:>9.0f}"
        if original is not None and row is not original:
            ratios = [theirs / ours for theirs, ours in zip(original.seconds, row.seconds, strict=True)]
            line += f"{statistics.median(ratios):>12.2f}{f'{min(ratios):.2f}..{max(ratios):.2f}':>14}"
            line += verdict(statistics.median(ratios), row.goal)
        print(line)


def verdict(value: float, goal: float | None) -> str:
    return "" if goal is None else f"  >= {goal:g}: {'met' if value >= goal else 'MISSED'}"


def compare(original: dict[str, list[str]], ours: Ours) -> bool:
    """Say how many states and images are the same bits; True if all."""
    steps, looks = len(ours.states), sorted(ours.images)
    states = sum(ours.states[i] == original["states"][i] for i in range(steps))
    images = sum(ours.images[i] == original["images"][i] for i in looks)
    print(f"\nsame bits as the original: {states} of {steps} states, {images} of {len(looks)} images")
    return (states, images) == (steps, len(looks))


def profile(walk: Walk, assets: str, title: str) -> None:
    """Where a step's time goes, part by part; an image's is spread over the steps that share it."""
    world = Ours(walk, assets)
    env, oracle = world.env, TaskOracle()
    before = env.task_info()
    seconds: dict[str, float] = {}
    clock = time.process_time

    def timed(part: str, work: Callable[[], Any]) -> Any:
        begin = clock()
        result = work()
        seconds[part] = seconds.get(part, 0.0) + clock() - begin
        return result

    def apply(action: NDArray[np.float64]) -> None:
        env.robot.apply(parse_action(action))

    def simulate() -> None:
        for _ in range(PHYSICS_STEPS):
            env._physics.stepSimulation()

    for number, action in enumerate(walk.actions):
        timed("action: inverse kinematics, motors", partial(apply, action))
        timed(f"physics: {PHYSICS_STEPS} x stepSimulation", simulate)
        timed("button, switch and lights", env.scene.update_button_and_switch)
        info = timed("information for the oracle", env.task_info)
        timed("oracle, one task", partial(oracle.get_task_info_for_set, before, info, (TASK,)))
        if is_look(number):
            timed(f"image, every {LOOK_EVERY}th step", partial(env.render_camera, "static"))
    world.benchmark.close()
    total = sum(seconds.values())
    print(f"\n{title:<55}{'ms/step':>9}{'%':>9}")
    for part, spent in seconds.items():
        print(f"  {part:<53}{1000 * spent / len(walk.actions):>9.3f}{100 * spent / total:>9.1f}")
    print(f"  {'all':<53}{1000 * total / len(walk.actions):>9.3f}{100:>9.1f}")


def work(connection: Connection, walk: Walk, assets: str) -> None:
    """A worker: run the piece asked for, answer with CPU seconds; None ends it."""
    world = Ours(walk, assets)
    connection.send(0.0)
    while (piece := connection.recv()) is not None:
        world.restart()
        connection.send(world.evaluate(*piece))
    world.benchmark.close()


def measure_workers(walk: Walk, assets: str, *, turns: int) -> None:
    """One worker and two take turns at the same piece; two do it twice in all."""
    context = multiprocessing.get_context("spawn")
    crew = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, walk, assets))
        process.start()
        crew.append((ours, process))
        ours.recv()
    piece = (0, len(walk.actions))

    def run(connections: list[Connection]) -> tuple[float, float]:
        begin = time.perf_counter()
        for connection in connections:
            connection.send(piece)
        cpu = [connection.recv() for connection in connections]
        return time.perf_counter() - begin, sum(cpu)

    pairs = [(run([crew[turn % 2][0]]), run([ours for ours, _ in crew])) for turn in range(turns)]
    for ours, process in crew:
        ours.send(None)
        process.join()
    wall = [2 * one[0] / two[0] for one, two in pairs]
    got = statistics.median(two[1] / two[0] for _, two in pairs)
    undisturbed = statistics.median(4 * one[1] / two[1] for one, two in pairs)
    scaling = statistics.median(wall)
    print(f"\ntwo workers against one, built-in scene, by the wall clock: x {scaling:.2f}", end="")
    print(f" ({min(wall):.2f}..{max(wall):.2f}){verdict(scaling, GOALS['workers'])}")
    print(
        f"  the two got {got:.2f} cores from this machine; with two to themselves, by CPU seconds: x {undisturbed:.2f}"
    )


def print_head(walk: Walk, original: Original) -> None:
    packages = {name: importlib.metadata.version(name) for name in ("gymnasium", "numpy")}
    versions = ", ".join(f"{name} {version}" for name, version in {**pybullet_version(), **packages}.items())
    print(f"ours: Python {platform.python_version()}, {versions}")
    if "error" in original.about:
        print(f"original: not measured ({original.about['error']})")
    else:
        theirs = ", ".join(f"{name} {version}" for name, version in original.about["versions"].items())
        print(f"original: calvin_env {original.about['commit'][:7]}, {theirs}")
    print(f"actions: {walk.origin}, {len(walk.actions)} steps; scene {walk.scene}, TinyRenderer, 200 x 200, static")
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference-python", default=sys.executable, help="interpreter that has calvin_env")
    parser.add_argument("--assets", help="directory for the rows with original assets; default: the original's own")
    parser.add_argument("--recording", type=Path, default=RECORDING, help="recorded actions, .npz")
    parser.add_argument("--round-steps", type=int, default=24, help="steps per turn; a multiple of 4")
    parser.add_argument("--worker-turns", type=int, default=5, help="0: leave out the workers")
    options = parser.parse_args()
    if options.round_steps < LOOK_EVERY or options.round_steps % LOOK_EVERY:
        parser.error(f"--round-steps must be a multiple of {LOOK_EVERY}, found {options.round_steps}")
    if shutil.which(options.reference_python) is None:
        parser.error(f"--reference-python: there is no program {options.reference_python}")
    walk = read_walk(options.recording)
    original = Original(options.reference_python, walk.scene)
    if len(walk.actions) < options.round_steps:
        parser.error(f"--round-steps {options.round_steps}, but there are only {len(walk.actions)} actions")
    print_head(walk, original)
    identical = compare_speed(walk, original, options.assets, options.round_steps)
    original.close()
    assets = options.assets or original.about.get("data")
    if assets is not None:
        profile(walk, assets, "profile, original assets")
    profile(walk, "builtin", "profile, built-in scene")
    if options.worker_turns:
        measure_workers(walk, "builtin", turns=options.worker_turns)
    sys.exit(not identical)


def compare_speed(walk: Walk, original: Original, assets: str | None, length: int) -> bool:
    """The table. False if what must be the same bits is not."""
    pieces = rounds(len(walk.actions), length)
    heard: dict[str, list[str]] = {"states": [], "images": []}
    rows, theirs = [], None
    if "error" not in original.about:
        original.reset(walk)

        def step_original(first: int, last: int) -> float:
            answer = original.step(walk.actions[first:last])
            for kind, hashes in heard.items():
                hashes.extend(answer[kind])
            return float(answer["seconds"])

        theirs = Row("original, image every step", step_original)
        rows.append(theirs)
    same = assets or original.about.get("data")
    worlds = {"original assets": same, "built-in scene": "builtin"}
    made = {name: [Ours(walk, path) for _ in range(3)] for name, path in worlds.items() if path is not None}
    for name, (evaluated, stepped, read) in made.items():
        goal = GOALS["builtin" if name == "built-in scene" else "same"]
        rows += [
            Row(f"ours, {name}: evaluation, image every {LOOK_EVERY}th", evaluated.evaluate, goal),
            Row(f"ours, {name}: state only", stepped.physics, GOALS["state"]),
            Row(f"ours, {name}: state only, both states read", read.physics_and_state),
        ]
    measure(rows, pieces)
    if theirs is not None:
        rows.insert(1, with_gripper(original, walk, pieces))
    print_rows(rows, theirs, length)
    is_same = theirs is None or assets is not None or compare(heard, made["original assets"][0])
    for world in itertools.chain(*made.values()):
        world.benchmark.close()
    return is_same


def with_gripper(original: Original, walk: Walk, pieces: list[tuple[int, int]]) -> Row:
    """The original with both cameras, its own default; not in turns, since it cannot have two worlds."""
    original.open(["static", "gripper"])
    original.reset(walk)
    row = Row("original, its default of two cameras", lambda a, b: float(original.step(walk.actions[a:b])["seconds"]))
    measure([row], pieces)
    return row


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"environment_steps: error: {error}")
