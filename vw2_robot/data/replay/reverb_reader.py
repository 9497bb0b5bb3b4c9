"""The trainer side of a Reverb replay: one rank samples windows from a server on this or another machine."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from vw2_robot.errors import InputError

from .reverb_tables import CALL_SECONDS, connect, layout_of, load_reverb, reachable, server_info, store_windows
from .windows import Delivered, Mode, ReplayTimeout, ReplayWindow, window_of

_LOG = logging.getLogger(__name__)
_SAMPLE_MS = 500  # how long one request waits on an empty table
_RETRY_SECONDS = 0.5  # between two requests for a checkpoint while the server cannot be reached


class ReverbReader:
    """One trainer rank's connection to a server; a `Replay`.

    A thread fetches as many windows as `sample` requested and no more: a window that was taken from a queue and not
    used is lost when this process dies. When a server that could not be reached is back, the thread continues after two
    minutes at most (gRPC's longest pause).

    Args:
        address: host:port.
        rank: which trainer rank this is.
        ranks: how many there are; a queue server must have been started for as many.
        timeout_seconds: how long to wait for the server to appear.

    Raises:
        InputError: the server was started for another number of ranks.
        ReplayTimeout: no server was found in time.
    """

    def __init__(self, address: str, *, rank: int = 0, ranks: int = 1, timeout_seconds: float = 60.0) -> None:
        self.address = address
        self._client = connect(address, timeout_seconds=timeout_seconds)
        self._layout = layout_of(self._client, address, CALL_SECONDS)
        self.mode: Mode = "uniform" if "pool" in self._layout.tables else "queue"
        shares = len(self._layout.tables) if self.mode == "queue" else 1
        if self.mode == "queue" and (shares != ranks or not 0 <= rank < ranks):
            raise InputError(
                f"the replay server at {address} has queues for {shares} ranks, this is rank {rank} of {ranks}; start "
                "it with ranks=... as many as there are"
            )
        self._table = "pool" if self.mode == "uniform" else f"queue-{rank}"
        self._delivered = Delivered(shares)
        self._ends: dict[int, int] = {}
        self._arrived: dict[tuple[str, int], ReplayWindow] = {}
        self._pool: list[ReplayWindow] = []
        self._wanted = 0
        self._trouble = ""
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="replay", daemon=True)
        self._thread.start()

    def sample(self, count: int, *, timeout_seconds: float) -> list[ReplayWindow]:
        """See `Replay.sample`."""
        with self._changed:
            self._wanted = count
            self._changed.notify_all()
            # The thread fetches only while windows are wanted.
            came = self._changed.wait_for(lambda: self._held() >= count or self._nothing_left(), timeout_seconds)
            self._wanted = 0
            if not came:
                missing = sum(self._ends.values()) - self._delivered.count - len(self._arrived)
                all_ends = self.mode == "queue" and len(self._ends) == self._layout.ingests
                known = f"; {missing} of this rank's windows are still to come" if all_ends else ""
                raise ReplayTimeout(
                    f"the replay server at {self.address} gave {self._held()} of {count} windows in "
                    f"{timeout_seconds:g} s"
                    f"{known}{self._trouble}; is it running, and does an ingest process fill it?"
                )
            if self.mode == "uniform":
                sampled = self._pool[:count]
                self._pool = self._pool[count:]
                return sampled
            # In the order of arrival; the windows count as delivered from now on.
            keys = list(self._arrived)[:count]
            for key in keys:
                self._delivered.add(key)
            return [self._arrived.pop(key) for key in keys]

    def size(self) -> int:
        """See `Replay.size`."""
        found: int = server_info(self._client, self.address, CALL_SECONDS)[self._table].current_size
        return found + self._held()

    @property
    def finished(self) -> bool:
        """See `Replay.finished`."""
        with self._changed:
            return self._nothing_left() and not self._arrived

    def state(self) -> dict[str, Any]:
        """See `Replay.state`."""
        with self._changed:
            return {**self._delivered.state(), "ends": {str(ingest): total for ingest, total in self._ends.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Replay.restore`."""
        with self._changed:
            self._delivered = Delivered.of(state, shares=self._delivered.shares)
            # Windows that arrived before may have been delivered in the restored state.
            self._arrived = {key: window for key, window in self._arrived.items() if key not in self._delivered}
            self._ends = {int(ingest): total for ingest, total in state["ends"].items()}

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """See `Replay.checkpoint`; the path is one on the server's machine.

        If the server ends meanwhile, or cannot be reached, the request is repeated until the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        waiting = False
        while True:
            try:
                if not reachable(self.address, 0.0):
                    raise ReplayTimeout(f"no replay server listens at {self.address}; is it running?")
                return store_windows(self._client, self.address, max(deadline - time.monotonic(), 1.0))
            except ReplayTimeout as error:
                if time.monotonic() + _RETRY_SECONDS > deadline:
                    raise ReplayTimeout(f"no checkpoint of the replay within {timeout_seconds:g} s: {error}") from error
                if not waiting:
                    _LOG.warning("%s The checkpoint waits for it, at most %g s", error, timeout_seconds)
                waiting = True
                time.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        """See `Replay.close`; does not wait for a request to a server that is gone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(2 * _SAMPLE_MS / 1000)

    def _held(self) -> int:
        return len(self._arrived) + len(self._pool)

    def _nothing_left(self) -> bool:
        """Whether every ingest process has announced its number of windows, and all of them have arrived."""
        if self.mode == "uniform" or len(self._ends) < self._layout.ingests:
            return False
        return self._delivered.count + len(self._arrived) >= sum(self._ends.values())

    # -----------------------------------------------------------------------------------------------sampling thread

    def _work(self) -> None:
        _, tf = load_reverb()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted > self._held())
                if self._closed:
                    return
                # In small portions, so that windows are delivered while others are fetched.
                count = min(64, self._wanted - self._held())
            try:
                # Reverb itself waits for minutes for a server that is not there.
                if not reachable(self.address, 0.0):
                    raise ConnectionRefusedError("no server listens there")
                self._sample(count)
                self._trouble = ""
            except (tf.errors.OpError, OSError, RuntimeError) as error:
                self._trouble = f" ({str(error).splitlines()[0]})"
                time.sleep(_SAMPLE_MS / 1000)

    def _sample(self, count: int) -> None:
        """Fetch up to `count` windows from the server."""
        reverb, tf = load_reverb()
        strings = (tf.string,) * self._layout.num_frames
        scalars = (tf.TensorShape([]),) * self._layout.num_frames
        dataset = reverb.TrajectoryDataset(
            self.address,
            self._table,
            dtypes={"frames": strings, "header": tf.string},
            shapes={"frames": scalars, "header": tf.TensorShape([])},
            max_in_flight_samples_per_worker=min(8, count),
            num_workers_per_iterator=1,
            rate_limiter_timeout_ms=_SAMPLE_MS,
            max_samples=count,
        )
        for sample in dataset.as_numpy_iterator():
            # Under the lock for one window at a time: `sample` may take windows meanwhile.
            with self._changed:
                header: bytes = sample.data["header"]
                if header.startswith(b'{"end"'):
                    # The last entry of an ingest process says how many windows it sent to this queue.
                    end = json.loads(header)
                    self._ends[end["end"]] = end["total"]
                else:
                    window = window_of(header, sample.data["frames"])
                    if self.mode == "uniform":
                        self._pool.append(window)
                    elif window.key not in self._delivered and window.key not in self._arrived:
                        self._arrived[window.key] = window
                self._changed.notify_all()
