"""Evaluation chains of a small policy in two workers, against the official loop and against their bare parts.

    CALVIN_PYTHON=PYTHON CALVIN_CHECKOUT=DIR python -m benchmarks.speed --part benchmarks.speed.chains --seconds 120

The policy is `builtin:calvin-tiny` on the CPU, called every second control step, with at most `MAX_STEPS` steps for a
subtask. Chains of the official loop end after other steps, since its images differ in their last bits, so costs are
those of a control step. They are what an evaluation of many chains tends to: seconds inside chains, divided by the
workers. The start of the program is a row of its own, and the last row adds it to 100 chains.

- Official loop: one process, its static camera only (benchmarks/official_loop.py), with the same policy. Needs an
  interpreter with `calvin_env` (vw2_robot/envs/calvin_reference.py says how), a checkout of `mees/calvin`.
- Bare parts: the same physics, images and policy calls, each alone in a loop, in two processes at a time; without them
  there is no chain, so this is a bound.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.commands import commands
from vw2_robot.contracts import EvalSequence, Policy
from vw2_robot.envs.benchmark import CalvinBenchmark
from vw2_robot.envs.sequences import make_sequences
from vw2_robot.rollouts.config import RolloutConfig, open_policy_process
from vw2_robot.rollouts.policy_process import PolicyProcess
from vw2_robot.rollouts.recording import recording_path
from vw2_robot.rollouts.workers import ChainJob, Protocol, open_worker
from vw2_robot.worker_pool import WorkerPool

from .row import SpeedRow, interleaved, not_measured

REPO = Path(__file__).resolve().parents[2]
POLICY = "builtin:calvin-tiny"
MAX_STEPS = 60
CHAINS = 4
WORKERS = 2
MANY = 100
HOW_TO_GET = "set CALVIN_PYTHON (an interpreter with calvin_env) and CALVIN_CHECKOUT (a clone of mees/calvin)"


class Chains:
    """The same chains in several ways; each returns the milliseconds of a control step."""

    def __init__(self, folder: Path, policy_process: PolicyProcess, config: RolloutConfig) -> None:
        self._folder = folder
        self._policy_process = policy_process
        self._config = config
        self._chains = make_sequences(CHAINS)
        every = int(policy_process.metadata["n_action_steps"])
        self._protocol = Protocol(n_action_steps=every, seed=0, videos=0, run_dir=folder, record=True)

    def ours(self) -> float:
        """Run the chains in workers."""
        build = functools.partial(open_worker, self._config, self._protocol, self._policy_process.metadata)
        jobs = [ChainJob(chain, {}) for chain in self._chains]
        answers = list(self._in_workers(build, jobs))
        self.steps = sum(sum(row["env_steps"]) for row, _ in answers)
        return self._per_step(seconds for _, seconds in answers)

    def parts(self) -> float:
        """Repeat their physics, images and policy calls in workers; needs the recordings of `ours`."""
        build = functools.partial(open_parts, self._folder, self._protocol.n_action_steps)
        return self._per_step(self._in_workers(build, self._chains))

    def _in_workers(self, build: Any, jobs: list[Any]) -> Iterator[Any]:
        pool: WorkerPool[Any, Any] = WorkerPool(build, name="worker", start_worker=self._policy_process.fork_worker)
        return pool.run(jobs, workers=WORKERS)

    def _per_step(self, seconds: Any) -> float:
        return 1000 * sum(seconds) / WORKERS / self.steps


@contextlib.contextmanager
def official_loop() -> Iterator[Callable[[], float]]:
    """Start the official loop; yield a function that runs its next chain and returns milliseconds of a control step.

    The process is stopped between two calls, so that it costs nothing while something else is measured.
    """
    command = [
        os.environ["CALVIN_PYTHON"],
        "-m",
        "benchmarks.official_loop",
        "--policy",
        POLICY,
        "--out",
        "/dev/stdout",
    ]
    command += ["--calvin", os.environ["CALVIN_CHECKOUT"], "--max-steps", str(MAX_STEPS), "--chains", "0:1000"]
    # Torch, where that interpreter has none.
    command += ["--more-packages", str(Path(np.__file__).parents[1])]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.startswith('{"sequence"'))

    def run() -> float:
        begin = time.perf_counter()
        process.send_signal(signal.SIGCONT)
        row = json.loads(next(lines))
        process.send_signal(signal.SIGSTOP)
        return 1000 * (time.perf_counter() - begin) / sum(row["env_steps"])

    try:
        run()  # the first chain, with the start
        yield run
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def open_parts(folder: Path, every: int, policy: Policy) -> Iterator[Callable[[EvalSequence], float]]:
    """Yield a function that repeats the parts of a recorded chain and returns their seconds.

    Args:
        folder: of the recordings.
        every: control steps of a policy call.
        policy: is called once for each recorded call.
    """
    world = CalvinBenchmark(max_steps=MAX_STEPS)

    def repeat(chain: EvalSequence) -> float:
        with np.load(recording_path(folder, chain.number)) as recording:
            answers = recording["actions"]
        actions = np.concatenate([commands(answer, at_least=every)[:every] for answer in answers])
        world.reset(chain)
        world.begin(chain.subtasks[0])
        begin = time.perf_counter()
        for action in actions:
            world.env.step_physics(action)
        for _ in answers:
            world.env.render_camera("static")
        elapsed = time.perf_counter() - begin
        observation = world.observe()
        begin = time.perf_counter()
        for _ in answers:
            policy.infer(observation)
        return elapsed + time.perf_counter() - begin

    try:
        yield repeat
    finally:
        world.close()


def program_seconds(chains: int, *, workers: int, max_steps: int = MAX_STEPS) -> float:
    """Return the wall-clock seconds of `vw2-rollout`, from its start to its end.

    Args:
        chains: how many to run.
        workers: simulator processes.
        max_steps: control steps of a subtask.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "vw2_robot.rollouts",
            f"policy={POLICY}",
            f"num_sequences={chains}",
            "videos=0",
        ]
        command += [f"workers={workers}", f"env.max_steps={max_steps}", f"run_dir={folder}/run", "device=cpu"]
        begin = time.perf_counter()
        subprocess.run(command, cwd=REPO, capture_output=True, check=True)
        return time.perf_counter() - begin


