"""The ingest side of a Reverb replay.

Windows are sent first, then the server confirms them, then the progress is stored. Reverb's writer reconnects without
an error when its server is started again, and what the server confirmed since its last checkpoint is lost then. So
before and after storing progress the writer checks that this is still the same start of the server (its newest session
table) and that it holds as many progress records as were written (their number is part of the checkpoint). If not, the
writer continues from the stored progress.

Reverb's writer blocks the whole interpreter when it is destroyed while something is not confirmed, because its server
is gone or the queue is full. It is leaked then (`_abandon_all`); the process should end and be started again.
"""

from __future__ import annotations

import ctypes
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from vw2_robot.errors import InputError

from ..step_names import IS_LAST, OBSERVATION
from .reverb_tables import (
    CALL_SECONDS,
    connect,
    layout_of,
    load_reverb,
    reachable,
    read_record,
    server_info,
    session_of,
    write_record,
    writer_config,
)
from .windows import CutEpisode, Progress, ReplayTimeout, padded_steps, share_of


class ReverbWriter:
    """One ingest process's connection to a server; a `ReplayWriter`.

    Args:
        address: host:port.
        ingest: which ingest process this is.
        timeout_seconds: how long to wait for the server to appear, and for room for one episode.

    Raises:
        InputError: the server was started for fewer ingest processes.
        ReplayTimeout: no server was found in time.
    """

    def __init__(self, address: str, *, ingest: int = 0, timeout_seconds: float = 600.0) -> None:
        self.address = address
        self._timeout_seconds = timeout_seconds
        self._table = f"progress-{ingest}"
        self._client = connect(address, timeout_seconds=timeout_seconds)
        self._layout = layout_of(self._client, address, CALL_SECONDS)
        if not 0 <= ingest < self._layout.ingests:
            raise InputError(
                f"ingest {ingest}: the replay server at {address} serves {self._layout.ingests} ingest processes, "
                "counted from 0"
            )
        self._ingest = ingest
        self._writers: dict[tuple[int, ...], Any] = {}
        self._notes: Any = self._client.trajectory_writer(1)
        self._confirmed = True  # whether the server has everything that was sent
        self._session = 0
        self._commits = 0
        self._totals = [0] * len(self._layout.tables)
        self._plan = ""
        self._stored: dict[str, Any] = {}

    @property
    def ingests(self) -> int:
        """How many ingest processes the server serves."""
        return self._layout.ingests

    def progress(self, plan: str) -> Progress:
        """See `ReplayWriter.progress`."""
        self._plan = plan
        self._session, self._commits = self._server_state()
        record = self._records().get(self._ingest)
        if record is None or record["commits"] != self._commits:
            # There is no record yet, or it followed others that a restored checkpoint does not have: start again. The
            # readers drop windows that they already got.
            totals = [0] * len(self._layout.tables)
            record = {"plan": self._plan, "progress": asdict(Progress()), "totals": totals}
        self._stored = record
        self._totals = list(record["totals"])
        return Progress.of(record["progress"])

    def add(self, cut: CutEpisode, after: Progress) -> bool:
        """See `ReplayWriter.add`."""
        if len(cut.offsets) != self._layout.num_frames:
            raise InputError(
                f"windows have {len(cut.offsets)} frames, the replay server at {self.address} expects "
                f"{self._layout.num_frames}; give both the same num_frames and temporal_stride"
            )
        shares = len(self._layout.tables)
        self._send(cut.offsets, steps_of(cut, shares=shares))
        # Sent windows are counted for each queue; `finish` reports the numbers to the readers.
        for window in cut.windows:
            self._totals[share_of(window, shares)] += 1
        return self._commit(after)

    def finish(self, after: Progress) -> bool:
        """See `ReplayWriter.finish`: each queue gets the number of windows that this process sent to it."""
        self._records()  # checks that all ingest processes have the same plan
        # The end of the data is a window without images, whose header holds the number of windows sent.
        offsets = tuple(range(self._layout.num_frames))
        for share, (name, total) in enumerate(zip(self._layout.tables, self._totals, strict=True)):
            if name.startswith("queue-"):
                header = json.dumps({"end": self._ingest, "total": total}).encode()
                steps = [_step(b"", b"", 0)] * (len(offsets) - 1)
                self._send(offsets, [*steps, _step(b"", header, 1 + share)])
        return self._commit(after)

    def close(self) -> None:
        """See `ReplayWriter.close`."""
        # Destroying a writer with unconfirmed data would block, see the top of this file.
        if not self._confirmed or not reachable(self.address, 0.0):
            self._abandon_all()
        self._writers = {}

    def _send(self, offsets: tuple[int, ...], steps: list[dict[str, Any]]) -> None:
        """Write the steps of an episode and wait until the server has all windows that end in them."""
        # One writer for each frame rate: a structured writer has a fixed pattern.
        if offsets not in self._writers:
            configs = [
                writer_config(offsets, table=name, number=number)
                for number, name in enumerate(self._layout.tables, start=1)
            ]
            self._writers[offsets] = self._client.structured_writer(configs)
        writer = self._writers[offsets]
        self._confirmed = False
        for number, step in enumerate(steps):
            writer.append(step)
            if number % 64 == 63:  # bounds the memory of what is not sent yet
                self._confirm(functools.partial(writer.flush, 32))
        self._confirm(functools.partial(writer.end_episode, True), functools.partial(writer.flush, 0))
        self._confirmed = True

    def _confirm(self, first: Callable[..., None], again: Callable[..., None] | None = None) -> None:
        """Call `first`, then `again` (or `first`), until the server confirms.

        Raises:
            ReplayTimeout: it did not in time, or it is gone.
        """
        reverb, _ = load_reverb()
        deadline = time.monotonic() + self._timeout_seconds
        call = first
        while True:
            try:
                call(timeout_ms=1000)
            except reverb.errors.DeadlineExceededError as error:
                if time.monotonic() < deadline:
                    call = again or first  # the episode has ended, even if its end was not confirmed in time
                    continue
                raise self._give_up(f"no room or no answer for {self._timeout_seconds:g} s") from error
            except RuntimeError as error:
                raise self._give_up(str(error)) from error
            return

    def _give_up(self, why: str) -> ReplayTimeout:
        """Abandon the connection; return the error to raise."""
        is_gone = not reachable(self.address, 0.0)
        gone = "no server listens there any more." if is_gone else "does a trainer sample from it?"
        self._abandon_all()
        return ReplayTimeout(
            f"the replay server at {self.address} did not take an episode: {why}; {gone} Start the server again if it "
            "ended, then this process: it continues where it was"
        )

    def _abandon_all(self) -> None:
        for writer in [*self._writers.values(), self._notes]:
            # One more reference, so that Python never destroys it: its destructor would wait without end while it holds
            # the interpreter's lock.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(writer))
        self._writers = {}

    def _server_state(self) -> tuple[int, int]:
        """Return the number of the server's start, and how many progress records it received from this process."""
        info = server_info(self._client, self.address, CALL_SECONDS)
        return session_of(info), int(info[self._table].rate_limiter_info.insert_stats.completed)

    def _records(self) -> dict[int, dict[str, Any]]:
        """Return the last record of each ingest process that has one.

        Raises:
            InputError: one of them has another plan, so that windows would come twice or not at all.
        """
        # A table without a record must not be read: the request would wait for one.
        info = server_info(self._client, self.address, CALL_SECONDS)
        found: dict[int, dict[str, Any]] = {}
        for ingest in range(self._layout.ingests):
            table = f"progress-{ingest}"
            if not info[table].current_size:
                continue
            record = read_record(self._client, table, self.address)
            found[ingest] = record
            if record["plan"] != self._plan:
                raise InputError(
                    f"ingest {ingest} of the replay server at {self.address} was filled by another plan (sources, "
                    "windows, seed, epochs or number of ingest processes differ); use that plan, or a fresh server "
                    "folder"
                )
        return found

    def _commit(self, after: Progress) -> bool:
        """Store progress; False if the server was restored to a checkpoint meanwhile."""
        if not self._unbroken():
            return False
        record = {"plan": self._plan, "progress": asdict(after), "totals": list(self._totals)}
        self._write(record)
        if not self._unbroken():
            # The server may have been restored just before it received the record: overwrite that record.
            self._write(self._stored)
            return False
        self._stored = record
        return True

    def _write(self, record: dict[str, Any]) -> None:
        """Send a progress record and wait until the server has it."""
        # The record holds its own number, so that a gap shows after a restore.
        self._commits += 1
        self._confirmed = False
        write_record(self._notes, self._table, {**record, "commits": self._commits})
        self._confirm(self._notes.flush)
        self._confirmed = True

    def _unbroken(self) -> bool:
        """Whether the server was never restored since the last call of `progress`.

        Raises:
            InputError: another process writes under the same number.
        """
        session, count = self._server_state()
        if session == self._session and count > self._commits:
            raise InputError(
                f"another process writes as ingest {self._ingest} to the replay server at {self.address}; end one of "
                "the two"
            )
        return session == self._session and count == self._commits


def steps_of(cut: CutEpisode, *, shares: int) -> list[dict[str, Any]]:
    """Return an episode as steps of `reverb_tables.step_spec`, padded so that every window has the same pattern."""
    steps = [
        _step(image, window.header() if window is not None else b"", 1 + share_of(window, shares) if window else 0)
        for image, window in padded_steps(cut)
    ]
    # The end of an episode is marked, so that no window reaches into the next one.
    if steps:
        steps[-1][IS_LAST] = np.bool_(True)
    return steps


def _step(image: bytes, header: bytes, table: int) -> dict[str, Any]:
    return {
        # An object array: as plain bytes, or numpy's own strings, an image would lose the zeros at its end.
        OBSERVATION: np.array(image, dtype=object),
        "header": np.array(header, dtype=object),
        "table": np.int64(table),
        IS_LAST: np.bool_(False),
    }
