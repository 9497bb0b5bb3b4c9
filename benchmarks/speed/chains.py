"""Evaluation chains of a small policy in two workers, against the official loop and against their bare parts.

    CALVIN_PYTHON=PYTHON CALVIN_CHECKOUT=DIR python -m benchmarks.speed --part benchmarks.speed.chains --seconds 120

The policy is `builtin:calvin-tiny` on the CPU, called every fourth control step, with at most `MAX_STEPS` steps for a
subtask. Costs are CPU time divided by the workers: a forked worker waits for nobody, so that is what many chains take
on so many free cores, and other work on the machine counts little. Chains of the official loop end after other steps,
since its images differ in their last bits, so costs are compared for a control step. 100 chains are that, times their
steps, and the CPU time of a whole start and end of the program (all its processes, one after the other).

- Official loop: one process, its static camera only (benchmarks/official_loop.py), with the same policy; its start is
  not counted. Needs an interpreter with `calvin_env` (vw2_robot/envs/calvin_reference.py says how) and a checkout of
  `mees/calvin`.
- Bare parts: the same physics, images and policy calls, each alone in a loop, in two processes at a time; without them
  there is no chain, so this is a bound.

`growth()` measures the wall-clock time of the whole program.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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

from .row import Rounds, SpeedRow, interleaved, not_measured

REPO = Path(__file__).resolve().parents[2]
POLICY = "builtin:calvin-tiny"
MAX_STEPS = 60
EVERY = 4
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
        self._protocol = Protocol(n_action_steps=EVERY, seed=0, videos=0, run_dir=folder, record=True)

    def ours(self) -> float:
        """Run the chains in workers."""
        build = functools.partial(open_timed, self._config, self._protocol)
        answers = list(self._in_workers(build, [ChainJob(chain, {}) for chain in self._chains]))
        self.steps = sum(steps for steps, _ in answers)
        return self._per_step(seconds for _, seconds in answers)

    def parts(self) -> float:
        """Repeat their physics, images and policy calls in workers; needs the recordings of `ours`."""
        return self._per_step(self._in_workers(functools.partial(open_parts, self._folder), self._chains))

    def _in_workers(self, build: Any, jobs: list[Any]) -> Iterator[Any]:
        pool: WorkerPool[Any, Any] = WorkerPool(build, name="worker", start_worker=self._policy_process.fork_worker)
        return pool.run(jobs, workers=WORKERS)

    def _per_step(self, seconds: Iterable[float]) -> float:
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
    command += ["--calvin", os.environ["CALVIN_CHECKOUT"], "--chains", "0:1000"]
    command += ["--max-steps", str(MAX_STEPS), "--n-action-steps", str(EVERY)]
    # Torch, where that interpreter has none.
    command += ["--more-packages", str(Path(np.__file__).parents[1])]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.startswith('{"sequence"'))

    def run() -> float:
        begin = cpu_seconds(process.pid)
        process.send_signal(signal.SIGCONT)
        row = json.loads(next(lines))
        process.send_signal(signal.SIGSTOP)
        return 1000 * (cpu_seconds(process.pid) - begin) / sum(row["env_steps"])

    try:
        run()  # the first chain, with the start
        yield run
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def open_timed(
    config: RolloutConfig, protocol: Protocol, policy: Policy
) -> Iterator[Callable[[ChainJob], tuple[int, float]]]:
    """Open a worker; yield a function that runs a chain and returns its control steps and CPU seconds."""
    with open_worker(config, protocol, policy.metadata, policy) as run:

        def timed(job: ChainJob) -> tuple[int, float]:
            begin = time.process_time()
            row, _ = run(job)
            return sum(row["env_steps"]), time.process_time() - begin

        yield timed


@contextlib.contextmanager
def open_parts(folder: Path, policy: Policy) -> Iterator[Callable[[EvalSequence], float]]:
    """Yield a function that repeats the parts of a chain, recorded in `folder`, and returns their CPU seconds."""
    world = CalvinBenchmark(max_steps=MAX_STEPS)

    def repeat(chain: EvalSequence) -> float:
        with np.load(recording_path(folder, chain.number)) as recording:
            answers = recording["actions"]
        actions = np.concatenate([commands(answer, at_least=EVERY)[:EVERY] for answer in answers])
        world.reset(chain)
        world.begin(chain.subtasks[0])
        observation = world.observe()
        begin = time.process_time()
        for action in actions:
            world.env.step_physics(action)
        for _ in answers:
            world.env.render_camera("static")
        for _ in answers:
            policy.infer(observation)
        return time.process_time() - begin

    try:
        yield repeat
    finally:
        world.close()


def run_program(chains: int, *, workers: int = WORKERS, max_steps: int = MAX_STEPS) -> tuple[float, float]:
    """Run `vw2-rollout` from its start to its end; return wall-clock seconds, and CPU seconds of all its processes.

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
        command += [f"workers={workers}", f"env.max_steps={max_steps}", f"n_action_steps={EVERY}", "device=cpu"]
        begin = time.perf_counter()
        before = os.times()
        subprocess.run([*command, f"run_dir={folder}/run"], cwd=REPO, capture_output=True, check=True)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return time.perf_counter() - begin, cpu


def growth() -> dict[str, dict[int, float]]:
    """Return wall-clock seconds of the program by number of chains (two workers), and by workers (8 chains)."""
    return {
        "chains": {chains: run_program(chains)[0] for chains in (4, 8, 16)},
        "workers": {workers: run_program(8, workers=workers)[0] for workers in (1, 2)},
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
    bound = {"other": "parts", "against": "its physics, images and policy calls alone", "wanted": 0.8}
    rows = [rounds.row("control step of a chain", ours="ours", unit="ms/step", **bound)]
    name = f"{MANY} chains with start"
    if not has_official:
        return [*rows, not_measured(name, unit="s", against="official loop", wanted=16.0, why=HOW_TO_GET)]
    start = min(run_program(WORKERS, max_steps=1)[1] for _ in range(2))
    steps = MANY * chains.steps / CHAINS / 1000  # thousands: costs are in milliseconds
    many = Rounds(
        {
            "ours": [start + steps * cost for cost in rounds.costs["ours"]],
            "official": [steps * cost for cost in rounds.costs["official"]],
        }
    )
    why = f"{start:.1f} s of it start"
    return [
        *rows,
        many.row(name, ours="ours", other="official", against="official loop", unit="s", wanted=16.0, why=why),
    ]
