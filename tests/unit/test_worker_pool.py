"""Jobs in worker processes: answers, errors as they were, deaths, and an end that leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.worker_pool import WorkerPool

# Importable by name, here and in the workers.
JOBS = """
import os, signal, sys, time
from contextlib import contextmanager
from pathlib import Path
from vw2_robot.errors import InputError, MissingExtraError

@contextmanager
def build(folder):
    mine = Path(folder, f"open_{os.getpid()}")
    mine.touch()
    try:
        yield work
    finally:
        mine.unlink()

def work(job):
    if job == "file":
        open("/nowhere/x")
    if job == "memory":
        raise MemoryError("Unable to allocate 9 GiB")
    if job == "torch":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    if job == "input":
        raise InputError("no such table")
    if job == "extra":
        raise MissingExtraError("install it")
    if job == "bug":
        raise ZeroDivisionError("a bug of ours")
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "sleep":
        time.sleep(60)
    return job, os.getpid()

def main():
    from functools import partial
    from vw2_robot.command_line.program import orderly
    from vw2_robot.worker_pool import WorkerPool
    with orderly("test"):
        for _ in WorkerPool(partial(build, sys.argv[1]), name="worker").run(["sleep"] * 2, workers=2):
            pass

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "jobs_of_a_test.py").write_text(JOBS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield __import__("jobs_of_a_test")


def test_every_job_is_answered_once_and_no_worker_is_left(jobs: ModuleType, tmp_path: Path) -> None:
    pool: WorkerPool[int, tuple[int, int]] = WorkerPool(partial(jobs.build, tmp_path), name="worker")
    answers = list(pool.run(range(7), workers=2))
    assert sorted(number for number, _ in answers) == list(range(7))
    assert len({process for _, process in answers}) <= 2
    assert not list(tmp_path.iterdir())  # each of them has cleaned up


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ("file", FileNotFoundError, r"No such file or directory: '/nowhere/x'"),
        ("memory", InputError, r"memory: no memory left in worker 0 \(Unable to allocate 9 GiB\); .*fewer workers"),
        ("torch", InputError, "torch: no memory left in worker 0"),
        ("input", InputError, "^input: no such table$"),
        ("extra", MissingExtraError, "^install it$"),
        ("bug", RuntimeError, r"worker 0 failed at bug:\nTraceback(.|\n)*a bug of ours"),
    ],
)
def test_an_error_of_a_worker_is_raised_here_as_what_it_was(
    jobs: ModuleType, tmp_path: Path, job: str, error: type[Exception], message: str
) -> None:
    pool: WorkerPool[str, object] = WorkerPool(partial(jobs.build, tmp_path), name="worker")
    with pytest.raises(error, match=message):
        list(pool.run([job], workers=1))
    assert not list(tmp_path.iterdir())


def test_a_dead_worker_is_replaced_as_often_as_asked(jobs: ModuleType, tmp_path: Path) -> None:
    told: list[str] = []
    pool: WorkerPool[str, object] = WorkerPool(
        partial(jobs.build, tmp_path), name="worker", retries=1, on_loss=told.append
    )
    with pytest.raises(
        InputError, match=r"worker 1 died with exit code -9 \(SIGKILL.* had die, which was tried 2 times"
    ):
        list(pool.run(["die"], workers=1))
    assert len(told) == 1
    assert "worker 0 died" in told[0]
    assert "another one begins it again" in told[0]


def test_a_process_that_cannot_be_started_is_named(jobs: ModuleType, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pool: WorkerPool[str, object] = WorkerPool(partial(jobs.build, tmp_path), name="worker")
    gc.collect()  # what other tests left open must not be closed in between
    os.close(lowest := os.dup(0))  # the first number that is free; those above count as open, too
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files: 'start of worker 0'"):
            list(pool.run(["file"], workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_the_workers_which_clean_up(
    jobs: ModuleType, tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, str(jobs.__file__), str(tmp_path)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(list(tmp_path.iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=10) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -9)
        while list(tmp_path.iterdir()):  # a killed parent can wait for nobody
            assert time.monotonic() - begin < 8
            time.sleep(0.02)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
