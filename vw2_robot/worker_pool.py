"""A pool of worker processes: each free worker gets the next job, so that a slow job delays no other.

Each worker is a fresh process (spawn), or what `start_worker` starts, with a pipe to this one; there are no semaphores
and no files, so neither /dev/shm nor TMPDIR matters. A worker that dies is replaced and its job is started again,
`retries` times before that job is named as the cause. Whatever ends this process ends the workers: on SIGTERM they
clean up and exit, and if this process is killed they notice it themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, NoReturn, Protocol, TypeVar

from vw2_robot.errors import InputError, MissingExtraError, Terminated
from vw2_robot.process import stops_held_back

Job = TypeVar("Job")
Answer = TypeVar("Answer")
ORDERLY_SECONDS = 3.0
"""time for a terminated process to clean up before it is killed"""
_TERMINATED = 128 + signal.SIGTERM
# Parts of messages without a class of their own: torch raises a RuntimeError, an import an ImportError.
_NO_MEMORY = ("out of memory", "can't allocate memory", "failed to map segment from shared object")


class Worker(Protocol):
    """What the pool uses of a worker's process; each process of `multiprocessing` is one."""

    name: str

    @property
    def exitcode(self) -> int | None:
        """Exit code; None while it runs."""

    def is_alive(self) -> bool:
        """Return whether it runs."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class WorkerPool(Generic[Job, Answer]):
    """Worker processes and the job of each.

    Args:
        build: context manager that makes a worker's function from a job to an answer, and cleans up after it; a
            module-level function or a partial of one, since it is called in the worker.
        name: of the workers, "rollout worker".
        arguments: makes the arguments of `build` for each worker; connections among them are closed here.
        retries: times that a job is started again after its worker died.
        on_loss: callback with a message for every worker that died.
        start_worker: starts a process that runs `work(connection, build, arguments)`, from the last two and its name.
    """

    def __init__(
        self,
        build: Callable[..., AbstractContextManager[Callable[[Job], Answer]]],
        *,
        name: str,
        arguments: Callable[[], tuple[Any, ...]] = tuple,
        retries: int = 0,
        on_loss: Callable[[str], None] = lambda message: None,
        start_worker: Callable[[bytes, tuple[Any, ...], str], tuple[Connection, Worker]] | None = None,
    ) -> None:
        self._build = build
        self._name = name
        self._arguments = arguments
        self._retries = retries
        self._on_loss = on_loss
        self._start_worker = start_worker or _spawn_worker
        self._workers: dict[Connection, Worker] = {}
        self._busy: dict[Connection, Job] = {}
        self._lost: Counter[str] = Counter()
        self._started = 0

    def run(self, jobs: Iterable[Job], *, workers: int) -> Generator[Answer]:
        """Yield answers as they come.

        Close the iterator to end early: the workers end with it.

        Args:
            jobs: read one by one when a worker is free; `str(job)` names a job in messages.
            workers: most worker processes at a time.

        Raises:
            InputError: a worker raised one or had no memory left, or a job lost its worker too often.
            OSError, MissingExtraError: a worker raised one.
            RuntimeError: a worker failed otherwise; the message has its traceback.
        """
        again: deque[Job] = deque()
        waiting = iter(jobs)
        try:
            while True:
                # 1. Every free worker gets a job; those of dead workers come first.
                while len(self._busy) < workers:
                    try:
                        job = again.popleft() if again else next(waiting)
                    except StopIteration:
                        break
                    self._dispatch(job)
                if not self._busy:
                    return
                # 2. Wait for an answer, or for the end of a pipe, which is the death of its worker.
                for connection in wait(list(self._busy)):
                    assert isinstance(connection, Connection)
                    try:
                        kind, content = connection.recv()
                    except (EOFError, OSError):
                        again.append(self._remove_dead(connection))
                        continue
                    job = self._busy.pop(connection)
                    if kind != "answer":
                        _raise_again(kind, content, where=str(job), name=self._workers[connection].name)
                    yield content
        finally:
            for connection, process in self._workers.items():
                connection.close()  # an idle worker reads the end of the pipe and exits
                if connection in self._busy:
                    process.terminate()
            end(self._workers.values())
            self._workers.clear()
            self._busy.clear()

    def _dispatch(self, job: Job) -> None:
        """Send a job to an idle worker, or to a new one."""
        idle = [connection for connection in self._workers if connection not in self._busy]
        if idle:
            connection = idle[0]
        else:
            arguments = self._arguments()
            build = pickle.dumps(self._build)  # unpickled, and with it imported, only when the process can be stopped
            connection, process = self._start_worker(build, arguments, f"{self._name} {self._started}")
            for one in arguments:
                if isinstance(one, Connection):
                    one.close()
            self._started += 1
            self._workers[connection] = process
        self._busy[connection] = job
        with contextlib.suppress(OSError):  # already dead: `run` finds out
            connection.send(job)

    def _remove_dead(self, connection: Connection) -> Job:
        """Remove a dead worker, and return the job that it had."""
        process = self._workers.pop(connection)
        job = self._busy.pop(connection)
        connection.close()
        end([process])
        if process.exitcode == _TERMINATED:
            time.sleep(0.2)  # SIGTERM goes to a whole group of processes: this one's may arrive now
        self._lost[str(job)] += 1
        where = f"{process.name} died with {how_it_ended(process)} while it had {job}"
        if self._lost[str(job)] > self._retries:
            advice = ", with fewer workers where memory is short" if process.exitcode == -signal.SIGKILL else ""
            raise InputError(
                f"{where}, which was tried {self._lost[str(job)]} times; what is finished is kept, start again to "
                f"continue{advice}"
            )
        self._on_loss(f"{where}; another one begins it again")
        return job


def start(target: Callable[..., None], *arguments: Any, name: str) -> tuple[Connection, BaseProcess]:
    """Start a fresh process that runs `target(connection, *arguments)`.

    Args:
        target: a module-level function.
        arguments: of `target`, after the connection; they are pickled.
        name: of the process.

    Returns:
        This process's end of the connection, and the process.

    Raises:
        OSError: no file descriptors, processes or memory are left; `name` is in the place of the file name.
    """
    context = multiprocessing.get_context("spawn")
    try:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, *arguments), name=name, daemon=True)
        with stops_held_back():  # also while the process imports, where a signal would end in a traceback
            process.start()
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"start of {name}") from error
    theirs.close()  # so that the end of the process is the end of the pipe
    return ours, process


def how_it_ended(process: Worker) -> str:
    """Return a text for the exit code of a process, with what ended it and the usual cause."""
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "exit code -9 (SIGKILL: from another process, or from the system because memory was short)"
    if code == _TERMINATED:
        return f"exit code {code} (SIGTERM)"
    return f"exit code {code}" + (f" ({signal.Signals(-code).name})" if code is not None and code < 0 else "")


def end(processes: Iterable[Worker]) -> None:
    """Wait for processes that are about to end; kill those that take longer than `ORDERLY_SECONDS`."""
    waiting = list(processes)
    deadline = time.monotonic() + ORDERLY_SECONDS
    for process in waiting:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def live_with_parent(life: Callable[[], None]) -> None:
    """Run the main function of a child process; SIGTERM and the death of its parent raise `Terminated` in it.

    Ctrl-C reaches all processes of a terminal; the parent handles it, the child ignores it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORDERLY_SECONDS)
        os._exit(1)

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the cleaning up
        raise Terminated

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
        life()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway
    except Terminated:
        sys.exit(_TERMINATED)


