"""Speed of `vw2-rollout` against the official CALVIN loop, agreement chain by chain, and a profile: four tables.

    python -m benchmarks.evaluation --policy CHECKPOINT --chains 10 \
        --reference-python PYTHON_WITH_CALVIN_ENV --calvin CHECKOUT_OF_MEES_CALVIN

1. Time of the same chains with the same policy in the official loop (one process, its static camera only, which is its
   fastest setting) and in `vw2-rollout` with original and built-in assets.
2. Chains with the same outcome under legacy resets (theirs and ours) and under exact ones.
3. Time of `vw2-rollout` part by part.
4. Batch sizes that change the bits of an action, and the time of a fixed batch.

Without --calvin only tables 3 and 4; with --policy demonstrator only tables 1 and 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vw2_robot.agent import VW2Agent
from vw2_robot.commands import commands
from vw2_robot.contracts import Observation
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.rollouts.evaluate import Row, run_chain
from vw2_robot.rollouts.policy_process import FixedBatch
from vw2_robot.rollouts.recording import recording_path
from vw2_robot.rollouts.results import read_rows

REPO = Path(__file__).resolve().parents[1]
GOAL = 6.0
# The folders go to the end of the path: packages that the interpreter has itself come first.
START = (
    "import sys; sys.path += [folder for folder in [{more!r}] if folder]; "
    "from vw2_robot.command_line.entry_points import rollout; sys.argv[0] = 'vw2-rollout'; rollout()"
)


class Cost(NamedTuple):
    """Wall-clock seconds, and CPU seconds of all processes."""

    wall: float
    cpu: float


def timed(command: list[str], log: Path) -> Cost:
    """Run a child process and return its cost."""
    begin = time.perf_counter()
    before = os.times()
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(command, cwd=REPO, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ... failed; the end of its output:\n{log.read_text()[-1500:]}")
    after = os.times()
    # Children include workers and policy processes of the command.
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - begin, cpu)


def official(options: argparse.Namespace, folder: Path) -> tuple[Cost, list[dict[str, Any]]]:
    """Return cost and rows of the official loop."""
    out = folder / "official.jsonl"
    command = [options.reference_python, "-m", "benchmarks.official_loop", "--calvin", str(options.calvin.resolve())]
    command += ["--policy", options.policy, "--chains", f"0:{options.chains}", "--max-steps", str(options.max_steps)]
    command += ["--out", str(out)] + (["--more-packages", options.more_packages] if options.more_packages else [])
    cost = timed(command, folder / "official.log")
    return cost, [json.loads(line) for line in out.read_text().splitlines()]


def ours(options: argparse.Namespace, folder: Path, python: str, *overrides: str) -> tuple[Cost, list[dict[str, Any]]]:
    """Return cost and rows of `vw2-rollout` with these overrides."""
    run_dir = folder / f"run{len(list(folder.iterdir()))}"
    command = [python, "-c", START.format(more=options.more_packages if python != sys.executable else "")]
    command += [f"policy={options.policy}", f"num_sequences={options.chains}", f"env.max_steps={options.max_steps}"]
    command += ["videos=0", "record=true", f"run_dir={run_dir}", *overrides]
    cost = timed(command, folder / f"{run_dir.name}.log")
    # The policy stores how many actions of a chunk are executed.
    every = int(json.loads((run_dir / "summary.json").read_text())["n_action_steps"])
    rows = read_rows(run_dir / "results.jsonl")
    return cost, [{**row, "digest": executed(run_dir, row, every)} for row in rows]


def executed(run_dir: Path, row: Row, every: int) -> str:
    """Return the SHA-256 of all actions of a chain, as official_loop.py computes it."""
    digest = hashlib.sha256()
    with np.load(recording_path(run_dir, row["sequence"])) as file:
        answers = file["actions"]
        subtask = file["subtask"]
    for position, steps in enumerate(row["env_steps"]):
        # The recording has whole chunks; only their first actions were executed.
        chunks = [commands(answer, at_least=every)[:every] for answer in answers[subtask == position]]
        digest.update(np.concatenate(chunks)[:steps].tobytes())
    return digest.hexdigest()


def agreement(name: str, rows: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Print how many chains have the same outcome, the same steps and bit-identical actions."""
    pairs = list(zip(rows, theirs, strict=True))
    solved = sum(a["solved"] == b["solved"] for a, b in pairs)
    steps, bits = (sum(a[key] == b[key] for a, b in pairs) for key in ("env_steps", "digest"))
    lengths = [float(np.mean([row["solved"] for row in side])) for side in (rows, theirs)]
    print(
        f"{name:<58}{solved:>5} of {len(pairs)} end alike, {steps} with the same steps, {bits} bits; "
        f"average length {lengths[0]:.2f}, official {lengths[1]:.2f}"
    )


