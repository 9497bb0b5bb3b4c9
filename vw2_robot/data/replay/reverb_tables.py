"""The tables of a Reverb server, the pattern of a window, and calls with time limits. Only this file imports Reverb.

Tables of a server:

    queue-<rank>         mode queue: one for each trainer rank; a window is removed when it is sampled, in random order
    pool                 mode uniform: one for all; sampled with replacement, the oldest is removed when it is full
    progress-<ingest>    the last `Progress` of each ingest process, in the same checkpoint as the windows
    session-<number>     always empty: one for each start of the server, so that a client notices a new start
    checkpoint           the last requested checkpoint that is safely on the server's disk

A window is written by Reverb's structured writer as a pattern over the steps of a padded episode (`window_pattern`), so
overlapping windows share their frames on the server. Its steps are named as in RLDS: ingest processes cut the windows
with the same pattern (`rlds_transformations.py`).

Every call ends in time, either by Reverb's own limit or because it runs in a thread that is abandoned (`within`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import platform
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vw2_robot.errors import InputError, MissingExtraError, require

from ..clips import padded_frames
from ..sources.rlds_builder import prepare_tensorflow
from ..step_names import IS_LAST, OBSERVATION
from .windows import Mode, ReplayTimeout

# T frames of a window
CALL_SECONDS = 10.0  # one small request to a server that is there
_Answer = TypeVar("_Answer")


@functools.cache
def load_reverb() -> tuple[ModuleType, ModuleType]:
    """Import Reverb and its TensorFlow, without warnings and without a GPU.

    Returns:
        The modules reverb and tensorflow.

    Raises:
        MissingExtraError: Reverb is not installed, or does not exist for this Python.
    """
    if sys.version_info >= (3, 12) and importlib.util.find_spec("reverb") is None:
        raise MissingExtraError(
            f"Reverb is made for Python 3.10 and 3.11, here it is {platform.python_version()}; run the replay server, "
            "ingest processes and trainers that use one on those, or train with replay=memory"
        )
    prepare_tensorflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it reads TensorFlow's version by distutils
        reverb = require("reverb", extra="replay")
    tf: ModuleType = reverb.trajectory_dataset.tf
    tf.config.set_visible_devices([], "GPU")  # otherwise TensorFlow would reserve all its memory
    return reverb, tf


@dataclass(frozen=True)
class ServerOptions:
    """Tables and windows of a server; clients read them from the server."""

    mode: Mode = "queue"
    """queue: every window once an epoch; uniform: sampled with replacement"""
    ranks: int = 1
    """trainer ranks"""
    ingests: int = 1
    """ingest processes"""
    num_frames: int = 9
    """T of the windows"""
    temporal_stride: int = 4
    """frames of a latent step"""
    max_windows: int = 10_000
    """limit over all ranks; a window costs about the compressed frames that it does not share with its neighbors"""

    def __post_init__(self) -> None:
        for name in ("ranks", "ingests", "temporal_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.num_frames < 2 or self.max_windows < self.ranks:
            raise ValueError(
                f"num_frames ({self.num_frames}) must be at least 2, max_windows ({self.max_windows}) at least ranks"
            )

    @property
    def tables(self) -> dict[str, int]:
        """Names of the tables that hold windows, with their sizes."""
        if self.mode == "uniform":
            return {"pool": self.max_windows}
        return {f"queue-{rank}": self.max_windows // self.ranks for rank in range(self.ranks)}


# --------------------------------------------------------------------------------------------------------- pattern


def step_spec() -> dict[str, Any]:
    """Return the types of one step: its image, the header of the window that ends here or b"", and its table or 0."""
    _, tf = load_reverb()
    return {
        OBSERVATION: tf.TensorSpec([], tf.string),
        "header": tf.TensorSpec([], tf.string),
        "table": tf.TensorSpec([], tf.int64),
        IS_LAST: tf.TensorSpec([], tf.bool),
    }


def window_pattern(offsets: Sequence[int]) -> Callable[[Any], dict[str, Any]]:
    """Return the pattern of windows with these frame offsets [T], for the structured writer and for rlds.

    Each frame is a column of its own, since offsets need not be evenly spaced; so all frame rates have one signature.
    """

    def pattern(step: Any) -> dict[str, Any]:
        frames = tuple(step[OBSERVATION][offset - offsets[-1] - 1] for offset in offsets)
        return {"frames": frames, "header": step["header"][-1]}

    return pattern


def wanted_at(table: int, spec: Any) -> Any:
    """Return the condition, on steps of `spec`, that the window which ends there is for `table`, counted from 1."""
    reverb, _ = load_reverb()
    return reverb.structured_writer.Condition.data(spec)["table"] == table


def make_tables(options: ServerOptions, *, session: int) -> list[Any]:
    """Return empty tables for start number `session` of a server, from 1 on.

    Reverb restores a checkpoint only into a server that has all its tables, so the tables of earlier sessions stay.
    """
    reverb, _ = load_reverb()
    frames = padded_frames(options.num_frames, options.temporal_stride)
    config = writer_config(tuple(range(frames)), table="any", number=1)
    signature = reverb.structured_writer.infer_signature([config], step_spec())
    # In a queue the rate limiter blocks a writer while the table is full and a reader while it is empty, and each
    # window can be sampled once. In a pool only an empty table blocks, and a full one removes its oldest window.
    queue = options.mode == "queue"
    windows = [
        reverb.Table(
            name,
            sampler=reverb.selectors.Uniform(),
            remover=reverb.selectors.Fifo(),
            max_size=size,
            # 0: without limit
            max_times_sampled=1 if queue else 0,
            rate_limiter=reverb.rate_limiters.Queue(size) if queue else reverb.rate_limiters.MinSize(1),
            signature=signature,
        )
        for name, size in options.tables.items()
    ]
    # Tables of one JSON record: a new record replaces the old one.
    records = [
        reverb.Table(
            name,
            sampler=reverb.selectors.Lifo(),
            remover=reverb.selectors.Fifo(),
            max_size=1,
            rate_limiter=reverb.rate_limiters.MinSize(1),
        )
        for name in (*(f"progress-{ingest}" for ingest in range(options.ingests)), "checkpoint")
    ]
    sessions = [reverb.Table.queue(f"session-{number}", max_size=1) for number in range(1, session + 1)]
    return [*windows, *records, *sessions]


def writer_config(offsets: Sequence[int], *, table: str, number: int) -> Any:
    """Return the configuration with which a structured writer fills `table` with the windows that belong to it.

    Args:
        offsets: frame offsets [T] of a window, in frames of the episode; never decreasing, the window ends at the last.
        table: name of the table on the server.
        number: value of the step entry `table` where a window for this table ends, from 1 on; 0 in a step is no table.

    Returns:
        A configuration for Reverb's structured writer, which takes one for each table.
    """
    writer = load_reverb()[0].structured_writer
    pattern = writer.pattern_from_transform(step_spec(), window_pattern(offsets))
    return writer.create_config(pattern, table=table, conditions=[wanted_at(number, step_spec())])


# ----------------------------------------------------------------------------------------------------- connections


@dataclass(frozen=True)
class ReplayLayout:
    """What a client needs to know of a server: its window tables with their sizes, ingest processes and T."""

    tables: dict[str, int]
    ingests: int
    num_frames: int

    @classmethod
    def of_options(cls, options: ServerOptions) -> ReplayLayout:
        """Return the layout of a server with these options."""
        return cls(options.tables, options.ingests, padded_frames(options.num_frames, options.temporal_stride))


def layout_of(client: Any, address: str, timeout_seconds: float) -> ReplayLayout:
    """Request the layout of a server.

    Args:
        client: Reverb client of the server.
        address: host:port of the server, for the message.
        timeout_seconds: limit of the request in seconds; rounded, at least 1.

    Returns:
        Window tables with their sizes, number of ingest processes, and frames T of a window.

    Raises:
        ReplayTimeout: it does not answer.
    """
    info = server_info(client, address, timeout_seconds)
    # The names and sizes of the tables hold all that a client needs; no other channel is necessary.
    tables = {name: table for name, table in info.items() if name.startswith(("queue-", "pool"))}
    return ReplayLayout(
        tables={name: tables[name].max_size for name in sorted(tables, key=lambda name: (len(name), name))},
        ingests=sum(name.startswith("progress-") for name in info),
        num_frames=len(next(iter(tables.values())).signature["frames"]),
    )


def server_info(client: Any, address: str, timeout_seconds: float) -> dict[str, Any]:
    """Request a description of all tables of a server.

    Args:
        client: Reverb client of the server.
        address: host:port of the server, for the message.
        timeout_seconds: limit of the request in seconds; rounded, at least 1.

    Returns:
        Reverb's description of each table, by the table's name.

    Raises:
        ReplayTimeout: it does not answer.
    """
    reverb, _ = load_reverb()
    try:
        found: dict[str, Any] = client.server_info(max(1, round(timeout_seconds)))
    except (reverb.errors.ReverbError, RuntimeError) as error:
        raise ReplayTimeout(f"the replay server at {address} does not answer ({error}); is it running?") from error
    return found


def session_of(info: dict[str, Any]) -> int:
    """Return the number of the server's start, from its `server_info`."""
    return max(int(name.rpartition("-")[2]) for name in info if name.startswith("session-"))


