"""A chain as a job for a worker process, and what a worker needs for it.

Each worker has a benchmark of its own; chains are handed out one by one (`vw2_robot.worker_pool`). Since a row depends
on (policy, chain, seed) only, neither the number of workers nor the death of one shows in the results. What is kept of
a chain beside its row is on disk before the row is handed back. The policy is in a process of its own
(`policy_process`) or, if it is bound to a world, in the worker.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vw2_robot.contracts import Benchmark, EvalSequence, Policy

from .config import RolloutConfig, open_benchmark, open_policy
from .evaluate import RolloutCallback, Row, run_chain
from .policy_process import RemotePolicy
from .recording import Recording
from .video import Video, select_chains


@dataclass(frozen=True)
class Protocol:
    """What is equal for all chains of an evaluation."""

    n_action_steps: int
    seed: int
    videos: int
    run_dir: Path
    record: bool = False


@dataclass(frozen=True)
class ChainJob:
    """One chain, and the chains whose videos are kept so far (number -> solved)."""

    sequence: EvalSequence
    kept: Mapping[int, int]

    def __str__(self) -> str:
        """The chain's number, for messages."""
        return f"chain {self.sequence.number}"


def run_job(policy: Policy, benchmark: Benchmark, job: ChainJob, protocol: Protocol) -> tuple[Row, float]:
    """Run one chain; what is kept of it beside the row is on disk before the row is returned."""
    begin = time.perf_counter()
    video = Video(control_hz=benchmark.control_hz, n_action_steps=protocol.n_action_steps) if protocol.videos else None
    recording = Recording() if protocol.record else None
    callbacks: list[RolloutCallback] = [one for one in (video, recording) if one is not None]
    if hasattr(policy, "chain"):  # behind a batch of fixed shape
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
    if video is not None and number in select_chains({**job.kept, number: row["solved"]}, protocol.videos):
        words = [benchmark.instruction(task) for task in row["subtasks"]]
        video.write(protocol.run_dir / "videos", row, instructions=words)
    return row, seconds


@contextmanager
def open_worker(
    config: RolloutConfig, protocol: Protocol, metadata: dict[str, Any], connection: Connection | None = None
) -> Iterator[Callable[[ChainJob], tuple[Row, float]]]:
    """A worker's benchmark and policy, as the function that runs a chain; no connection: the policy lives here."""
    benchmark = open_benchmark(config.env)
    try:
        policy = open_policy(config, benchmark) if connection is None else RemotePolicy(connection, metadata)
        yield functools.partial(run_job, policy, benchmark, protocol=protocol)
    finally:
        benchmark.close()
