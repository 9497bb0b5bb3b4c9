"""Speed of a control step in our simulator, as a multiple of the original's speed in the same run: one table.

Run: python -m benchmarks.environment_steps [--reference-python PATH/TO/python]

The original (`calvin_env`, see vw2_robot/envs/calvin_reference.py) runs in a child process, under an interpreter that
has it; without it the table has our rows only. It is measured in its fastest setting, `env.step(action)` with the
static camera only (by default it renders the gripper camera too). It renders at every step, our simulator only on
request: every fourth step here, as for a policy that executes four actions per call. Our "evaluation" rows include the
task oracle, the original's do not. With the original's assets our renderer is `tiny`, whose images are the original's;
in the built-in scene it is the default, `layered`.

Both execute the same recorded actions, with contacts, and alternate in short rounds, so that other load on the machine
hits both; a ratio is the median over the rounds, of CPU seconds of the process. In the same run the states of all steps
and all images are compared bit by bit. Only the row about two workers uses the wall clock.

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

from .environment_worlds import (
    IMAGE_EVERY,
    ORIGINAL_ASSETS,
    RECORDING,
    TASK,
    Original,
    Ours,
    Recording,
    has_image,
    read_recording,
)
from .speed.row import SpeedRow, interleaved

# Speed-ups that docs/simulator.md states.
GOALS = {"same": 3.5, "builtin": 12.0, "state": 20.0, "workers": 1.8}
# Of the rows of the speed table that are not compared with the original's meshes.
GOAL_BUILTIN_STAND_IN = 5.0
GOAL_IMAGE = 3.5

ROUND_STEPS = 24  # a multiple of the steps between images


@dataclass
class Row:
    """A row of the table: `run(first, last)` executes those actions and returns CPU seconds."""

    name: str
    run: Callable[[int, int], float]
    goal: float | None = None
    seconds: list[float] = field(default_factory=list)


def renderer_for(assets: str) -> str:
    """Return the default renderer for the built-in scene; for other assets the one of the original."""
    return "layered" if assets == "builtin" else "tiny"


def rounds(count: int, length: int) -> list[tuple[int, int]]:
    """Return the bounds of action segments of equal length; a shorter rest is not used."""
    return [(first, first + length) for first in range(0, count - length + 1, length)]


def measure(rows: list[Row], segments: list[tuple[int, int]]) -> None:
    """Run every segment in all rows, in reverse order every other round."""
    for number, segment in enumerate(segments):
        # Reversing the order removes a bias of the row that runs after another.
        for row in rows if number % 2 == 0 else reversed(rows):
            row.seconds.append(row.run(*segment))


def print_rows(rows: list[Row], original: Row | None, length: int) -> None:
    print(f"\n{'world':<55}{'ms/step':>9}{'steps/s':>9}{'x original':>12}{'rounds':>14}  goal")
    for row in rows:
        ms = 1000 * statistics.median(row.seconds) / length
        line = f"{row.name:<55}{ms:>9.2f}{1000 / ms:>9.0f}"
        if original is not None and row is not original:
            # Per round: both halves of a ratio ran within seconds of each other.
            ratios = [theirs / ours for theirs, ours in zip(original.seconds, row.seconds, strict=True)]
            line += f"{statistics.median(ratios):>12.2f}{f'{min(ratios):.2f}..{max(ratios):.2f}':>14}"
            line += goal_text(statistics.median(ratios), row.goal)
        print(line)


def goal_text(value: float, goal: float | None) -> str:
    return "" if goal is None else f"  >= {goal:g}: {'met' if value >= goal else 'MISSED'}"


def compare(original: dict[str, list[str]], ours: Ours) -> bool:
    """Print how many states and images are bit-identical; return whether all are."""
    steps = len(ours.states)
    rendered = sorted(ours.images)
    states = sum(ours.states[i] == original["states"][i] for i in range(steps))
    images = sum(ours.images[i] == original["images"][i] for i in rendered)
    print(f"\nsame bits as the original: {states} of {steps} states, {images} of {len(rendered)} images")
    return (states, images) == (steps, len(rendered))


def profile(recording: Recording, assets: str, title: str) -> None:
    """Print the time of a step part by part; the time of an image is spread over the steps between images."""
    world = Ours(recording, assets, renderer_for(assets))
    env = world.env
    oracle = TaskOracle()
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

    for number, action in enumerate(recording.actions):
        timed("action: inverse kinematics, motors", partial(apply, action))
        timed(f"physics: {PHYSICS_STEPS} x stepSimulation", simulate)
        timed("button, switch and lights", env.scene.update_button_and_switch)
        info = timed("information for the oracle", env.task_info)
        timed("oracle, one task", partial(oracle.get_task_info_for_set, before, info, (TASK,)))
        if has_image(number):
            timed(f"image, every {IMAGE_EVERY}th step", partial(env.render_camera, "static"))
    world.benchmark.close()
    total = sum(seconds.values())
    print(f"\n{title:<55}{'ms/step':>9}{'%':>9}")
    for part, spent in seconds.items():
        print(f"  {part:<53}{1000 * spent / len(recording.actions):>9.3f}{100 * spent / total:>9.1f}")
    print(f"  {'all':<53}{1000 * total / len(recording.actions):>9.3f}{100:>9.1f}")


def work(connection: Connection, recording: Recording, assets: str) -> None:
    """Run requested segments in a worker process, answer with CPU seconds; None ends it."""
    world = Ours(recording, assets, renderer_for(assets))
    connection.send(0.0)
    while (segment := connection.recv()) is not None:
        world.restart()
        connection.send(world.evaluate(*segment))
    world.benchmark.close()


def measure_workers(recording: Recording, assets: str, *, rounds: int) -> None:
    """Alternate one worker and two on the same segment; two workers execute it twice in total."""
    # PyBullet does not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, recording, assets))
        process.start()
        workers.append((ours, process))
        # The worker answers when its world is built: loading is not measured.
        ours.recv()
    segment = (0, len(recording.actions))

    def run(connections: list[Connection]) -> tuple[float, float]:
        begin = time.perf_counter()
        for connection in connections:
            connection.send(segment)
        cpu = [connection.recv() for connection in connections]
        return time.perf_counter() - begin, sum(cpu)

    pairs = [(run([workers[n % 2][0]]), run([ours for ours, _ in workers])) for n in range(rounds)]
    for ours, process in workers:
        ours.send(None)
        process.join()
    # Two workers do twice the work of one.
    wall = [2 * one[0] / two[0] for one, two in pairs]
    got = statistics.median(two[1] / two[0] for _, two in pairs)
    # CPU seconds are independent of the cores that other programs used.
    # Twice the work of one over half of the seconds of two, as on two cores: 2 * one / (two / 2).
    alone = statistics.median(4 * one[1] / two[1] for one, two in pairs)
    scaling = statistics.median(wall)
    print(f"\ntwo workers against one, built-in scene, by the wall clock: x {scaling:.2f}", end="")
    print(f" ({min(wall):.2f}..{max(wall):.2f}){goal_text(scaling, GOALS['workers'])}")
    print(f"  the two got {got:.2f} cores from this machine; with two to themselves, by CPU seconds: x {alone:.2f}")


def print_head(recording: Recording, original: Original) -> None:
    packages = {name: importlib.metadata.version(name) for name in ("gymnasium", "numpy")}
    versions = ", ".join(f"{name} {version}" for name, version in {**pybullet_version(), **packages}.items())
    print(f"ours: Python {platform.python_version()}, {versions}")
    if "error" in original.about:
        print(f"original: not measured ({original.about['error']})")
    else:
        theirs = ", ".join(f"{name} {version}" for name, version in original.about["versions"].items())
        print(f"original: calvin_env {original.about['commit'][:7]}, {theirs}")
    print(f"actions: {recording.origin}, {len(recording.actions)} steps; scene {recording.scene}, 200 x 200, static")
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference-python", default=sys.executable, help="interpreter that has calvin_env")
    parser.add_argument("--assets", help="directory for the rows with original assets; default: the original's own")
    parser.add_argument("--recording", type=Path, default=RECORDING, help="recorded actions, .npz")
    parser.add_argument("--round-steps", type=int, default=ROUND_STEPS, help="steps per round; a multiple of 4")
    parser.add_argument("--worker-rounds", type=int, default=5, help="0: leave out the workers")
    options = parser.parse_args()
    if options.round_steps < IMAGE_EVERY or options.round_steps % IMAGE_EVERY:
        parser.error(f"--round-steps must be a multiple of {IMAGE_EVERY}, found {options.round_steps}")
    if shutil.which(options.reference_python) is None:
        parser.error(f"--reference-python: there is no program {options.reference_python}")
    recording = read_recording(options.recording)
    original = Original(options.reference_python, recording.scene)
    if len(recording.actions) < options.round_steps:
        parser.error(f"--round-steps {options.round_steps}, but there are only {len(recording.actions)} actions")
    print_head(recording, original)
    identical = compare_speed(recording, original, options.assets, options.round_steps)
    original.close()
    assets = options.assets or original.about.get("data")
    if assets is not None:
        profile(recording, assets, "profile, original assets")
    profile(recording, "builtin", "profile, built-in scene")
    if options.worker_rounds:
        measure_workers(recording, "builtin", rounds=options.worker_rounds)
    sys.exit(not identical)


def compare_speed(recording: Recording, original: Original, assets: str | None, length: int) -> bool:
    """Print the table; return whether all that must be bit-identical is."""
    segments = rounds(len(recording.actions), length)
    found: dict[str, list[str]] = {"states": [], "images": []}
    rows = []
    theirs = None
    if "error" not in original.about:
        original.reset(recording)

        def step_original(first: int, last: int) -> float:
            answer = original.step(recording.actions[first:last])
            for kind, hashes in found.items():
                hashes.extend(answer[kind])
            return float(answer["seconds"])

        theirs = Row("original, image every step", step_original)
        rows.append(theirs)
    same = assets or original.about.get("data")
    # Three worlds per kind of assets, since every row keeps its own state.
    worlds = {"original assets": same, "built-in scene": "builtin"}
    made = {
        name: [Ours(recording, path, renderer_for(path)) for _ in range(3)]
        for name, path in worlds.items()
        if path is not None
    }
    for name, (evaluated, stepped, read) in made.items():
        goal = GOALS["builtin" if name == "built-in scene" else "same"]
        rows += [
            Row(f"ours, {name}: evaluation, image every {IMAGE_EVERY}th", evaluated.evaluate, goal),
            Row(f"ours, {name}: state only", stepped.physics, GOALS["state"]),
            Row(f"ours, {name}: state only, both states read", read.physics_and_state),
        ]
    measure(rows, segments)
    if theirs is not None:
        # Only after the comparison: it replaces the world of the original.
        rows.insert(1, with_gripper(original, recording, segments))
    print_rows(rows, theirs, length)
    # Other assets than those of the original may give other states, so they are not compared.
    is_same = theirs is None or assets is not None or compare(found, made["original assets"][0])
    for world in itertools.chain(*made.values()):
        world.benchmark.close()
    return is_same


def with_gripper(original: Original, recording: Recording, segments: list[tuple[int, int]]) -> Row:
    """Return a row of the original with both cameras, its default; measured after the others: it has one world."""
    original.open(["static", "gripper"])
    original.reset(recording)

    def step_both(first: int, last: int) -> float:
        return float(original.step(recording.actions[first:last])["seconds"])

    row = Row("original, its default of two cameras", step_both)
    measure([row], segments)
    return row


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Compare a step in the built-in scene with the original's, and an image with one of a single pass.

    Without the original the step is compared with our physics and images in the original's way, bit for bit its own
    where its assets are here. CALVIN_PYTHON names an interpreter that has `calvin_env`.
    """
    recording = read_recording(RECORDING)
    layered = Ours(recording, "builtin", "layered")
    tiny = Ours(recording, "builtin", "tiny")
    original = Original(os.environ.get("CALVIN_PYTHON", sys.executable), recording.scene)
    wanted = GOALS["builtin"]
    steps = {"ours": segment_by_segment(layered.evaluate, layered.restart, recording)}
    if "error" not in original.about:
        against = "the original (calvin_env), image every step, CPU time"
        steps["other"] = segment_by_segment(
            lambda first, last: float(original.step(recording.actions[first:last])["seconds"]),
            lambda: original.reset(recording),
            recording,
        )
    else:
        against = "a stand-in for the original: this simulator, image in one pass every step, CPU time, assets: "
        if ORIGINAL_ASSETS.is_dir():
            stand_in = Ours(recording, str(ORIGINAL_ASSETS), "tiny")
            against += "the original's"
        else:
            stand_in = tiny
            against += "built-in (smaller meshes)"
            wanted = GOAL_BUILTIN_STAND_IN
        steps["other"] = segment_by_segment(stand_in.original_way, stand_in.restart, recording)
    images = {
        "ours": segment_by_segment(layered.images_only, layered.restart, recording, per=IMAGE_EVERY),
        "other": segment_by_segment(tiny.images_only, tiny.restart, recording, per=IMAGE_EVERY),
    }
    rows = [
        interleaved(steps, seconds=0.7 * seconds).row(
            "CALVIN step, image each 4th",
            ours="ours",
            other="other",
            against=against,
            unit="ms/step",
            wanted=wanted,
        ),
        interleaved(images, seconds=0.2 * seconds).row(
            "CALVIN image",
            ours="ours",
            other="other",
            against="one pass (tiny), CPU time",
            unit="ms",
            wanted=GOAL_IMAGE,
        ),
    ]
    original.close()
    return rows


def segment_by_segment(
    run: Callable[[int, int], float], restart: Callable[[], None], recording: Recording, *, per: int = 1
) -> Callable[[], float]:
    """Return a function that runs the next segment, from the start again after the last, and returns milliseconds.

    Args:
        run: executes the actions from `first` to `last` and returns CPU seconds.
        restart: goes to the start state.
        recording: the actions.
        per: the number of steps that a cost is for.
    """
    segments = itertools.cycle(rounds(len(recording.actions), ROUND_STEPS))

    def cost() -> float:
        first, last = next(segments)
        if first == 0:
            restart()
        return 1000 * per * run(first, last) / ROUND_STEPS

    return cost


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"environment_steps: error: {error}")