def growth() -> dict[str, dict[int, float]]:
    """Return the seconds of the program against the number of chains (two workers) and of workers (8 chains)."""
    return {
        "chains": {chains: program_seconds(chains, workers=WORKERS) for chains in (4, 8, 16)},
        "workers": {workers: program_seconds(8, workers=workers) for workers in (1, 2)},
    }


def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return the rows: a control step against the official loop and against its parts, the start, and 100 chains."""
    has_official = {"CALVIN_PYTHON", "CALVIN_CHECKOUT"} <= os.environ.keys()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = {"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "max_steps": MAX_STEPS}
        config = RolloutConfig(policy=POLICY, env=world, run_dir=str(folder), workers=WORKERS, device="cpu")
        policy_process = stack.enter_context(contextlib.closing(open_policy_process(config)))
        chains = Chains(folder, policy_process, config)
        ways = {"ours": chains.ours, "parts": chains.parts}
        if has_official:
            ways["official"] = stack.enter_context(official_loop())
        rounds = interleaved(ways, seconds=seconds / 2, min_rounds=3)
    start = [program_seconds(WORKERS, workers=WORKERS, max_steps=1) for _ in range(2)]
    rounds.costs["start"] = list(itertools.islice(itertools.cycle(start), len(rounds.costs["ours"])))
    per_chain = chains.steps / CHAINS / 1000  # seconds of a chain where a step takes a millisecond
    for way in ("ours", "parts", "official"):
        if way in rounds.costs:
            rounds.costs[f"many, {way}"] = [MANY * per_chain * cost for cost in rounds.costs[way]]
    both = zip(rounds.costs["many, ours"], rounds.costs["start"], strict=True)
    rounds.costs["many, ours"] = [cost + seconds_to_start for cost, seconds_to_start in both]
    bound = {"other": "parts", "against": "physics, image and policy alone, two processes", "wanted": 0.8}
    rows = [rounds.row("control step of a chain", ours="ours", unit="ms/step", **bound)]
    name = f"{MANY} chains with start"
    if has_official:
        peer = {"other": "many, official", "against": "official loop without its start", "wanted": 16.0}
        return [*rows, rounds.row(name, ours="many, ours", unit="s", **peer)]
    return [*rows, not_measured(name, unit="s", against="official loop", wanted=16.0, why=HOW_TO_GET)]
