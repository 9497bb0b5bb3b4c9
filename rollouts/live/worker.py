"""The thread in which world and policy run: commands in, ten views a second out.

PyBullet and torch are used in this one thread alone. A tick is a tenth of a second of simulated time, three control
steps; where the machine is too slow for that, time passes more slowly and every view is still shown.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from vw2_robot.errors import InputError, MissingExtraError

from .control import Control
from .session import LiveView

VIEWS_PER_SECOND = 10
STEPS_PER_VIEW = 3
Command = Callable[[Control], None]
log = logging.getLogger(__name__)


class LiveWorker:
    """A thread that opens a `Control`, follows commands and publishes views.

    Args:
        open_control: makes the control; called in the thread.
        publish: gets each view, with the control, in the thread.
    """

    def __init__(self, open_control: Callable[[], Control], publish: Callable[[Control, LiveView], None]) -> None:
        self.error: BaseException | None = None
        """what ended the thread"""
        self.views_per_second = 0.0
        """of the last two seconds in which something moved"""
        self._open_control = open_control
        self._publish = publish
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._times: deque[float] = deque(maxlen=2 * VIEWS_PER_SECOND + 1)
        self._thread = threading.Thread(target=self._run, name="live worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Have a command followed before the next control step; returns at once."""
        self._commands.put(command)

    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread and free the simulator."""
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            control = self._open_control()
            try:
                self._publish(control, control.view())
                while self._tick(control):
                    pass
            finally:
                control.close()
        except BaseException as error:  # the main thread raises it
            self.error = error

    def _tick(self, control: Control) -> bool:
        """Follow what was commanded and let a tenth of a second pass; return False at the end."""
        begin = time.monotonic()
        changed = False
        # With nothing moving, wait for a command and not for time.
        wait_seconds = 0.0 if self._times else 1 / VIEWS_PER_SECOND
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get(block=wait_seconds > 0, timeout=wait_seconds)
                if command is None:
                    return False
                wait_seconds = 0.0
                changed = True
                control.notice = ""
                self._guarded(control, command)
        moved = [self._guarded(control, lambda control: control.stage.advance()) for _ in range(STEPS_PER_VIEW)]
        if changed or any(moved):
            self._publish(control, control.view())
        if any(moved):
            self._times.append(begin)
            if len(self._times) > 1:
                self.views_per_second = (len(self._times) - 1) / (self._times[-1] - self._times[0])
            time.sleep(max(0.0, begin + 1 / VIEWS_PER_SECOND - time.monotonic()))
        else:
            self._times.clear()
        return True

    def _guarded(self, control: Control, call: Callable[[Control], bool | None]) -> bool:
        """Return what `call` returns; an error becomes the page's notice, and what runs is paused."""
        try:
            return bool(call(control))
        except (InputError, MissingExtraError) as error:
            control.notice = str(error)
        except Exception as error:
            log.exception("a command of the page failed")
            control.notice = f"{type(error).__name__}: {error}; the traceback is on the terminal"
        control.stage.pause()
        return False