def original_assets(options: argparse.Namespace) -> str:
    """Return the folder data/ of the `calvin_env` that the other interpreter finds."""
    find = "from vw2_robot.envs.calvin_reference import find_checkout as f; print(f())"
    done = subprocess.run([options.reference_python, "-c", find], cwd=REPO, capture_output=True, text=True, check=True)
    return f"{done.stdout.split()[-1]}/data"


def cost_line(name: str, cost: Cost, official_cost: Cost, end: str = "") -> None:
    """Print a row; on a busy machine read the CPU column, since more processes do not get more cores there."""
    wall = official_cost.wall / cost.wall
    cpu = official_cost.cpu / cost.cpu
    print(f"{name:<58}{cost.wall:>8.1f}{wall:>12.2f}{cost.cpu:>8.1f}{cpu:>12.2f}{end}", flush=True)


def against_official(options: argparse.Namespace, folder: Path, data: str) -> None:
    """Print tables 1 and 2."""
    official_cost, theirs = official(options, folder)
    original = (f"env.assets={data}", "env.renderer=tiny")
    worlds = {
        "original assets": original,
        "original assets, layered": (original[0], "env.renderer=layered"),
        "built-in assets, layered": ("env.assets=builtin", "env.renderer=layered"),
    }
    print(f"\n{'start included':<58}{'wall s':>8}{'x official':>12}{'CPU s':>8}{'x official':>12}")
    cost_line("official loop, one process", official_cost, official_cost)
    found = {}
    for name, overrides in worlds.items():
        for workers in options.workers:
            cost, rows = ours(options, folder, sys.executable, *overrides, f"workers={workers}")
            line = f"vw2-rollout, {name}, {workers} worker{'s' if workers > 1 else ''}"
            met = official_cost.wall / cost.wall >= GOAL
            cost_line(line, cost, official_cost, "" if workers == 1 else f"  >= {GOAL:g}: {'met' if met else 'MISSED'}")
            found[name] = rows
    if not options.no_agreement:
        agreements(options, folder, original, found, theirs)


def agreements(options: argparse.Namespace, folder: Path, original: tuple[str, ...], found: Any, theirs: Any) -> None:
    """Print table 2; `found` and `theirs` are the rows of table 1."""
    print("\nchain by chain against the official loop")
    _, legacy = ours(options, folder, options.reference_python, "env=calvin_reference")
    agreement("vw2-rollout, the same simulator (legacy resets)", legacy, theirs)
    _, legacy = ours(options, folder, sys.executable, *original, "env.reset_mode=legacy")
    agreement("vw2-rollout, original assets, legacy resets", legacy, theirs)
    agreement("vw2-rollout, original assets, exact resets", found["original assets"], theirs)
    agreement("vw2-rollout, original assets, layered", found["original assets, layered"], theirs)
    agreement("vw2-rollout, built-in assets, layered", found["built-in assets, layered"], theirs)


