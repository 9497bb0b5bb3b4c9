"""The memory engine of a replay: windows in the trainer's process, bounded in bytes of compressed frames.

It implements the interface in `windows` and is the default. An ingest thread of the trainer's process writes, the
trainer samples; with several ranks each has its own replay and reads its own share of the data. A frame that several
windows show is held, and counted, once. The windows of one more episode wait for room outside the limit.

    replay = MemoryReplay(mode="queue", max_bytes=2**30, seed=0)
    with fed_by(replay, lambda: ingest(sources, plan, replay)):
        windows = replay.sample(32, timeout_seconds=60)

Filled by a thread (`fed_by`), its order is exact: the sampled windows are a pure function of seed and plan, however
fast reading and training are. A queue is sampled only while it is full or holds the rest of an epoch, and epochs do not
mix. A pool (mode "uniform") is filled first, with one epoch at most; then each sample lets one window replace the
oldest.

With `path`, `checkpoint` writes everything to a file there (numbers and bytes, no pickle), and `restore` with a `state`
taken afterwards continues from it. The file before the last one is kept, in case the trainer is killed between writing
the replay's checkpoint and its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_write, sha256_of

from .windows import CutEpisode, Delivered, Mode, Progress, ReplayTimeout, ReplayWindow, window_of

FORMAT_VERSION = 2


class MemoryReplay:
    """A replay in memory, see the top of this file; implements both `ReplayWriter` and `Replay`.

    Args:
        mode: see `vw2_robot.data.replay.windows`.
        max_bytes: of compressed frames; every single window must fit.
        seed: of the order of samples.
        path: folder for checkpoints.
        timeout_seconds: how long `add` waits for room in a full queue.
    """

    def __init__(
        self, *, mode: Mode, max_bytes: int, seed: int, path: Path | None = None, timeout_seconds: float = 600.0
    ) -> None:
        self.mode = mode
        self.max_bytes = max_bytes
        self.path = path
        self._timeout_seconds = timeout_seconds
        self.bytes = 0
        """bytes held now, each frame counted once"""
        self._rng = np.random.default_rng(seed)
        self._changed = threading.Condition()
        # Keys are consecutive numbers, so that the oldest can be removed and a random one sampled; `_remove` keeps them
        # consecutive.
        self._windows: dict[int, ReplayWindow] = {}
        self._first = 0
        self._next = 0
        self._uses: dict[int, int] = {}  # id of a frame -> how many windows show it
        self._backlog: deque[ReplayWindow] = deque()
        """windows of the last episode that wait for room"""
        self._delivered = Delivered()
        self._num_samples = 0
        self._filled = False
        self._replacements = 0
        """of an exact pool: whether it was ever full, and how many windows may replace the oldest"""
        self._stored: dict[str, str] | None = None
        """name and SHA-256 of the last checkpoint"""
        self._plan: str | None = None
        self._progress = Progress()
        self._failure: BaseException | None = None
        self._exact = False
        self._restored = False
        """whether the writer has yet to notice a `restore`"""
        self._closed = False

    # -------------------------------------------------------------------------------------------------------- writing

    def progress(self, plan: str) -> Progress:
        """See `ReplayWriter.progress`."""
        with self._changed:
            # A restored checkpoint may have been filled by another plan.
            if self._plan not in (None, plan):
                raise InputError(
                    f"the replay{f' in {self.path}' if self.path else ''} was filled by another plan of sources and "
                    "windows; use that plan, or another folder"
                )
            self._plan = plan
            self._restored = False
            self._changed.notify_all()
            return self._progress

    def add(self, cut: CutEpisode, after: Progress) -> bool:
        """See `ReplayWriter.add`."""
        for window in cut.windows:
            size = sum({id(frame): len(frame) for frame in window.frames}.values())
            if size > self.max_bytes:
                raise InputError(
                    f"a window of {window.source}, episode {window.episode_id}, takes {size} bytes, the replay holds "
                    f"{self.max_bytes}; raise replay.max_bytes"
                )
        with self._changed:
            if not self._changed.wait_for(
                lambda: not self._backlog or self._closed or self._restored, self._timeout_seconds
            ):
                raise ReplayTimeout(
                    f"the replay stayed full ({self.bytes} of {self.max_bytes} bytes) for {self._timeout_seconds:g} s: "
                    "no window was sampled"
                )
            if self._closed:
                raise ReplayTimeout("the replay was closed while a writer filled it")
            if self._restored:
                return False
            self._backlog.extend(cut.windows)
            self._admit()
            return self.finish(after)

    def finish(self, after: Progress) -> bool:
        """See `ReplayWriter.finish`."""
        with self._changed:
            if self._restored:
                return False
            self._progress = after
            self._changed.notify_all()
        return True

    def fail(self, error: BaseException) -> None:
        """Make every call of `sample` raise `error`, which ended the thread that filled this replay."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def wait_until_restored(self) -> bool:
        """Wait until this replay is restored to an earlier state; False if it was closed instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._restored or self._closed)
            return not self._closed

    def _admit(self) -> None:
        """Admit waiting windows: a queue while there is room, a pool by removing the oldest."""
        while self._backlog:
            window = self._backlog[0]
            # In an exact replay epochs do not mix: the next one waits until this one is used up.
            other_epoch = bool(self._windows) and self._windows[self._next - 1].epoch != window.epoch
            full = self.bytes + self._new_bytes(window) > self.max_bytes or (self._exact and other_epoch)
            if self.mode == "queue" and full:
                return
            self._filled = self._filled or full
            if self._exact and self.mode == "uniform" and self._filled:
                if not self._replacements:
                    return
                self._replacements -= 1
                self._remove(self._first)
            # One window may replace several that share most of their frames.
            while self.bytes + self._new_bytes(window) > self.max_bytes:
                self._remove(self._first)
            self._insert(self._backlog.popleft())

    def _new_bytes(self, window: ReplayWindow) -> int:
        """Return the bytes of the frames that no stored window shows."""
        return sum({id(frame): len(frame) for frame in window.frames if id(frame) not in self._uses}.values())

    def _insert(self, window: ReplayWindow) -> None:
        self.bytes += self._new_bytes(window)
        for frame in window.frames:
            self._uses[id(frame)] = self._uses.get(id(frame), 0) + 1
        self._windows[self._next] = window
        self._next += 1

    def _remove(self, place: int) -> ReplayWindow:
        """Remove the window at `place`; the first one moves there, so that the numbers stay consecutive."""
        # Takes constant time. The order matters only in a pool, as the age of its windows, and only the first is
        # removed.
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

    # ------------------------------------------------------------------------------------------------------- sampling

    def sample(self, count: int, *, timeout_seconds: float) -> list[ReplayWindow]:
        """See `Replay.sample`; the time limit starts again with each window that is stored."""
        removed: dict[tuple[str, int], ReplayWindow] = {}  # from a queue
        pool: list[ReplayWindow] = []
        with self._changed:
            while len(removed) + len(pool) < count and not self.finished:
                if self._failure is not None:
                    raise self._failure
                if not self._ready():

                    def has_more(before: int = self._next) -> bool:
                        return self._next > before or self._ready() or self.finished or self._failure is not None

                    if not self._changed.wait_for(has_more, timeout_seconds):
                        for window in removed.values():  # for the next call
                            self._insert(window)
                        raise ReplayTimeout(
                            f"the replay gave {len(removed)} of {count} windows in {timeout_seconds:g} s; does an "
                            "ingest process fill it?"
                        )
                    continue
                self._num_samples += 1
                place = int(self._rng.integers(self._first, self._next))
                if self.mode == "uniform":
                    pool.append(self._windows[place])
                    self._replacements += 1
                else:
                    window = self._remove(place)
                    if window.key not in self._delivered:
                        removed[window.key] = window
                self._admit()
                self._changed.notify_all()  # there may be room for the next episode
            for key in removed:
                self._delivered.add(key)
        return [*removed.values(), *pool]

    def _ready(self) -> bool:
        """Whether a window may be sampled; an exact replay must be full first, or hold the rest of the data."""
        if self._exact and self._restored:
            return False  # the restored windows may be of another plan, which the writer checks first
        return bool(self._windows) and (not self._exact or bool(self._backlog) or self._progress.done)

    def size(self) -> int:
        """See `Replay.size`."""
        return len(self._windows) + len(self._backlog)

    @property
    def finished(self) -> bool:
        """See `Replay.finished`."""
        return self.mode == "queue" and self._progress.done and not self.size()

    def state(self) -> dict[str, Any]:
        """See `Replay.state`; it names the last checkpoint."""
        with self._changed:
            return {**self._delivered.state(), "stored": self._stored}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Replay.restore`.

        Raises:
            InputError: the checkpoint that the state names is gone, damaged, or holds another replay.
        """
        with self._changed:
            if "stored" not in state:
                raise InputError("the position in the replay was stored by an older version; start the run anew")
            if state["stored"] is not None:
                if self.path is None:
                    raise InputError(
                        f"the position belongs to the replay stored in {state['stored']['file']}; set replay.path to "
                        "its folder"
                    )
                facts, windows = _read(self.path / state["stored"]["file"], state["stored"]["sha256"], self.mode)
                self._windows = {}
                self._uses = {}
                self._first = 0
                self._next = 0
                self.bytes = 0
                inside = len(windows) - facts["backlog"]
                for window in windows[:inside]:
                    self._insert(window)
                self._backlog = deque(windows[inside:])
                self._plan = facts["plan"]
                self._progress = Progress.of(facts["progress"])
                self._rng.bit_generator.state = facts["chance"]
                self._num_samples = facts["num_samples"]
                self._filled = facts["filled"]
                self._replacements = facts["replacements"]
                self._stored = state["stored"]
            self._delivered = Delivered.of(state, shares=1)
            self._restored = True  # the writer has to call `progress` again
            self._changed.notify_all()

    def close(self) -> None:
        """See `Replay.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # --------------------------------------------------------------------------------------------------- checkpointing

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """See `Replay.checkpoint`; writing to a local disk is not interrupted."""
        if self.path is None:
            raise InputError("this replay has no folder for checkpoints; set replay.path")
        if not self._changed.acquire(timeout=timeout_seconds):
            raise ReplayTimeout(f"the replay was busy for {timeout_seconds:g} s")
        try:
            # Windows are immutable, so the lock is needed only to list them, not to write them.
            windows = [*(self._windows[place] for place in range(self._first, self._next)), *self._backlog]
            facts = {
                "format_version": FORMAT_VERSION,
                "mode": self.mode,
                "plan": self._plan,
                "progress": dataclasses.asdict(self._progress),
                "backlog": len(self._backlog),
                "num_samples": self._num_samples,
                "filled": self._filled,
                "replacements": self._replacements,
                "chance": self._rng.bit_generator.state,
            }
        finally:
            self._changed.release()
        file = self.path / f"replay-{self._num_samples}.npz"
        kept = {file.name, self._stored["file"] if self._stored is not None else ""}
        self._stored = {"file": file.name, "sha256": _write(file, facts, windows)}
        for old in self.path.iterdir():  # older checkpoints, and files that a kill left incomplete
            if re.fullmatch(r"replay-\d+\.npz|\.replay-\d+\.npz\.tmp", old.name) and old.name not in kept:
                old.unlink()
        return str(file)


def _write(file: Path, facts: Mapping[str, Any], windows: Sequence[ReplayWindow]) -> str:
    """Store windows in one file and return its SHA-256; a frame that several of them show is written once."""
    # Shared frames are one object in memory, so their identity finds them.
    frames = {id(frame): frame for window in windows for frame in window.frames}
    places = {key: place for place, key in enumerate(frames)}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        with temporary.open("wb") as out:
            np.savez(
                out,
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
                # JSON escapes line breaks, so one can separate the headers.
                headers=np.frombuffer(b"\n".join(window.header() for window in windows), np.uint8),
                frames=np.frombuffer(b"".join(frames.values()), np.uint8),
                lengths=np.array([len(frame) for frame in frames.values()], np.int64),
                shown=np.array([[places[id(frame)] for frame in window.frames] for window in windows], np.int64),
            )
        return sha256_of(temporary)


def _read(file: Path, sha256: str, mode: Mode) -> tuple[dict[str, Any], list[ReplayWindow]]:
    """Return what `_write` stored.

    Raises:
        InputError: the file is gone, damaged, or of another kind of replay.
    """
    lost = "the position in the replay belongs to it; put it back, or start the run anew"
    try:
        found = sha256_of(file)
    except FileNotFoundError as error:
        raise InputError(f"{file} is gone, and {lost}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}), and {lost}") from error
    if found != sha256:
        raise InputError(
            f"{file} is damaged, or of another run: its SHA-256 begins with {found[:8]}, the run's checkpoint says "
            f"{sha256[:8]}, and {lost}"
        )
    # The checksum is right, so the content is what `_write` wrote and needs no further checks.
    with np.load(file, allow_pickle=False) as archive:
        stored = dict(archive)
    facts: dict[str, Any] = with_new_keys(json.loads(stored["facts"].tobytes()))
    if (kind := (facts["format_version"], facts["mode"])) != (FORMAT_VERSION, mode):
        raise InputError(
            f"{file} holds a replay of version {kind[0]}, mode {kind[1]}; expected {FORMAT_VERSION}, {mode}; "
            "use another folder"
        )
    blob = stored["frames"].tobytes()
    ends = np.cumsum(stored["lengths"]).tolist()
    frames = [blob[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    headers = stored["headers"].tobytes().split(b"\n")
    rows = zip(headers, stored["shown"].tolist(), strict=False)
    return facts, [window_of(header, [frames[place] for place in shown]) for header, shown in rows]


@contextmanager
def fed_by(replay: MemoryReplay, fill: Callable[[], object]) -> Iterator[None]:
    """Run `fill` in a thread while the body samples; an error of `fill` is raised by `replay.sample`."""
    replay._exact = True

    def work() -> None:
        try:
            fill()
            while replay.wait_until_restored():
                fill()
        except BaseException as error:  # raised again in the thread that samples
            replay.fail(error)

    thread = threading.Thread(target=work, name="ingest", daemon=True)
    thread.start()
    try:
        yield
    finally:
        replay.close()
        thread.join(5.0)  # a job that gets a signal to stop has about 10 s
