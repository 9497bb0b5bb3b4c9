"""Chains spread over processes: same rows, less waiting.

Each worker is a fresh process (spawn) that builds its own benchmark and its own policy; chains are handed out one by
one, so a slow chain holds up nobody. A worker that dies is an error naming the chain it had, never a wait without end;
rows that came in before are already on disk.

The parent speaks to a worker through `Job` and a pair (row, seconds) alone. A batched policy server would take the
place of the policy that `build` returns: nothing else here would change.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, MissingExtraError

from .evaluate import Row, run_chain
from .video import Film, select_chains

Build = Callable[[], tuple[Policy, Benchmark]]
OnRow = Callable[[Row, float], None]


@dataclass(frozen=True)
class Protocol:
    """What is equal for all chains of an evaluation."""

    replan_every: int
    seed: int
    videos: int
    video_dir: Path


@dataclass(frozen=True)
class Job:
    """One chain, and the chains whose videos are kept so far (number -> solved)."""

    sequence: EvalSequence
    kept: Mapping[int, int]


def run_job(policy: Policy, benchmark: Benchmark, job: Job, protocol: Protocol) -> tuple[Row, float]:
    """Run one chain; its video, if it is among those to keep, is on disk before the row is returned."""
    begin = time.perf_counter()
    film = None
    if protocol.videos:
        film = Film(control_hz=benchmark.control_hz, replan_every=protocol.replan_every)
    row = run_chain(
        policy,
        benchmark,
        job.sequence,
        replan_every=protocol.replan_every,
        seed=protocol.seed,
        look=film.look if film is not None else None,
    )
    seconds = time.perf_counter() - begin
    number = row["sequence"]
    if film is not None and number in select_chains({**job.kept, number: row["solved"]}, protocol.videos):
        words = [benchmark.instruction(task) for task in row["subtasks"]]
        film.write(protocol.video_dir, row, instructions=words)
    return row, seconds


def run_alone(
    policy: Policy,
    benchmark: Benchmark,
    sequences: Sequence[EvalSequence],
    protocol: Protocol,
    *,
    kept: Callable[[], Mapping[int, int]],
    on_row: OnRow,
) -> None:
    """All chains in this process."""
    for sequence in sequences:
        on_row(*run_job(policy, benchmark, Job(sequence, kept()), protocol))


def run_in_workers(
    build: Build,
    sequences: Sequence[EvalSequence],
    protocol: Protocol,
    *,
    workers: int,
    kept: Callable[[], Mapping[int, int]],
    on_row: OnRow,
) -> None:
    """All chains in `workers` processes. `build` must be picklable (a module-level function or a partial of one).

    Raises:
        InputError: a worker met one, or died.
        RuntimeError: a worker failed otherwise; carries its traceback.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(sequences)
    crew: dict[Connection, Any] = {}
    busy: dict[Connection, EvalSequence] = {}

    def hand_out(connection: Connection) -> None:
        if waiting:
            busy[connection] = waiting.popleft()
            with contextlib.suppress(ConnectionError):  # already dead: `_receive` finds out and says why
                connection.send(Job(busy[connection], dict(kept())))

    try:
        for number in range(min(workers, len(sequences))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, build, protocol), name=f"rollout worker {number}", daemon=True
            )
            process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            crew[ours] = process
            hand_out(ours)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                row, seconds = _receive(connection, crew[connection], busy[connection])
                del busy[connection]
                on_row(row, seconds)
                hand_out(connection)
    finally:
        for connection, process in crew.items():
            connection.close()  # an idle worker reads the end of the pipe and leaves
            if connection in busy:
                process.terminate()
        for process in crew.values():
            process.join()


def _receive(connection: Connection, process: Any, sequence: EvalSequence) -> tuple[Row, float]:
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise InputError(
            f"{process.name} died with exit code {process.exitcode} while it ran chain {sequence.number} "
            f"{list(sequence.subtasks)}; finished chains are kept. Often this is memory: start again with fewer workers"
        ) from None
    if kind == "input":
        raise InputError(f"chain {sequence.number}: {content}")
    if kind == "bug":
        raise RuntimeError(f"{process.name} failed at chain {sequence.number}:\n{content}")
    row, seconds = content
    return row, seconds


def _work(connection: Connection, build: Build, protocol: Protocol) -> None:
    """The life of a worker: build, then answer each job until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        policy, benchmark = build()
        for job in _jobs(connection):
            _answer(connection, "row", run_job(policy, benchmark, job, protocol))
        benchmark.close()
    except (InputError, MissingExtraError) as error:
        _answer(connection, "input", str(error))
    except Exception:
        _answer(connection, "bug", traceback.format_exc())


def _jobs(connection: Connection) -> Iterator[Job]:
    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionError):  # no more chains, or the parent is gone
            return
        yield job


def _answer(connection: Connection, kind: str, content: Any) -> None:
    with contextlib.suppress(ConnectionError):  # the parent is gone: nobody to tell
        connection.send((kind, content))
