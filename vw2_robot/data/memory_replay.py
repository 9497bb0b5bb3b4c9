"""The replay of one process: windows in memory, bounded in bytes of compressed frames. The default engine.

The contract is that of `vw2_robot.data.replay`. An ingest thread of the trainer's process writes, the trainer draws;
with several ranks each has its own replay and reads its own share of the data. A frame that several windows show is
held, and counted, once.

    replay = MemoryReplay(mode="queue", max_bytes=2**30, seed=0)
    with fed_by(replay, lambda: ingest(sources, plan, replay)):
        windows = replay.sample(32, timeout_s=60)

With `path`, `checkpoint` writes everything to one file there (numbers and bytes, no pickle), and a replay that is
opened with the same path goes on from it.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .replay import CutEpisode, Delivered, Mode, Progress, ReplayTimeout, ReplayWindow, window_of

FORMAT_VERSION = 1


class MemoryReplay:
    """See the top of this file; implements both `ReplayWriter` and `Replay`.

    Args:
        mode: see `vw2_robot.data.replay`.
        max_bytes: of compressed frames; one episode's window must fit.
        seed: of the order of drawing.
        path: folder for checkpoints; what lies there is restored at once.
        timeout_s: how long `add` waits for room in a full queue.

    Raises:
        InputError: the folder holds another replay.
    """

    def __init__(
        self, *, mode: Mode, max_bytes: int, seed: int, path: Path | None = None, timeout_s: float = 600.0
    ) -> None:
        self.mode, self.max_bytes, self.path, self._timeout_s = mode, max_bytes, path, timeout_s
        self.bytes = 0
        """held now, each frame counted once"""
        self._rng = np.random.default_rng(seed)
        self._changed = threading.Condition()
        # Places are consecutive numbers, so that the oldest can go and any can be drawn; `_take` fills the holes.
        self._windows: dict[int, ReplayWindow] = {}
        self._first = self._next = 0
        self._uses: dict[int, int] = {}
        self._delivered = Delivered()
        self._plan: str | None = None
        self._progress = Progress()
        self._failure: BaseException | None = None
        self._closed = False
        if path is not None and (path / "replay.npz").is_file():
            self._load(path / "replay.npz")

    # -------------------------------------------------------------------------------------------------------- writing

    def progress(self, plan: str) -> Progress:
        """See `ReplayWriter.progress`."""
        with self._changed:
            if self._plan not in (None, plan):
                raise InputError(
                    f"the replay{f' in {self.path}' if self.path else ''} was filled by another plan of sources and "
                    "windows; use that plan, or another folder"
                )
            self._plan = plan
            return self._progress

    def add(self, cut: CutEpisode, after: Progress) -> Literal[True]:
        """See `ReplayWriter.add`."""
        deadline = time.monotonic() + self._timeout_s
        for window in cut.windows:
            with self._changed:
                self._make_room(window, deadline)
                self._put(window)
                self._changed.notify_all()
        return self.finish(after)

    def finish(self, after: Progress) -> Literal[True]:
        """See `ReplayWriter.finish`."""
        with self._changed:
            self._progress = after
            self._changed.notify_all()
        return True

    def fail(self, error: BaseException) -> None:
        """Let every call of `sample` raise `error`: whoever filled this replay has died of it."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _make_room(self, window: ReplayWindow, deadline: float) -> None:
        own = sum({id(frame): len(frame) for frame in window.frames}.values())
        if own > self.max_bytes:
            raise InputError(
                f"a window of {window.source}, episode {window.episode_id}, takes {own} bytes, the replay holds "
                f"{self.max_bytes}; raise replay.max_bytes"
            )
        while self.bytes + self._new_bytes(window) > self.max_bytes:
            if self.mode == "uniform":
                self._take(self._first)
                continue
            if self._closed:
                raise ReplayTimeout("the replay was closed while a writer waited for room in it")
            if not self._changed.wait(deadline - time.monotonic()):
                raise ReplayTimeout(
                    f"the replay stayed full ({self.bytes} of {self.max_bytes} bytes) for {self._timeout_s:g} s: "
                    "nobody draws from it"
                )

    def _new_bytes(self, window: ReplayWindow) -> int:
        return sum({id(frame): len(frame) for frame in window.frames if id(frame) not in self._uses}.values())

    def _put(self, window: ReplayWindow) -> None:
        self.bytes += self._new_bytes(window)
        for frame in window.frames:
            self._uses[id(frame)] = self._uses.get(id(frame), 0) + 1
        self._windows[self._next] = window
        self._next += 1

    def _take(self, place: int) -> ReplayWindow:
        """Remove the window at `place`; the first one moves into the hole, so that the numbers stay consecutive."""
        window = self._windows[place]
        self._windows[place] = self._windows[self._first]
        del self._windows[self._first]
        self._first += 1
        for frame in window.frames:
            self._uses[id(frame)] -= 1
            if not self._uses[id(frame)]:
                del self._uses[id(frame)]
                self.bytes -= len(frame)
        return window

    # -------------------------------------------------------------------------------------------------------- drawing

    def sample(self, count: int, *, timeout_s: float) -> list[ReplayWindow]:
        """See `Replay.sample`."""
        deadline = time.monotonic() + timeout_s
        drawn: dict[tuple[str, int], ReplayWindow] = {}
        pool: list[ReplayWindow] = []
        with self._changed:
            while len(drawn) + len(pool) < count and not self.finished:
                if self._failure is not None:
                    raise self._failure
                if not self._windows:
                    if not self._changed.wait_for(self._something_new, max(0.0, deadline - time.monotonic())):
                        for window in drawn.values():  # for the next call
                            self._put(window)
                        raise ReplayTimeout(
                            f"the replay gave {len(drawn)} of {count} windows in {timeout_s:g} s; does anybody fill it?"
                        )
                elif self.mode == "uniform":
                    pool.append(self._windows[self._draw()])
                else:
                    window = self._take(self._draw())
                    if window.key not in self._delivered:
                        drawn[window.key] = window
                    self._changed.notify_all()  # there is room again
            for key in drawn:
                self._delivered.add(key)
        return [*drawn.values(), *pool]

    def _draw(self) -> int:
        return int(self._rng.integers(self._first, self._next))

    def _something_new(self) -> bool:
        return bool(self._windows) or self.finished or self._failure is not None

    def size(self) -> int:
        """See `Replay.size`."""
        return len(self._windows)

    @property
    def finished(self) -> bool:
        """See `Replay.finished`."""
        return self.mode == "queue" and self._progress.done and not self._windows

    def state(self) -> dict[str, Any]:
        """See `Replay.state`."""
        with self._changed:
            return self._delivered.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Replay.restore`."""
        with self._changed:
            self._delivered = Delivered.of(state, shares=1)

    def close(self) -> None:
        """See `Replay.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --------------------------------------------------------------------------------------------------- checkpointing

    def checkpoint(self, *, timeout_s: float) -> str:
        """See `Replay.checkpoint`; writing to a local disk is not interrupted."""
        if self.path is None:
            raise InputError("this replay has no folder for checkpoints; set replay.path")
        if not self._changed.acquire(timeout=timeout_s):
            raise ReplayTimeout(f"the replay was busy for {timeout_s:g} s")
        try:
            windows = [self._windows[place] for place in range(self._first, self._next)]
            facts = {
                "format_version": FORMAT_VERSION,
                "mode": self.mode,
                "plan": self._plan,
                "progress": dataclasses.asdict(self._progress),
                "delivered": self._delivered.state(),
            }
        finally:
            self._changed.release()
        frames = {id(frame): frame for window in windows for frame in window.frames}
        places = {key: place for place, key in enumerate(frames)}
        file = self.path / "replay.npz"
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        with temporary.open("wb") as out:
            np.savez(
                out,
                facts=_bytes(json.dumps(facts).encode()),
                headers=_bytes(b"\n".join(window.header() for window in windows)),
                frames=_bytes(b"".join(frames.values())),
                lengths=np.array([len(frame) for frame in frames.values()], np.int64),
                shown=np.array([[places[id(frame)] for frame in window.frames] for window in windows], np.int64),
            )
        temporary.replace(file)
        return str(file)

    def _load(self, file: Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as archive:
                stored = dict(archive)
            facts = json.loads(stored["facts"].tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{file} is damaged ({error}); delete it, and the replay is filled anew") from error
        if (facts["format_version"], facts["mode"]) != (FORMAT_VERSION, self.mode):
            raise InputError(
                f"{file} holds a replay of version {facts['format_version']}, mode {facts['mode']}; expected "
                f"{FORMAT_VERSION}, {self.mode}; use another folder"
            )
        blob, ends = stored["frames"].tobytes(), np.cumsum(stored["lengths"]).tolist()
        frames = [blob[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        headers = stored["headers"].tobytes().split(b"\n")
        for header, shown in zip(headers, stored["shown"].tolist(), strict=False):
            self._put(window_of(header, [frames[place] for place in shown]))
        self._plan, self._progress = facts["plan"], Progress(**facts["progress"])
        self._delivered = Delivered.of(facts["delivered"], shares=1)


def _bytes(value: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(value, np.uint8)


@contextmanager
def fed_by(replay: MemoryReplay, fill: Callable[[], object]) -> Iterator[None]:
    """Run `fill` in a thread while the body draws; what `fill` raises is raised by `replay.sample`."""

    def work() -> None:
        try:
            fill()
        except BaseException as error:  # raised again where the windows are wanted
            replay.fail(error)

    thread = threading.Thread(target=work, name="ingest", daemon=True)
    thread.start()
    try:
        yield
    finally:
        replay.close()
        thread.join(10.0)
