"""The rollout worker: runs one chain as a job, in this process or in a worker process.

Each worker has its own benchmark and gets one chain at a time (`vw2_robot.worker_pool`). A row depends on (policy,
chain, seed) only, so neither the number of workers nor the death of one changes the results. The policy lives in the
policy process, or in the worker: built there if it needs the simulator, inherited from the policy process on a CPU
(`policy_process`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vw2_robot.contracts import Benchmark, EvalSequence, Policy, action_names

from .config import RolloutConfig, open_benchmark, open_policy
from .evaluate import RolloutCallback, Row, run_chain
from .policy_process import RemotePolicy
from .recording import Recording
from .video import ChainVideo, select_chains


@dataclass(frozen=True)
class Protocol:
    """The settings that all chains of an evaluation share.

    Attributes:
        n_action_steps: Actions executed per policy call.
        seed: Seed of the evaluation.
        videos: Number of chains to keep a video of.
        run_dir: Folder of the rollout.
        record: Write a recording of each chain.
        animations: Write an animated image beside each video.
    """

    n_action_steps: int
    seed: int
    videos: int
    run_dir: Path
    record: bool = False
    animations: bool = False


@dataclass(frozen=True)
class ChainJob:
    """One chain to run, and the chains whose videos are kept so far."""

    sequence: EvalSequence
    video_chains: tuple[Row, ...]

    def __str__(self) -> str:
        """Return the chain's number, for messages."""
        return f"chain {self.sequence.number}"


def run_job(policy: Policy, benchmark: Benchmark, job: ChainJob, protocol: Protocol) -> tuple[Row, float]:
    """Run one chain. Its video and its recording are on disk before the row is returned.

    Args:
        policy: The policy to evaluate.
        benchmark: The worker's benchmark.
        job: The chain.
        protocol: Settings of the evaluation.

    Returns:
        The chain's row and the seconds that it took.
    """
    # Time inside the chain only: writing video and recording is not counted.
    begin = time.perf_counter()
    video = (
        ChainVideo(control_hz=benchmark.control_hz, n_action_steps=protocol.n_action_steps) if protocol.videos else None
    )
    recording = Recording() if protocol.record else None
    callbacks: list[RolloutCallback] = [one for one in (video, recording) if one is not None]
    if hasattr(policy, "chain"):  # LocalPolicy, RemotePolicy: the row of the batch
        policy.chain = job.sequence.number
    row = run_chain(
        policy,
        benchmark,
        job.sequence,
        n_action_steps=protocol.n_action_steps,
        seed=protocol.seed,
        callbacks=callbacks,
    )
    seconds = time.perf_counter() - begin
    number = row["sequence"]
    if recording is not None:
        recording.write(protocol.run_dir, row)
    # `select_chains` never selects a chain later that it has rejected once, so a rejected video can be dropped here.
    if video is not None and number in select_chains([*job.video_chains, row], protocol.videos):
        instructions = [benchmark.instruction(task) for task in row["subtasks"]]
        names = action_names(policy.metadata)
        folder = protocol.run_dir / "videos"
        video.write(folder, row, instructions=instructions, names=names, animation=protocol.animations)
    return row, seconds


@contextmanager
def open_worker(
    config: RolloutConfig, protocol: Protocol, metadata: dict[str, Any], source: Connection | Policy | None = None
) -> Iterator[Callable[[ChainJob], tuple[Row, float]]]:
    """Open a worker's benchmark and policy, and yield the function that runs a chain.

    Args:
        config: Configuration of the rollout.
        protocol: Settings of the evaluation.
        metadata: The policy's metadata.
        source: Connection to the policy process, or the policy itself; None: the policy is built in this worker.
    """
    benchmark = open_benchmark(config.env)
    try:
        policy: Policy
        if isinstance(source, Connection):
            policy = RemotePolicy(source, metadata)
        else:
            policy = open_policy(config, benchmark) if source is None else source
        yield functools.partial(run_job, policy, benchmark, protocol=protocol)
    finally:
        benchmark.close()
