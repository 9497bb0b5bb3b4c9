"""Steps of an earlier commit beside those of this checkout: the same module in two processes that take turns.

The module's `main` trains on an `AnsweringRun`. `rounds_with_before` starts it once with the library of this checkout
and once with that of `BEFORE`, which `git archive` writes into a temporary folder.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.timed_run import TimedRun

from .row import Rounds, interleaved

REPO = Path(__file__).resolve().parents[2]
BEFORE = "19f57af"
STEPS = 5
"""of a round"""
NO_BEFORE = f"commit {BEFORE} is not in this checkout: git fetch --unshallow"


class AnsweringRun(TimedRun):
    """A training run that takes `STEPS` steps for each line of standard input, and prints the CPU time of one in ms."""

    def steps(self, stop: int | None = None, *, what: str = "") -> Iterator[int]:
        """Yield step numbers until standard input ends.

        Args:
            stop: not reached.
            what: not used.
        """
        for _ in sys.stdin:
            begin = time.process_time()
            for _ in range(STEPS):
                yield self.start
                self.start += 1
            # Past a redirection: a program's own messages do not belong among the answers.
            print(1000 * (time.process_time() - begin) / STEPS, file=sys.__stdout__, flush=True)


def rounds_with_before(module: str, *options: str, seconds: float) -> Rounds | None:
    """Return the rounds of "ours" and "before", in ms of CPU time a step; None in a checkout without that commit.

    Args:
        module: run as `python -m MODULE OPTIONS`.
        options: of its command line.
        seconds: after which no further round begins.
    """
    # Without its benchmarks: in both, those of this checkout run.
    command = ["git", "archive", BEFORE, ".", ":(exclude)benchmarks"]
    found = subprocess.run(command, cwd=REPO, capture_output=True, check=False)
    if found.returncode:
        return None
    with TemporaryDirectory() as folder, ExitStack() as stack:
        with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
            archive.extractall(folder, filter="data")

        def start(library: str) -> subprocess.Popen[str]:
            path = os.pathsep.join([library, str(REPO)])
            process = subprocess.Popen(
                [sys.executable, "-m", module, *options],
                cwd=library,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            return stack.enter_context(process)  # closes its input, which ends it

        def answer(process: subprocess.Popen[str]) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            print(file=process.stdin, flush=True)
            return float(process.stdout.readline())

        processes = {"ours": start(str(REPO)), "before": start(folder)}
        return interleaved({name: lambda p=p: answer(p) for name, p in processes.items()}, seconds=seconds)
