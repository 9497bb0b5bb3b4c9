"""Signal handling and standard streams of a program: a clean stop in limited time, also without a reader of its output.

    stop_at_once(name)   around imports
    orderly(name)        around a whole program: SIGTERM and Ctrl-C become exceptions, standard streams may be closed
    stops_held_back()    around the start of worker processes (`vw2_robot.worker_pool`)
    DeferredStop()       around a training loop: the step in progress ends first, and a checkpoint is saved

SIGTERM raises `Terminated`, Ctrl-C `KeyboardInterrupt`, both in the main thread, so that files and folders under a
temporary name are removed before the exit. A second Ctrl-C ends the process at once; a second SIGTERM is ignored, since
launchers and schedulers both send one. A watchdog thread ends the process `GRACE_SECONDS` after the first signal:
Python handles signals between two instructions only, and a library call may take longer than that.
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

    A stop gives exit status 130 (Ctrl-C) or 143 (SIGTERM). The first argument of the exception, if there is one, is
    the advice how to continue.
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
                    # Python's own exit waits for threads and libraries, which can take seconds or never end, while
                    # the watchdog thread is frozen. So only what removes temporary folders is run here.
                    atexit._run_exitfuncs()
                    os._exit(128 + number)
                raise SystemExit(128 + number) from None


@contextmanager
def stop_at_once(name: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process with a message inside the `with`: for imports, before anything is written.

    Libraries may swallow an exception that comes while they are imported.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = _install(lambda number, _: _exit_with_message(name, number, "")) if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _install(handler: Handler) -> dict[int, Any]:
    """Handle both signals, unless they are ignored (nohup, a background job), and return the handlers before."""
    return {n: signal.signal(n, handler) for n in _STOPPED_BY if signal.getsignal(n) is not signal.SIG_IGN}


@contextmanager
def _signals(name: str) -> Iterator[list[int]]:
    """Turn signals into exceptions inside the `with`; yields the list of those that arrived."""
    arrived: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        for other in before:
            signal.signal(other, signal.SIG_IGN if other == signal.SIGTERM else signal.SIG_DFL)
        raise_stop()

    def raise_stop(*_: object) -> None:
        raise Terminated if arrived[0] == signal.SIGTERM else KeyboardInterrupt

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        # Python drops an exception that a signal raises in a finalizer (__del__), so it is raised again a moment later.
        if arrived and isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, raise_stop)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            hook_before(unraisable)

    def enforce() -> None:
        # The watchdog: the C part of Python writes the number of a signal here at once, whatever the main thread does.
        while number := os.read(reading, 1):
            if arrived or signal.getsignal(number[0]) is stop:  # else the program has a handler of its own
                time.sleep(GRACE_SECONDS)
                end_children()
                _exit_with_message(name, number[0], f"; killed, since it did not end within {GRACE_SECONDS:g} s")
        os.close(reading)

    before = _install(stop)
    hook_before = sys.unraisablehook
    sys.unraisablehook = swallowed
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    waker = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=enforce, name="signals", daemon=True).start()
    try:
        yield arrived
    finally:
        sys.unraisablehook = hook_before
        if not arrived:  # else the watchdog stays until the process has ended
            signal.set_wakeup_fd(waker)
            os.close(writing)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def stops_held_back() -> Iterator[None]:
    """Delay signals inside the `with`, for the start of worker processes.

    The workers get no signal before they unblock it; in this process a signal is handled after the `with`.
    """
    arrived: list[int] = []
    # The mask is for the child, which inherits it. Here it is not enough: the system may give the signal to another
    # thread, and Python then calls the handler in this one all the same.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPED_BY)
    in_main = threading.current_thread() is threading.main_thread()
    handlers = _install(lambda number, _: arrived.append(number)) if in_main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in arrived:
            signal.raise_signal(number)


class DeferredStop:
    """Signals that wait for the end of a training step: inside the `with` the first one is only noted.

    A second Ctrl-C is handled at once, a second SIGTERM is ignored. The first signal is handled after `seconds` when
    the step has not ended by then, and at the end of the `with` when it came after the last step.

    Args:
        seconds: how long the step may still take.

    Attributes:
        signal: the one that arrived; None before.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: dict[int, Any] = {}
        self.signal: signal.Signals | None = None

    def __enter__(self) -> DeferredStop:
        if threading.current_thread() is threading.main_thread():
            self._before = _install(self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.signal is not None and kind is None:  # it came after the last step
            self._pass_on()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self.signal is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                self._pass_on()
            return
        self.signal = signal.Signals(number)
        self._alarm_before = signal.signal(signal.SIGALRM, lambda *_: self._pass_on())
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def _pass_on(self) -> None:
        """Let the handlers from before the `with` have the signal that was noted."""
        assert self.signal is not None
        self._restore()
        signal.raise_signal(self.signal)

    def stop(self, advice: str) -> None:
        """End the program as the signal would have, or SIGTERM where another rank got it.

        Args:
            advice: what the message says after "stopped by ...".
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(advice)
        raise Terminated(advice)


def end_children() -> None:
    """Kill worker processes that are still running; what they leave half-written, the next start writes again."""
    if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
        children = multiprocessing.active_children()
        for child in children:
            child.kill()
        for child in children:
            child.join(1.0)


def _exit_with_message(name: str, number: int, why: str) -> None:
    """Print a message without Python's streams, which may be locked, and end the process at once."""
    with suppress(OSError):
        os.write(2, f"\n{name}: stopped by {_STOPPED_BY[signal.Signals(number)]}{why}\n".encode())
    os._exit(128 + number)


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Replace standard output and error by streams that may be missing (`>&-`) or lose their reader (`| head -1`)."""
    # A closed stream's number would go to the next file that is opened, and with it what libraries print.
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
    """A text stream that survives the loss of its reader. Later output is lost here; log files have it."""

    def __init__(self, stream: TextIO, what: str) -> None:
        self._stream = stream
        self._what = what
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid UTF-8

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
            os.dup2(nowhere, self._stream.fileno())  # what is left in the buffer goes there as well
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, self._what) from error
