"""The trainer side of a Reverb replay: one rank draws windows from a server on this or another machine."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vw2_robot.errors import InputError

from .reverb_tables import CALL_S, connect, layout_of, load_reverb, reachable, server_info, store_windows
from .windows import Delivered, Mode, ReplayTimeout, ReplayWindow, window_of

_LOG = logging.getLogger(__name__)
_DRAW_MS = 500  # how long one draw waits on an empty table
_RETRY_S = 0.5  # between two requests for a checkpoint to a server that is away


class ReverbReader:
    """One trainer rank's side of a server; a `Replay`.

    A thread draws as many windows as `sample` asked for and no more, since what is drawn from a queue and not used is
    lost when this process dies. It goes on when a server that was away is back, at the latest two minutes after
    (gRPC's own longest pause).

    Args:
        address: host:port.
        rank: which trainer rank this is.
        ranks: how many there are; a queue server must have been started for as many.
        timeout_seconds: how long to wait for the server to appear.

    Raises:
        InputError: the server serves another number of ranks.
        ReplayTimeout: no server.
    """

    def __init__(self, address: str, *, rank: int = 0, ranks: int = 1, timeout_seconds: float = 60.0) -> None:
        self.address = address
        self._client = connect(address, timeout_seconds=timeout_seconds)
        self._layout = layout_of(self._client, address, CALL_S)
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
        self._wanted, self._trouble, self._closed = 0, "", False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="replay", daemon=True)
        self._thread.start()

    def sample(self, count: int, *, timeout_seconds: float) -> list[ReplayWindow]:
        """See `Replay.sample`."""
        with self._changed:
            self._wanted = count
            self._changed.notify_all()
            came = self._changed.wait_for(lambda: self._held() >= count or self._nothing_left(), timeout_seconds)
            self._wanted = 0
            if not came:
                missing = sum(self._ends.values()) - self._delivered.count - len(self._arrived)
                known = f"; {missing} of this rank's windows are still to come" if self._all_ends() else ""
                raise ReplayTimeout(
                    f"the replay server at {self.address} gave {self._held()} of {count} windows in "
                    f"{timeout_seconds:g} s"
                    f"{known}{self._trouble}; is it running, and does an ingest process fill it?"
                )
            if self.mode == "uniform":
                drawn, self._pool = self._pool[:count], self._pool[count:]
                return drawn
            keys = list(self._arrived)[:count]
            for key in keys:
                self._delivered.add(key)
            return [self._arrived.pop(key) for key in keys]

    def size(self) -> int:
        """See `Replay.size`."""
        found: int = server_info(self._client, self.address, CALL_S)[self._table].current_size
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
            self._arrived = {key: window for key, window in self._arrived.items() if key not in self._delivered}
            self._ends = {int(ingest): total for ingest, total in state["ends"].items()}

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """See `Replay.checkpoint`; the path is one on the server's machine.

        A server that ends meanwhile, or is away, is waited for as in `sample`, and asked again.
        """
        deadline, waiting = time.monotonic() + timeout_seconds, False
        while True:
            try:
                if not reachable(self.address, 0.0):
                    raise ReplayTimeout(f"no replay server listens at {self.address}; is it running?")
                return store_windows(self._client, self.address, max(deadline - time.monotonic(), 1.0))
            except ReplayTimeout as error:
                if time.monotonic() + _RETRY_S > deadline:
                    raise ReplayTimeout(f"no checkpoint of the replay within {timeout_seconds:g} s: {error}") from error
                if not waiting:
                    _LOG.warning("%s The checkpoint waits for it, at most %g s", error, timeout_seconds)
                waiting = True
                time.sleep(_RETRY_S)

    def close(self) -> None:
        """See `Replay.close`; a draw that hangs on a lost server is left behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(2 * _DRAW_MS / 1000)

    def _held(self) -> int:
        return len(self._arrived) + len(self._pool)

    def _all_ends(self) -> bool:
        return self.mode == "queue" and len(self._ends) == self._layout.ingests

    def _nothing_left(self) -> bool:
        return self._all_ends() and self._delivered.count + len(self._arrived) >= sum(self._ends.values())

    # ------------------------------------------------------------------------------------------------ drawing thread

    def _work(self) -> None:
        _, tf = load_reverb()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted > self._held())
                if self._closed:
                    return
                count = min(64, self._wanted - self._held())
            try:
                if not reachable(self.address, 0.0):
                    raise ConnectionRefusedError("nobody listens there")
                self._draw(count)
                self._trouble = ""
            except (tf.errors.OpError, OSError, RuntimeError) as error:
                self._trouble = f" ({str(error).splitlines()[0]})"
                time.sleep(_DRAW_MS / 1000)

    def _draw(self, count: int) -> None:
        reverb, tf = load_reverb()
        strings, scalars = (tf.string,) * self._layout.num_frames, (tf.TensorShape([]),) * self._layout.num_frames
        dataset = reverb.TrajectoryDataset(
            self.address,
            self._table,
            dtypes={"frames": strings, "header": tf.string},
            shapes={"frames": scalars, "header": tf.TensorShape([])},
            max_in_flight_samples_per_worker=min(8, count),
            num_workers_per_iterator=1,
            rate_limiter_timeout_ms=_DRAW_MS,
            max_samples=count,
        )
        for sample in dataset.as_numpy_iterator():
            with self._changed:
                self._take(sample.data["header"], sample.data["frames"])
                self._changed.notify_all()

    def _take(self, header: bytes, frames: Sequence[bytes]) -> None:
        if header.startswith(b'{"end"'):
            end = json.loads(header)
            self._ends[end["end"]] = end["total"]
            return
        window = window_of(header, frames)
        if self.mode == "uniform":
            self._pool.append(window)
        elif window.key not in self._delivered and window.key not in self._arrived:
            self._arrived[window.key] = window