class Stopwatch:
    """Seconds of timed methods, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, owner: Any, method: str, part: str) -> None:
        """Replace a method of `owner` by one that is timed."""
        work = getattr(owner, method)

        def measured(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = work(*args, **kwargs)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begin
            return result

        setattr(owner, method, measured)


def profile(options: argparse.Namespace, name: str, assets: str) -> None:
    """Print the time of one worker part by part, in one process."""
    world = CalvinBenchmark(assets=assets, max_steps=options.max_steps, renderer="layered")
    agent = open_agent(options.policy)
    watch = Stopwatch()
    # Parts must not contain one another, or time would be counted twice.
    watch.time(world.env, "render_camera", "images")
    watch.time(world.env, "step_physics", "physics and control")
    watch.time(world.env, "reset_physics", "resets")
    watch.time(world.env, "task_info", "information for the oracle")
    watch.time(world._oracle, "get_task_info_for_set", "oracle")
    watch.time(agent, "infer", "policy")
    begin = time.perf_counter()
    every = agent.metadata["n_action_steps"]
    rows = [run_chain(agent, world, chain, n_action_steps=every, seed=0) for chain in world.sequences(options.chains)]
    total = time.perf_counter() - begin
    world.close()
    steps = sum(sum(row["env_steps"]) for row in rows)
    print(f"\n{f'profile, {name} assets, one process':<58}{'ms/step':>9}{'%':>7}")
    parts = sorted(watch.seconds.items(), key=lambda entry: -entry[1])
    for part, seconds in [*parts, ("the rest", total - sum(watch.seconds.values()))]:
        print(f"  {part:<56}{1000 * seconds / steps:>9.3f}{100 * seconds / total:>7.1f}")


def open_agent(policy: str) -> VW2Agent:
    import torch

    torch.set_num_threads(1)
    return VW2Agent.from_pretrained(policy)


def batches(policy: str, *, calls: int = 32) -> None:
    """Print which batch sizes change the bits of an action, and the time of a policy call."""
    agent = open_agent(policy)
    rng = np.random.default_rng(0)
    instructions = ("open the drawer", "push the sliding door to the left side", "grasp and lift the red block")
    seen: list[Observation] = [
        {"images": {"static": rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)}, "prompt": instructions[i % 3]}
        for i in range(calls)
    ]
    alone = [agent.infer(observation)["actions"] for observation in seen]
    print(
        f"\n{'actions that differ from those of a batch of one':<42}{'free batch':>12}{'fixed rows*':>13}{'ms/call':>9}"
    )
    # A free batch has as many rows as there are observations, a fixed one is padded.
    for rows in (1, 2, 4, 8, 16):
        free = [out["actions"] for i in range(0, calls, rows) for out in agent.infer_batch(seen[i : i + rows])]
        begin = time.perf_counter()
        fixed = seen if rows == 1 else None
        answers = [agent.infer(observation) for observation in seen] if fixed else fixed_answers(agent, seen, rows)
        ms = 1000 * (time.perf_counter() - begin) / calls
        differ = sum(not np.array_equal(a, b) for a, b in zip(free, alone, strict=True))
        shuffled = answers if fixed else fixed_answers(agent, seen, rows, shuffle=True)
        # Bits must not depend on the other rows of a fixed batch.
        moved = sum(not np.array_equal(a["actions"], b["actions"]) for a, b in zip(answers, shuffled, strict=True))
        print(f"  batch_size={rows:<29}{differ:>9} of {calls}{moved:>6} of {calls}{ms:>9.1f}")
    print("  * compared with the same batch size and other neighbors, as in vw2-rollout batch_size=N")


def fixed_answers(agent: VW2Agent, seen: list[Observation], rows: int, *, shuffle: bool = False) -> list[Any]:
    """Return the answers of a fixed batch; shuffled: in another order, each observation keeps its chain."""
    batch = FixedBatch(agent, rows)
    # Another order gives every observation other neighbors in its batch.
    order = np.random.default_rng(1).permutation(len(seen)) if shuffle else np.arange(len(seen))
    answers: dict[int, Any] = {}
    for i in range(0, len(order), rows):
        some = [int(n) for n in order[i : i + rows]]
        answers |= dict(zip(some, batch.infer([(n, seen[n]) for n in some]), strict=True))
    return [answers[n] for n in range(len(seen))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", required=True, help="checkpoint folder, or demonstrator")
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=360)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 3], help="simulator processes to try")
    parser.add_argument("--reference-python", default=sys.executable, help="interpreter that has calvin_env")
    parser.add_argument("--calvin", type=Path, help="checkout of mees/calvin")
    parser.add_argument("--more-packages", default="", help="folder with torch, if that interpreter has none")
    parser.add_argument("--no-agreement", action="store_true", help="only the speed: half the time")
    options = parser.parse_args()
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.chains} chains")
    worlds = {"built-in": "builtin"}
    if options.calvin is not None:
        worlds["original"] = original_assets(options)
        with tempfile.TemporaryDirectory() as folder:
            against_official(options, Path(folder), worlds["original"])
    if options.policy != "demonstrator":  # it acts in the simulator itself, without images
        for name, assets in worlds.items():
            profile(options, name, assets)
        batches(options.policy)


if __name__ == "__main__":
    main()
