"""A program in its process: it can be stopped in order and in time, and nobody has to read what it prints.

    stop_at_once(name)   before a program is imported
    orderly(name)        around a whole program: SIGTERM and Ctrl-C become exceptions, standard streams may be closed
    stops_held_back()    around the start of worker processes (`vw2_robot.worker_pool`)

SIGTERM raises `Terminated`, Ctrl-C `KeyboardInterrupt`, both in the main thread, so that files and folders under a
temporary name are removed on the way out. A second signal ends the process at once, and so does a thread of our own
where the first one has not done it within `GRACE_SECONDS`: Python hears signals between two instructions only, and a
library may be busy for longer.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from vw2_robot.errors import Terminated

GRACE_SECONDS = 8.0
_STOPPED_BY = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def orderly(name: str) -> Iterator[None]:
    """Run the program `name` so that signals and closed streams end in a message or in nothing, never in a traceback.

    A stop leaves as exit status 130 (Ctrl-C) or 143 (SIGTERM); arguments of the exception say where to go on.
    """
    with _standard_streams():
        if threading.current_thread() is not threading.main_thread():  # signals are for the main thread alone
            yield
            return
        with _signals(name) as arrived:
            try:
                yield
            except KeyboardInterrupt as stop:
                number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
                end_children()
                where = stop.args[0] if stop.args else "start the same command again"
                with suppress(OSError):
                    print(f"\n{name}: stopped by {_STOPPED_BY[number]}; {where}", file=sys.stderr)
                    sys.stdout.flush()
                if arrived:
                    # Python would go on to wait for threads and to take down libraries, which can be seconds or for
                    # ever, with our own thread frozen. What removes temporary folders at exit is run.
                    atexit._run_exitfuncs()
                    os._exit(128 + number)
                raise SystemExit(128 + number) from None


def stop_at_once(name: str) -> None:
    """Let Ctrl-C and SIGTERM end the process with a message from now on: for imports, when nothing has been touched.

    `orderly` takes over when the program begins.
    """
    _install(lambda number, _: _say_and_leave(name, number, ""))


def _install(handler: Handler) -> dict[int, Any]:
    """Handle both signals, unless they are ignored (nohup, a job in the background); returns what was there before."""
    return {n: signal.signal(n, handler) for n in _STOPPED_BY if signal.getsignal(n) is not signal.SIG_IGN}


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def _signals(name: str) -> Iterator[list[int]]:
    arrived: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def enforce() -> None:
        # The C part of Python writes the number here at once, whatever the main thread is busy with.
        while number := os.read(reading, 1):
            if arrived or signal.getsignal(number[0]) is stop:  # else a program handles it in its own way
                time.sleep(GRACE_SECONDS)
                end_children()
                _say_and_leave(name, number[0], f"; it was cut off, since it did not end within {GRACE_SECONDS:g} s")
        os.close(reading)

    before = _install(stop)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    waker = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=enforce, name="signals", daemon=True).start()
    try:
        yield arrived
    finally:
        if not arrived:  # else all stays as it is until the process has ended
            signal.set_wakeup_fd(waker)
            os.close(writing)
            _restore(before)


@contextmanager
def stops_held_back() -> Iterator[None]:
    """Start worker processes inside: they hear no stop before they unblock it, and here it arrives afterwards."""
    arrived: list[int] = []
    # The mask is what a child inherits. It does not hold a signal back here: the system may give it to another thread,
    # and Python then calls the handler in this one all the same.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPED_BY)
    in_main = threading.current_thread() is threading.main_thread()
    handlers = _install(lambda number, _: arrived.append(number)) if in_main else {}
    try:
        yield
    finally:
        _restore(handlers)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in arrived:
            signal.raise_signal(number)


def end_children() -> None:
    """End worker processes that are still there: what they leave half-written, the next start writes again."""
    if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
        children = multiprocessing.active_children()
        for child in children:
            child.kill()
        for child in children:
            child.join(1.0)


def _say_and_leave(name: str, number: int, why: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{name}: stopped by {_STOPPED_BY[signal.Signals(number)]}{why}\n".encode())
    os._exit(128 + number)


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Standard output and error that may be missing (`>&-`) or lose their reader (`| head -1`)."""
    # A file that is opened later would get the number of a closed stream, and with it what libraries print.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _Output(stream or open(number, "w", closefd=False), what)  # noqa: SIM115
        for stream, number, what in zip(before, (1, 2), ("standard output", "standard error"), strict=True)
    )
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Output:
    """A text stream that goes on when its reader leaves. What comes after is lost here; log files have it."""

    def __init__(self, stream: TextIO, what: str) -> None:
        self._stream, self._what = stream, what
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still in the buffer goes there as well
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, self._what) from error
