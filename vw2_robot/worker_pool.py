"""Worker processes that work off a list of jobs: handed out one by one, so that a slow job holds up nobody.

Each worker is a fresh process (spawn) with a pipe to this one; there are no semaphores and no files, so neither
/dev/shm nor TMPDIR matters. A worker that dies is replaced and its job begun again, `retries` times before that job is
named as the cause. Whatever ends this process ends the workers: told by SIGTERM they clean up and leave, and where this
process was killed they notice it themselves.
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
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, NoReturn, TypeVar

from vw2_robot.errors import InputError, MissingExtraError, Terminated
from vw2_robot.process import stops_held_back

Job = TypeVar("Job")
Answer = TypeVar("Answer")
ORDERLY_SECONDS = 3.0
"""How long a process that was told to end may take to clean up before it is killed."""
_TOLD_TO_END = 128 + signal.SIGTERM
# What torch says in a RuntimeError, and an import in an ImportError.
_NO_MEMORY = ("out of memory", "can't allocate memory", "failed to map segment from shared object")


class WorkerPool(Generic[Job, Answer]):
    """Workers and what each of them is doing.

    Args:
        build: makes a worker's function from a job to an answer, and cleans up behind it; a module-level function or a
            partial of one, since it is called in the worker.
        name: of the workers, "rollout worker".
        arguments: what `build` is given, made anew for every worker; connections among them are closed here.
        retries: times that a job is begun again after the worker that had it died.
        on_loss: told of every death.
    """

    def __init__(
        self,
        build: Callable[..., AbstractContextManager[Callable[[Job], Answer]]],
        *,
        name: str,
        arguments: Callable[[], tuple[Any, ...]] = tuple,
        retries: int = 0,
        on_loss: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._build, self._name, self._arguments = build, name, arguments
        self._retries, self._on_loss = retries, on_loss
        self._workers: dict[Connection, BaseProcess] = {}
        self._busy: dict[Connection, Job] = {}
        self._lost: Counter[str] = Counter()
        self._started = 0

    def run(self, jobs: Iterable[Job], *, workers: int) -> Generator[Answer]:
        """Yield answers as they come; jobs are taken from `jobs` when a worker is free. `str(job)` names a job.

        Close the iterator to end early: the workers end with it.

        Raises:
            InputError: a worker met one or had no memory left, or a job lost its worker too often.
            OSError, MissingExtraError: a worker met one.
            RuntimeError: a worker failed otherwise; carries its traceback.
        """
        again: deque[Job] = deque()
        waiting = iter(jobs)
        try:
            while True:
                while len(self._busy) < workers:
                    try:
                        job = again.popleft() if again else next(waiting)
                    except StopIteration:
                        break
                    self._dispatch(job)
                if not self._busy:
                    return
                for connection in wait(list(self._busy)):
                    assert isinstance(connection, Connection)
                    try:
                        kind, content = connection.recv()
                    except (EOFError, OSError):
                        again.append(self._bury(connection))
                        continue
                    job = self._busy.pop(connection)
                    if kind != "answer":
                        _raise_again(kind, content, where=str(job), name=self._workers[connection].name)
                    yield content
        finally:
            self._shutdown()

    def _dispatch(self, job: Job) -> None:
        idle = [connection for connection in self._workers if connection not in self._busy]
        connection = idle[0] if idle else self._spawn()
        self._busy[connection] = job
        with contextlib.suppress(OSError):  # already dead: `run` finds out
            connection.send(job)

    def _spawn(self) -> Connection:
        arguments = self._arguments()
        build = pickle.dumps(self._build)  # unpickled, and with it imported, only when the process can be stopped
        connection, process = start(_work, build, arguments, name=f"{self._name} {self._started}")
        for one in arguments:
            if isinstance(one, Connection):
                one.close()
        self._started += 1
        self._workers[connection] = process
        return connection

    def _bury(self, connection: Connection) -> Job:
        """Take a dead worker off the list; returns the job that it had."""
        process, job = self._workers.pop(connection), self._busy.pop(connection)
        connection.close()
        end([process])
        if process.exitcode == _TOLD_TO_END:
            time.sleep(0.2)  # a stop goes to a whole group of processes: ours arrives now
        self._lost[str(job)] += 1
        where = f"{process.name} died with {how_it_ended(process)} while it had {job}"
        if self._lost[str(job)] > self._retries:
            advice = ", with fewer workers where memory is short" if process.exitcode == -signal.SIGKILL else ""
            raise InputError(
                f"{where}, which was tried {self._lost[str(job)]} times; what is finished is kept, start again to go "
                f"on{advice}"
            )
        self._on_loss(f"{where}; another one begins it again")
        return job

    def _shutdown(self) -> None:
        for connection, process in self._workers.items():
            connection.close()  # an idle worker reads the end of the pipe and leaves
            if connection in self._busy:
                process.terminate()
        end(self._workers.values())
        self._workers.clear()
        self._busy.clear()


def start(target: Callable[..., None], *arguments: Any, name: str) -> tuple[Connection, BaseProcess]:
    """Start a fresh process that runs `target(connection, *arguments)`; returns the other end of that connection.

    Raises:
        OSError: no file descriptors, no processes or no memory are left; `name` stands for the file.
    """
    context = multiprocessing.get_context("spawn")
    try:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, *arguments), name=name, daemon=True)
        with stops_held_back():  # also while it imports, which is no time to be told anything
            process.start()
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"start of {name}") from error
    theirs.close()  # so that the end of the process is the end of the pipe
    return ours, process


def how_it_ended(process: BaseProcess) -> str:
    """The exit code of a process in words: what killed it, and why that often happens."""
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "exit code -9 (SIGKILL: killed by somebody, or by the system because memory was short)"
    if code == _TOLD_TO_END:
        return f"exit code {code} (it was told to end)"
    return f"exit code {code}" + (f" ({signal.Signals(-code).name})" if code is not None and code < 0 else "")


def end(processes: Iterable[BaseProcess]) -> None:
    """Wait for processes that were told to end; kill those that take too long."""
    waiting, deadline = list(processes), time.monotonic() + ORDERLY_SECONDS
    for process in waiting:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def live_with_parent(life: Callable[[], None]) -> None:
    """All that a process does: `life`, left by `Terminated` on SIGTERM, and also when the process's parent is gone.

    Ctrl-C reaches all processes of a terminal; it is the parent's to handle.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORDERLY_SECONDS)
        os._exit(1)

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
        life()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it leaves already
    except Terminated:
        sys.exit(_TOLD_TO_END)


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: cleaning up is under way
    raise Terminated