def _spawn_worker(build: bytes, arguments: tuple[Any, ...], name: str) -> tuple[Connection, Worker]:
    return start(work, build, arguments, name=name)


def work(connection: Connection, build: bytes, arguments: tuple[Any, ...]) -> None:
    """Run a worker process: build, then answer each job until the pipe ends.

    Args:
        connection: to the pool.
        build: of the pool, pickled.
        arguments: of `build`.
    """

    def life() -> None:
        try:
            with pickle.loads(build)(*arguments) as answer:
                while True:
                    try:
                        job = connection.recv()
                    except (EOFError, OSError):  # no more jobs, or the parent is gone
                        break
                    _send(connection, "answer", answer(job))
        except Exception as error:
            _send(connection, *described(error))

    live_with_parent(life)


def described(error: Exception) -> tuple[Literal["error", "memory", "bug"], Any]:
    """Return an exception as a kind and a value that can be sent to another process.

    Errors for users are sent as they are, bugs as their traceback.
    """
    if isinstance(error, OSError):  # made anew: not all subclasses of libraries can be pickled
        arguments = (error.errno, error.strerror, error.filename) if error.errno is not None else (str(error),)
        return "error", OSError(*arguments)
    if isinstance(error, InputError | MissingExtraError):
        return "error", error
    if isinstance(error, MemoryError) or any(part in str(error) for part in _NO_MEMORY):
        return "memory", " ".join(str(error).split())[:300]
    return "bug", traceback.format_exc()


def _raise_again(kind: str, content: Any, *, where: str, name: str) -> NoReturn:
    """Raise what `described` made of a worker's exception."""
    if kind == "error":
        raise InputError(f"{where}: {content}") if type(content) is InputError else content
    if kind == "memory":
        raise InputError(f"{where}: no memory left in {name} ({content}); start again with fewer workers")
    raise RuntimeError(f"{name} failed at {where}:\n{content}")


def _send(connection: Connection, kind: str, content: Any) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        connection.send((kind, content))
