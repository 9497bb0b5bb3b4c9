"""Chains spread over simulator processes: same rows, less waiting, and a killed worker costs one chain's time.

Each worker is a fresh process (spawn) with a benchmark of its own; chains are handed out one by one, so a slow chain
holds up nobody. A worker that dies is replaced and its chain begun again from the start, `retries` times before that
chain is named as the cause. Since a row depends on (policy, chain, seed) only, none of this shows in the results. Rows
that came in are already on disk. The policy is in a process of its own (`policy_process`) or, if it is bound to a
world, in the worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vw2_robot.contracts import Benchmark, EvalSequence, Policy
from vw2_robot.errors import InputError, MissingExtraError

from .evaluate import Row, Watcher, run_chain
from .policy_process import PolicyLostError, PolicyProcess, end_with_parent
from .recording import Recording
from .video import Film, select_chains

Build = Callable[[], tuple[Policy, Benchmark]]
OnRow = Callable[[Row, float], None]


@dataclass(frozen=True)
class Protocol:
    """What is equal for all chains of an evaluation."""

    replan_every: int
    seed: int
    videos: int
    run_dir: Path
    record: bool = False


@dataclass(frozen=True)
class Job:
    """One chain, and the chains whose videos are kept so far (number -> solved)."""

    sequence: EvalSequence
    kept: Mapping[int, int]


def run_job(policy: Policy, benchmark: Benchmark, job: Job, protocol: Protocol) -> tuple[Row, float]:
    """Run one chain; what is kept of it beside the row is on disk before the row is returned."""
    begin = time.perf_counter()
    film = Film(control_hz=benchmark.control_hz, replan_every=protocol.replan_every) if protocol.videos else None
    recording = Recording() if protocol.record else None
    watchers: list[Watcher] = [one for one in (film, recording) if one is not None]
    if hasattr(policy, "chain"):  # behind a batch of fixed shape
        policy.chain = job.sequence.number
    row = run_chain(
        policy,
        benchmark,
        job.sequence,
        replan_every=protocol.replan_every,
        seed=protocol.seed,
        watchers=watchers,
    )
    seconds = time.perf_counter() - begin
    number = row["sequence"]
    if recording is not None:
        recording.write(protocol.run_dir, row)
    if film is not None and number in select_chains({**job.kept, number: row["solved"]}, protocol.videos):
        words = [benchmark.instruction(task) for task in row["subtasks"]]
        film.write(protocol.run_dir / "videos", row, instructions=words)
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


class Crew:
    """Worker processes and what each of them is doing.

    Args:
        build: makes a worker's policy and benchmark; picklable (a module-level function or a partial of one).
        policy: the process that all workers ask, if there is one.
        retries: times that a chain is begun again after the worker that ran it died.
        say: told of every loss.
    """

    def __init__(
        self,
        build: Build,
        protocol: Protocol,
        *,
        policy: PolicyProcess | None = None,
        retries: int = 0,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._build, self._protocol, self._policy = build, protocol, policy
        self._retries, self._say = retries, say
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[Connection, Any] = {}
        self._busy: dict[Connection, EvalSequence] = {}
        self._lost: Counter[int] = Counter()
        self._started = 0

    def run(
        self,
        sequences: Sequence[EvalSequence],
        *,
        workers: int,
        kept: Callable[[], Mapping[int, int]],
        on_row: OnRow,
    ) -> None:
        """Run the chains, `workers` at a time. What `on_row` raises ends the run.

        Raises:
            InputError: a worker met one, a chain lost its worker too often, or the policy's process died.
            RuntimeError: a worker failed otherwise; carries its traceback.
        """
        waiting = deque(sequences)
        try:
            while waiting or self._busy:
                while waiting and len(self._busy) < workers:
                    self._hand_out(waiting.popleft(), kept())
                for connection in self._ready():
                    answer = self._receive(connection)
                    sequence = self._busy.pop(connection)
                    if answer is None:
                        self._replace(connection, sequence)
                        waiting.appendleft(sequence)
                    else:
                        on_row(*answer)
        finally:
            self._dismiss()

    def _hand_out(self, sequence: EvalSequence, kept: Mapping[int, int]) -> None:
        idle = [connection for connection in self._members if connection not in self._busy]
        connection = idle[0] if idle else self._hire()
        self._busy[connection] = sequence
        with contextlib.suppress(OSError):  # already dead: `_receive` finds out
            connection.send(Job(sequence, dict(kept)))

    def _hire(self) -> Connection:
        ours, theirs = self._context.Pipe()
        name = f"rollout worker {self._started}"
        process = self._context.Process(
            target=_work, args=(theirs, self._build, self._protocol), name=name, daemon=True
        )
        process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        self._started += 1
        self._members[ours] = process
        return ours

    def _ready(self) -> list[Connection]:
        """Wait for workers with an answer, or for the end of the policy."""
        policy = self._policy
        found = wait([*self._busy, *([policy.process.sentinel] if policy is not None else [])])
        connections = [one for one in found if isinstance(one, Connection)]
        if policy is not None and not connections:
            raise policy.death()
        return connections

    def _receive(self, connection: Connection) -> tuple[Row, float] | None:
        """A worker's row and seconds; None if it died."""
        process, number = self._members[connection], self._busy[connection].number
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            return None
        if kind == "input":
            raise InputError(f"chain {number}: {content}")
        if kind == "bug":
            raise RuntimeError(f"{process.name} failed at chain {number}:\n{content}")
        if kind == "policy lost":
            assert self._policy is not None
            raise self._policy.death()
        row, seconds = content
        return row, seconds

    def _replace(self, connection: Connection, sequence: EvalSequence) -> None:
        """Take a dead worker off the list; `_hand_out` hires another."""
        process = self._members.pop(connection)
        connection.close()
        process.join()
        self._lost[sequence.number] += 1
        where = f"{process.name} died with exit code {process.exitcode} while it ran chain {sequence.number}"
        if self._lost[sequence.number] > self._retries:
            raise InputError(
                f"{where} {list(sequence.subtasks)}, which was tried {self._lost[sequence.number]} times; finished "
                "chains are kept. Often this is memory: start again with fewer workers"
            )
        self._say(f"{where}; another one runs the chain again")

    def _dismiss(self) -> None:
        for connection, process in self._members.items():
            connection.close()  # an idle worker reads the end of the pipe and leaves
            if connection in self._busy:
                process.terminate()
        for process in self._members.values():
            process.join()


def _work(connection: Connection, build: Build, protocol: Protocol) -> None:
    """The life of a worker: build, then answer each job until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    try:
        policy, benchmark = build()
        for job in _jobs(connection):
            _answer(connection, "row", run_job(policy, benchmark, job, protocol))
        benchmark.close()
    except PolicyLostError:
        _answer(connection, "policy lost", None)
    except (InputError, MissingExtraError) as error:
        _answer(connection, "input", str(error))
    except Exception:  # whatever it is, the parent shows it
        _answer(connection, "bug", traceback.format_exc())


def _jobs(connection: Connection) -> Iterator[Job]:
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):  # no more chains, or the parent is gone
            return
        yield job


def _answer(connection: Connection, kind: str, content: Any) -> None:
    with contextlib.suppress(OSError):  # the parent is gone: nobody to tell
        connection.send((kind, content))
