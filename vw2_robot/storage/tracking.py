"""Where the metrics of a training run go beside metrics.jsonl: to TensorBoard, to Weights & Biases, or nowhere.

    track=tensorboard   event files in run_dir/tensorboard, where the extra `track` is installed
    track=wandb         project vw2_robot of Weights & Biases, with the extra `wandb`; run_dir/wandb has the run's files
    track=none          metrics.jsonl alone

Weights & Biases needs `wandb login` once, or nothing with WANDB_MODE=offline in the environment: then the run stays in
run_dir/wandb until `wandb sync` uploads it. A training that is resumed continues the same run there.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from vw2_robot.errors import InputError, require
from vw2_robot.storage.files import named, write_text

Track = Literal["tensorboard", "wandb", "none"]
WANDB_ID = "wandb_id"
"""file with the identifier under which Weights & Biases knows the run"""


class Tracker(Protocol):
    """A place for metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one value for each name after `step` finished steps; OSError if the disk refuses."""

    def close(self) -> None:
        """Finish what is written."""


def open_tracker(track: Track, folder: Path, *, stage: str, config: Mapping[str, Any], start: int) -> Tracker | None:
    """Open what `track` names, for a run that begins or continues; None where there is nothing to write to.

    Args:
        track: where metrics go.
        folder: of the run.
        stage: of the run, for its name.
        config: nested plain values that a viewer shows.
        start: finished steps.

    Raises:
        MissingExtraError: track=wandb without its extra.
        InputError: Weights & Biases refuses the run.
    """
    if track == "wandb":
        return WandbRun(folder, stage=stage, config=config)
    if track == "none":
        return None
    try:
        return Board(folder / "tensorboard", purge_step=start)
    except ImportError:  # missing, or without a package of its own: metrics.jsonl has everything
        return None


class Board:
    """A writer of TensorBoard scalars.

    It writes in the calling thread: the thread of `SummaryWriter` dies with a traceback on a full disk.

    Args:
        folder: of the event files; made with the first of them.
        purge_step: TensorBoard drops what earlier files hold from this step on.

    Raises:
        MissingExtraError: the extra `track` is not installed.
    """

    def __init__(self, folder: Path, *, purge_step: int = 0) -> None:
        self._events = require("tensorboard.compat.proto.event_pb2", extra="track")
        self._summary = require("tensorboard.compat.proto.summary_pb2", extra="track").Summary
        self._records = require("tensorboard.summary.writer.record_writer", extra="track").RecordWriter
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._purge_step = purge_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one value for each tag.

        Raises:
            OSError: with the name of the file.
        """
        if not self._path.exists():
            self._path.parent.mkdir(exist_ok=True)
            # TensorBoard expects this as the first event of a file.
            self._add(file_version="brain.Event:2")
            started = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(step=self._purge_step, session_log=started)
        pairs = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step=step, summary=self._summary(value=pairs))

    def close(self) -> None:
        """Do nothing: every event is in the file already."""

    def _add(self, **content: Any) -> None:
        """Append one event to the file."""
        # Opened for each event, so that none waits in a buffer when the process is killed.
        with named(self._path), self._path.open("ab") as file:
            self._records(file).write(self._events.Event(wall_time=time.time(), **content).SerializeToString())


class WandbRun:
    """A run of Weights & Biases, which its library uploads from a process of its own.

    Args:
        folder: of the training run.
        stage: of the run, a part of its name.
        config: nested plain values.

    Raises:
        MissingExtraError: the extra `wandb` is not installed.
        InputError: the library cannot begin the run, as without a login.
    """

    def __init__(self, folder: Path, *, stage: str, config: Mapping[str, Any]) -> None:
        wandb = require("wandb", extra="wandb")
        file = folder / WANDB_ID
        # Random and kept, so that a resumed training continues the run, and a deleted folder begins another.
        if not file.is_file():
            write_text(file, secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project="vw2_robot",
                id=file.read_text(encoding="utf-8").strip(),
                name=f"{folder.absolute().parent.name}/{stage}",
                config=dict(config),
                dir=str(folder),
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise InputError(
                f"track=wandb: {error}; run `wandb login`, or set WANDB_MODE=offline, or use track=tensorboard"
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one value for each name; the library takes steps in order, and drops one that it has."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait for the upload."""
        self._run.finish()