def read_record(client: Any, table: str, address: str) -> dict[str, Any]:
    """Return the JSON object in a table that holds one.

    Args:
        client: Reverb client of the server.
        table: name of the table, such as `checkpoint`; it must hold a record, for the request waits for one.
        address: host:port of the server, for the message.

    Raises:
        ReplayTimeout: the server does not answer.
    """
    samples = within(
        CALL_SECONDS, f"reading {table} at {address}", lambda: list(client.sample(table, 1, emit_timesteps=False))
    )
    record: dict[str, Any] = json.loads(samples[0].data[0][0])
    return record


def write_record(writer: Any, table: str, record: dict[str, Any]) -> None:
    """Put a JSON object into a table that holds one; the trajectory writer still has to be flushed.

    Args:
        writer: Reverb trajectory writer of the server.
        table: name of the table; the new record replaces the old one.
        record: content, which JSON can hold.
    """
    writer.append({"record": json.dumps(record).encode()})
    writer.create_item(table, 1.0, {"record": writer.history["record"][-1:]})


def store_windows(client: Any, address: str, timeout_seconds: float) -> str:
    """Let the server store all its tables; return the folder, once they are safely on its disk.

    Args:
        client: Reverb client of the server.
        address: host:port of the server, for the message.
        timeout_seconds: limit in seconds for writing the checkpoint and moving it to its folder.

    Returns:
        Path of the checkpoint on the server's disk.

    Raises:
        ReplayTimeout: it took longer, or the server ended meanwhile.
        InputError: the server could not write them.
    """
    what = f"the checkpoint of the replay at {address}"
    deadline = time.monotonic() + timeout_seconds
    session = session_of(server_info(client, address, CALL_SECONDS))
    # First Reverb writes its checkpoint, then the server moves it to a safe place and names it in its table.
    try:
        requested = Path(within(timeout_seconds, what, client.checkpoint)).name
    except ReplayTimeout as error:
        if isinstance(error.__cause__, (RuntimeError, type(None))):  # the connection is lost, or no time is left
            raise
        raise InputError(f"{what} cannot be written ({error.__cause__}); see to the disk of the server") from error
    while True:
        info = server_info(client, address, CALL_SECONDS)
        if session_of(info) != session:
            raise ReplayTimeout(f"{what} failed: the server was started again meanwhile")
        if info["checkpoint"].current_size:
            record = read_record(client, "checkpoint", address)
            if record["name"] >= requested:  # Reverb names checkpoints by the time
                if record["error"]:
                    raise InputError(f"{what} cannot be written ({record['error']}); see to the disk of the server")
                return str(record["path"])
        if time.monotonic() > deadline:
            raise ReplayTimeout(f"{what} took longer than {timeout_seconds:g} s; is the server running?")
        time.sleep(0.05)


