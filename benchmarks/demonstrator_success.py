"""Success rate and steps of the scripted experts on each task, from seeded starts, by scene and assets.

    python -m benchmarks.demonstrator_success --scenes ABCD --assets builtin ../shared/calvin/data --workers 2
    python -m benchmarks.demonstrator_success --ways several --starts 40 --max-steps 128

Each run is one line of the file `--runs`, so a stopped measurement continues. A run starts as a recording does
(`go_to_start`: protocol states, half with moved blocks, some where another task just ended) and fails when the oracle
has not confirmed the task after 360 steps, the protocol's limit. `--ways several` chooses ways as the recorder does,
half of the starts are near the goal or at a fork, and the table is by task, route and speed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
from tqdm import tqdm

from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import SKILLS, Demonstrator, observe_world
from vw2_robot.envs.experts.ways import Ways, choose_way
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.recording.demonstrations import go_to_start

NEAR_STARTS = 0.5
"""Share of starts near the goal with `--ways several`."""
TASKS = sorted(SKILLS)

Job = tuple[str, str, str]  # assets, scene, task


def run_job(job: Job, seeds: list[int], ways: Ways, max_steps: int) -> list[dict[str, object]]:
    """Demonstrate one task from each seed; `env_steps` is 0 where it failed.

    Args:
        job: assets, scene and task.
        seeds: one run each.
        ways: of the recorder.
        max_steps: control steps after which a run has failed.
    """
    assets, scene, task = job
    env = CalvinEnv(scene=scene, assets=assets, cameras=())
    oracle = TaskOracle()
    rows: list[dict[str, object]] = []
    for seed in seeds:
        # A task and a seed define the start, whatever was run before.
        rng = np.random.default_rng([seed, TASKS.index(task)])
        go_to_start(env, task, oracle, rng, near_starts=NEAR_STARTS if ways == "several" else 0.0)
        way = choose_way(task, observe_world(env), rng) if ways == "several" else None
        expert = Demonstrator()
        expert.start(task, env, rng, way=way)
        start = env.task_info()
        steps = 0
        for step in range(1, max_steps + 1):
            env.step_physics(expert.act(env))
            if oracle.get_task_info_for_set(start, env.task_info(), (task,)):
                steps = step
                break
        # Colors of blocks share a row of the table of ways.
        name = task if way is None else f"{re.sub('_(red|blue|pink)', '', task)}, {way.route}"
        world = {"assets": label(assets), "scene": scene, "task": task, "seed": seed}
        rows.append({**world, "name": name, "speed": "" if way is None else way.speed, "env_steps": steps})
    env.close()
    return rows


def label(assets: str) -> str:
    """Return the kind of assets, without a folder of this machine."""
    return "builtin" if assets == "builtin" else "original"


def read_rows(path: Path) -> list[dict[str, object]]:
    """Return every finished run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def measure(path: Path, jobs: list[Job], *, starts: int, workers: int, ways: Ways, max_steps: int) -> None:
    """Run what is missing and append it to `path`.

    Args:
        path: of the runs.
        jobs: worlds and tasks.
        starts: runs of each job.
        workers: processes.
        ways: see `run_job`.
        max_steps: see `run_job`.
    """
    done: dict[tuple[object, ...], set[object]] = defaultdict(set)
    for row in read_rows(path):
        done[row["assets"], row["scene"], row["task"]].add(row["seed"])
    # Finished runs of an earlier call are not repeated.
    missing = {job: [s for s in range(starts) if s not in done[label(job[0]), job[1], job[2]]] for job in jobs}
    path.parent.mkdir(parents=True, exist_ok=True)
    # PyBullet does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        path.open("a", encoding="utf-8") as file,
        tqdm(total=sum(map(len, missing.values())), unit="run", mininterval=5) as bar,
    ):
        futures = [pool.submit(run_job, job, seeds, ways, max_steps) for job, seeds in missing.items() if seeds]
        for future in as_completed(futures):
            # Only this process writes the file, so lines of two workers cannot mix.
            rows = future.result()
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            bar.update(len(rows))


def table(rows: list[dict[str, object]]) -> str:
    """Return a Markdown table: successes, runs and median steps of the successes, by task (and route) and world."""
    # Runs of an earlier release have neither a name nor a speed.
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        column = ", ".join(str(row[key]) for key in ("scene", "assets", "speed") if row.get(key))
        cells[str(row.get("name", row["task"])), column].append(int(str(row["env_steps"])))
    names, columns = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    lines = ["| task | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(cells[name, column]) for column in columns) + " |" for name in names]
    totals = [[steps for name in names for steps in cells[name, column]] for column in columns]
    return "\n".join([*lines, "| **all** | " + " | ".join(map(cell, totals)) + " |"])


def cell(steps: list[int]) -> str:
    """Format runs as successes, runs and median steps, for example `49/50 · 61`."""
    solved = [step for step in steps if step]
    return f"{len(solved)}/{len(steps)} · {median(solved):.0f}" if solved else f"0/{len(steps)}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="D")
    parser.add_argument("--assets", nargs="+", default=["builtin"], help="builtin, or a directory of assets")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, metavar="TASK")
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ways", choices=get_args(Ways), default="single")
    parser.add_argument("--max-steps", type=int, default=360)
    parser.add_argument("--runs", type=Path, help="default: runs/demonstrator_WAYS.jsonl")
    arguments = parser.parse_args()
    runs = arguments.runs or Path(f"runs/demonstrator_{arguments.ways}.jsonl")
    jobs = [(a, scene, task) for scene in arguments.scenes for a in arguments.assets for task in arguments.tasks]
    measure(
        runs,
        jobs,
        starts=arguments.starts,
        workers=arguments.workers,
        ways=arguments.ways,
        max_steps=arguments.max_steps,
    )
    print(table(read_rows(runs)))


if __name__ == "__main__":
    main()
