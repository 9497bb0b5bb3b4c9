"""Success rate and steps of the scripted experts on each task, from seeded starts, by scene and assets.

    python -m benchmarks.demonstrator_success --scenes ABCD --assets builtin ../shared/calvin/data --workers 2

Each run is one line of `runs/demonstrator.jsonl`, so a stopped measurement continues. A run starts as a recording does
(`go_to_start`: protocol states, half with moved blocks, some where another task just ended) and fails when the oracle
has not confirmed the task after 360 steps, the protocol's limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.envs.experts.demonstrator import SKILLS, Demonstrator
from vw2_robot.envs.oracle import TaskOracle
from vw2_robot.envs.recording.demonstrations import go_to_start

MAX_STEPS = 360
TASKS = sorted(SKILLS)

Job = tuple[str, str, str]  # assets, scene, task


def run_job(job: Job, seeds: list[int]) -> list[dict[str, object]]:
    """Demonstrate one task from each seed; `env_steps` is 0 where it failed."""
    assets, scene, task = job
    env = CalvinEnv(scene=scene, assets=assets, cameras=())
    oracle = TaskOracle()
    rows: list[dict[str, object]] = []
    for seed in seeds:
        # A task and a seed define the start, whatever was run before.
        rng = np.random.default_rng([seed, TASKS.index(task)])
        go_to_start(env, task, oracle, rng)
        expert = Demonstrator()
        expert.start(task, env, rng)
        start = env.task_info()
        steps = 0
        for step in range(1, MAX_STEPS + 1):
            env.step_physics(expert.act(env))
            if oracle.get_task_info_for_set(start, env.task_info(), (task,)):
                steps = step
                break
        rows.append({"assets": label(assets), "scene": scene, "task": task, "seed": seed, "env_steps": steps})
    env.close()
    return rows


def label(assets: str) -> str:
    """Return the kind of assets, without a folder of this machine."""
    return "builtin" if assets == "builtin" else "original"


def read_rows(path: Path) -> list[dict[str, object]]:
    """Return every finished run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def measure(path: Path, jobs: list[Job], *, starts: int, workers: int) -> None:
    """Run what is missing and append it to `path`."""
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
        futures = [pool.submit(run_job, job, seeds) for job, seeds in missing.items() if seeds]
        for future in as_completed(futures):
            # Only this process writes the file, so lines of two workers cannot mix.
            rows = future.result()
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            bar.update(len(rows))


def table(rows: list[dict[str, object]]) -> str:
    """Return a Markdown table: successes, runs and median steps of the successes, by task and world."""
    worlds = sorted({(str(row["assets"]), str(row["scene"])) for row in rows})
    steps: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row in rows:
        steps[str(row["assets"]), str(row["scene"]), str(row["task"])].append(int(str(row["env_steps"])))
    lines = ["| task | " + " | ".join(f"{scene}, {assets}" for assets, scene in worlds) + " |"]
    lines.append("|---" * (len(worlds) + 1) + "|")
    measured = {task for _, _, task in steps}
    for task in (task for task in TASKS if task in measured):
        lines.append(f"| {task} | " + " | ".join(cell(steps[(*world, task)]) for world in worlds) + " |")
    lines.append("| **all** | " + " | ".join(cell(total(steps, world)) for world in worlds) + " |")
    return "\n".join(lines)


def total(steps: dict[tuple[str, str, str], list[int]], world: tuple[str, str]) -> list[int]:
    """Return the runs of all tasks in one world."""
    return [step for task in TASKS for step in steps[(*world, task)]]


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
    parser.add_argument("--runs", type=Path, default=Path("runs/demonstrator.jsonl"))
    arguments = parser.parse_args()
    jobs = [(a, scene, task) for scene in arguments.scenes for a in arguments.assets for task in arguments.tasks]
    measure(arguments.runs, jobs, starts=arguments.starts, workers=arguments.workers)
    print(table(read_rows(arguments.runs)))


if __name__ == "__main__":
    main()