def connect(address: str, *, timeout_seconds: float) -> Any:
    """Return a Reverb client of the server at `host:port`, once it listens there.

    Raises:
        InputError: the address is not host:port.
        ReplayTimeout: no server listens there.
    """
    if not reachable(address, timeout_seconds):
        raise ReplayTimeout(
            f"no replay server listens at {address} (waited {timeout_seconds:g} s); start vw2-replay serve there, "
            f"and see "
            "that no firewall is in between"
        )
    reverb, _ = load_reverb()
    return reverb.Client(address)


def reachable(address: str, timeout_seconds: float) -> bool:
    """Return whether a server listens there.

    Called before gRPC is used, which waits longer and longer between its own attempts.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"expected host:port as the address of a replay server, found {address!r}")
    deadline = time.monotonic() + timeout_seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2.0):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def within(timeout_seconds: float, what: str, call: Callable[[], _Answer]) -> _Answer:
    """Return `call()`, which has no time limit of its own.

    Args:
        timeout_seconds: limit.
        what: description of the call for the message.
        call: runs in a thread, which is abandoned at the limit.

    Raises:
        ReplayTimeout: it took longer, or raised an error, which is the cause then.
    """
    answer: list[_Answer] = []
    trouble: list[Exception] = []

    def work() -> None:
        try:
            answer.append(call())
        except Exception as error:  # raised in the caller below
            trouble.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if answer:
        return answer[0]
    why = f"failed: {trouble[0]}" if trouble else f"took longer than {timeout_seconds:g} s"
    raise ReplayTimeout(f"{what} {why}; is the server running?") from (trouble[0] if trouble else None)
