"""Rows run in a process of their own: a crash, an endless compilation or a broken GPU context ends one row alone.

The process is used for one row after the other, until a row fails or takes too long; the next row then gets a new one.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from vw2_robot.errors import InputError, MissingExtraError

from .machine import Machine, forget_memory, machine_of
from .measured import Measured, NotMeasuredError, Settings
from .rows import Row
from .training import Training

START_SECONDS = 150.0  # imports and the first use of a GPU, on a slow disk
PATIENCE_SECONDS = 5.0  # for a process that is asked to end
Answer = Measured | Machine | NotMeasuredError | str


class RowFailedError(Exception):
    """A row has no numbers; the message gives the reason."""


class RowProcess:
    """The process that runs rows now; it is started when a row is asked for.

    Args:
        settings: what all rows share.
        rows: those that will be asked for.
    """

    def __init__(self, settings: Settings, rows: Sequence[Row]) -> None:
        self._settings = settings
        self._rows = tuple(rows)
        self._machine: Machine | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def machine(self, *, seconds: float = START_SECONDS) -> Machine:
        """Return the machine, which is measured by the first process."""
        if self._machine is None:
            self._start(seconds)
        assert self._machine is not None
        return self._machine

    def run(self, name: str, *, seconds: float) -> Measured:
        """Run a row.

        Args:
            name: of the row.
            seconds: after which the process is ended.

        Raises:
            RowFailedError: the row or its process failed, or took too long.
            NotMeasuredError: there is nothing to measure here.
        """
        begun = time.monotonic()
        if self._process is None:
            self._start(seconds)
        assert self._connection is not None
        # The process may be gone since its last row; then there is no answer, and that is found there.
        with suppress(BrokenPipeError):
            self._connection.send(name)
        found = self._answer(seconds - (time.monotonic() - begun))
        assert isinstance(found, Measured)
        return found

    def close(self, *, patience: float = PATIENCE_SECONDS) -> None:
        """End the process.

        Args:
            patience: seconds that it is given to end by itself.
        """
        if self._process is not None:
            assert self._connection is not None
            self._connection.close()  # which ends it where it waits for the next row
            self._process.join(patience)
            self._process.kill()
            self._process.join()
        self._process = None

    def _start(self, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, self._settings, self._rows, self._machine), daemon=True
        )
        self._process.start()
        theirs.close()
        found = self._answer(seconds)
        assert isinstance(found, Machine)
        self._machine = found

    def _answer(self, seconds: float) -> Measured | Machine:
        assert self._connection is not None
        assert self._process is not None
        try:
            if not self._connection.poll(max(0.0, seconds)):
                self.close(patience=0.0)
                raise RowFailedError("took too long and was ended")
            found: Answer = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise RowFailedError(f"its process ended with exit status {code}; {self._last_line()}") from None
        if isinstance(found, NotMeasuredError):
            raise found
        if isinstance(found, str):
            # A new process for the next row: after some errors a GPU context cannot be used any more.
            self.close()
            raise RowFailedError(found)
        return found

    def _last_line(self) -> str:
        """Return what the process printed last."""
        output = self._settings.output
        lines = output.read_text(errors="replace").split("\n") if output.is_file() else []
        printed = [line.strip() for line in lines if line.strip()]
        return f"its last message: {printed[-1][:200]}" if printed else "it printed nothing"


def serve(connection: Connection, settings: Settings, rows: Sequence[Row], machine: Machine | None) -> None:
    """Send the machine, then run the rows that are asked for, until the parent process ends.

    Args:
        connection: names come in; numbers, or the reason for none, go out.
        settings: what all rows share.
        rows: those that may be asked for.
        machine: measured before by another process; None measures it.
    """
    # What the programs print or warn of belongs to a log, not into a table.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    settings.folder.mkdir(parents=True, exist_ok=True)
    with settings.output.open("ab") as file:
        for stream in (1, 2):  # by number: PyBullet prints past Python
            os.dup2(file.fileno(), stream)
    if not settings.toy:
        # Empty at first, so that seconds of compilation are those of a new machine.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.folder / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(settings.folder / "triton")
    if settings.toy:
        torch.set_num_threads(1)
    device = torch.device(settings.device)
    answer: Answer
    try:
        machine = machine_of(device) if machine is None else machine
        answer = machine
    except Exception as error:
        answer = reason_of(error)
    connection.send(answer)
    if machine is None:
        return
    training = Training(settings, machine)
    run_by_name = {row.name: row.run for row in rows}
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        forget_memory(device)
        try:
            answer = run_by_name[name](training)
        except NotMeasuredError as error:
            answer = error
        except Exception as error:
            answer = reason_of(error)
        connection.send(answer)


def reason_of(error: Exception) -> str:
    """Return one line on an error: its kind, its message, and where it was raised."""
    message = " ".join(str(error).split())
    if isinstance(error, InputError | MissingExtraError):
        return message
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f"out of memory: {message[:300]}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {message[:300]} ({last.filename.rpartition('/')[2]}, line {last.lineno})"