def _work(connection: Connection, build: bytes, arguments: tuple[Any, ...]) -> None:
    """The life of a worker: build, then answer each job until the pipe ends."""

    def life() -> None:
        try:
            with pickle.loads(build)(*arguments) as answer:
                for job in _jobs(connection):
                    _send(connection, "answer", answer(job))
        except Exception as error:
            _send(connection, *described(error))

    live_with_parent(life)


def described(error: Exception) -> tuple[Literal["error", "memory", "bug"], Any]:
    """An exception for the way to another process: as it is where a person is to read it, a bug with its traceback."""
    if isinstance(error, OSError):  # built anew: not all of the libraries' own kinds survive the way
        told = (error.errno, error.strerror, error.filename) if error.errno is not None else (str(error),)
        return "error", OSError(*told)
    if isinstance(error, InputError | MissingExtraError):
        return "error", error
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        return "memory", " ".join(str(error).split())[:300]
    return "bug", traceback.format_exc()


def _raise_again(kind: str, content: Any, *, where: str, name: str) -> NoReturn:
    if kind == "error":
        raise InputError(f"{where}: {content}") if type(content) is InputError else content
    if kind == "memory":
        raise InputError(f"{where}: no memory left in {name} ({content}); start again with fewer workers")
    raise RuntimeError(f"{name} failed at {where}:\n{content}")


def _jobs(connection: Connection) -> Iterator[Any]:
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):  # no more jobs, or the parent is gone
            return
        yield job


def _send(connection: Connection, kind: str, content: Any) -> None:
    with contextlib.suppress(OSError):  # the parent is gone: nobody to tell
        connection.send((kind, content))
