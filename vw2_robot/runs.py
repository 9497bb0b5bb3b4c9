"""A run on disk: its folder, its resolved configuration, its log, its checkpoints, and where it stopped.

    run_dir/config.yaml        resolved; a different configuration in the same folder is an error that names the keys
    run_dir/metrics.jsonl      one object a line: "step" and "stage/quantity_unit"
    run_dir/log.txt            what a person would have seen on the terminal
    run_dir/tensorboard/       the same metrics, when the `track` extra is installed
    run_dir/checkpoints/step_N/ and run_dir/latest
    run_dir/.lock              while a process trains here

A folder has one owner, and nothing in it that was not written here is ever changed or deleted. Everything random in
training comes from `generator(seed, step)`, so a run needs no stored generator state: killed at any moment and started
again it gives the same weights bit for bit. Learning itself stays in the programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from tqdm import tqdm

from vw2_robot.aliases import with_new_keys
from vw2_robot.binding import check_same_config
from vw2_robot.checkpoint import CURE, STEP_FOLDER, is_our_checkpoint, last_checkpoint
from vw2_robot.devices import open_device
from vw2_robot.errors import InputError, require
from vw2_robot.storage.files import (
    append_line,
    named,
    old_name,
    read_yaml,
    sync_files,
    verify,
    write_text,
    write_yaml,
)
from vw2_robot.storage.locks import lock_folder

CONFIG, METRICS, LATEST, CHECKPOINTS = "config.yaml", "metrics.jsonl", "latest", "checkpoints"
_LEFTOVER = re.compile(rf"\.{STEP_FOLDER.pattern}\.(tmp|old)")


@dataclass(frozen=True)
class Hardware:
    """Facts of the machine; they may differ between two starts of one run."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:0, ..."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast for matrix products; quantizer, losses and weights stay float32"""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice. Bit-exact resume needs the same number."""
    compile: bool = False
    """dLDM stage: encoder and decoder through torch.compile; minutes at the start, worth it on a GPU"""
    gradient_checkpointing: bool = False
    """VDM and dLDM stages: compute activations again on the way back instead of keeping them; same numbers"""

    def torch_device(self, *, option: str = "hardware.device") -> torch.device:
        """The device meant, after setting the number of threads.

        Raises:
            InputError: if it is not there.
        """
        if self.threads > 0:
            torch.set_num_threads(self.threads)
        device = open_device(self.device, option=option)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
        return device

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision context of forward passes."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def generator(seed: int, step: int, *, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, stream, step) alone."""
    mixed = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + step * 0x94D049BB133111EB) & (2**63 - 1)
    return torch.Generator().manual_seed(mixed)


class Run:
    """One stage of training in one folder, which this process owns until `close` or the end of the `with`.

    Opening it only reads, or tidies up a run that is complete. `begin` is the first change in the folder, for when
    everything that a command can be refused for has been looked at.

    Args:
        path: the folder; made if missing.
        config: plain nested values (`config_tree`) of everything that decides the result of this stage.
        stage: name shown in progress.
        total_steps: where the run ends; `complete` compares with it.
        save_every: steps between checkpoints; the last step is always saved.

    Raises:
        InputError: another process works here, the folder is not that of such a run, or a file in it is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        stage: str,
        total_steps: int,
        save_every: int,
        log_every: int,
    ) -> None:
        self.path, self.stage, self.total_steps = Path(path), stage, total_steps
        self.save_every, self.log_every = save_every, log_every
        self._tree = dict(config)
        self._board: Board | None = None
        self._bar: tqdm[int] | None = None
        self._lock = lock_folder(self.path, what=f"training ({stage})")
        try:
            self._check_links()
            self.checkpoint = last_checkpoint(self.path) or self._unnamed_checkpoint()
            self.start = 0 if self.checkpoint is None else _step_of(self.checkpoint)
            self._check_configuration()
            self._check_strangers()
            if self.checkpoint is not None and self.complete:  # nobody will load it, and `begin` will not be called
                verify(self.checkpoint, cure=CURE)
                self._drop_older_checkpoints()
            if self.checkpoint is not None and not (self.path / LATEST).exists():
                write_text(self.path / LATEST, self.checkpoint.name + "\n")  # other stages look for it
        except BaseException:
            self._lock.release()
            raise

    @property
    def complete(self) -> bool:
        """Whether the last checkpoint is that of the last step."""
        return self.start >= self.total_steps

    def _check_links(self) -> None:
        """Refuse links among our own names: what is written or deleted through them lies elsewhere."""
        for name in (CONFIG, METRICS, LATEST, CHECKPOINTS, "log.txt", "tensorboard"):
            if (self.path / name).is_symlink():
                raise InputError(
                    f"{self.path / name} is a link, and a run writes and deletes in its own folder alone; replace it "
                    "by what it points to, or use another run_dir"
                )

    def _unnamed_checkpoint(self) -> Path | None:
        """The newest checkpoint where a kill came between the first one and `latest`, or `latest` was lost."""
        return max((folder for folder in self._step_folders() if is_our_checkpoint(folder)), key=_step_of, default=None)

    def _step_folders(self) -> list[Path]:
        folder = self.path / CHECKPOINTS
        found = list(folder.iterdir()) if folder.is_dir() else []
        return [entry for entry in found if STEP_FOLDER.fullmatch(entry.name)]

    def _check_configuration(self) -> None:
        """Refuse another configuration where there is progress to protect, and a folder of another kind of run.

        A run of ours that never began is taken over.
        """
        file, begun = self.path / CONFIG, self.checkpoint is not None or (self.path / METRICS).is_file()
        if not file.exists():
            if begun:
                raise InputError(
                    f"{file} is missing, so nobody can tell which configuration the run in this folder has; restore "
                    "it, use another run_dir, or delete the folder to start over"
                )
            return
        old = with_new_keys(read_yaml(file, cure="restore it, or delete the folder to start over"))
        known, found = self._tree.keys(), old.keys()
        if not (found <= known or found >= known if begun else found == known):
            sections = ", ".join(sorted(map(str, found))[:8])
            raise InputError(
                f"{file} is not that of a {self.stage} run (its sections: {sections}); use another run_dir"
            )
        if begun:
            check_same_config(
                self.path,
                old,
                self._tree,
                holds=f"a {self.stage} run with another configuration",
                advice="Use another run_dir, or delete this folder to start over",
            )

    def _check_strangers(self) -> None:
        """Refuse to train toward a place where something lies that is not ours."""
        for folder in self._step_folders():
            if self.start < _step_of(folder) <= self.total_steps:
                self._check_place(folder)

    def _check_place(self, folder: Path) -> None:
        if folder.exists() and not is_our_checkpoint(folder):
            raise InputError(
                f"{folder} was not written by this program, and a checkpoint of this run belongs there; move it away, "
                "or use another run_dir"
            )

    def begin(self) -> None:
        """Bind the folder to this configuration, and forget what came after the last checkpoint."""
        write_yaml(self.path / CONFIG, self._tree, note=f"a {self.stage} run of vw2_robot")
        damaged = self._forget_after(self.start)
        self._drop_older_checkpoints()
        if damaged:
            self.log_message(f"{self.path / METRICS}: {damaged} damaged lines are left out")

    def _forget_after(self, step: int) -> int:
        """Drop metric lines written after the last checkpoint: they will be written again; returns damaged ones."""
        file = self.path / METRICS
        if not file.is_file():
            return 0
        lines, kept, damaged = file.read_text(encoding="utf-8", errors="replace").splitlines(), [], 0
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged += line is not lines[-1]  # the last one may have been cut short by a kill
        write_text(file, "".join(kept))
        return damaged

    def steps(self, stop: int | None = None, *, what: str = "") -> Iterator[int]:
        """Step numbers from where the run stands up to `stop` (default: the end), under a progress bar."""
        stop = self.total_steps if stop is None else stop
        name = f"{self.stage} {what}".strip()
        with tqdm(
            initial=self.start, total=stop, desc=name, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        ) as bar:
            self._bar = bar
            while self.start < stop:
                yield self.start
                self.start += 1
                bar.update()
            self._bar = None

    def skip_to(self, step: int) -> None:
        """Leave out the steps up to `step`; call it after leaving the loop over `steps`, with a checkpoint saved."""
        self.start, self._bar = step, None

    def due(self, step: int, every: int) -> bool:
        """Whether the step just finished is a multiple of `every`, or the last one."""
        return (step + 1) % every == 0 or step + 1 == self.total_steps

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of metrics (tensors are fetched here) after `step + 1` finished steps."""
        plain = {key: round(float(value), 8) for key, value in values.items()}
        append_line(self.path / METRICS, json.dumps({"step": step + 1, **plain}))
        if self._bar is not None:
            shown = {key.split("/", 1)[1]: f"{value:.3g}" for key, value in list(plain.items())[:4]}
            self._bar.set_postfix(shown, refresh=False)
        if self._bar is None or self._bar.disable:
            self.log_message(
                f"step {step + 1}/{self.total_steps} " + " ".join(f"{k}={v:.4g}" for k, v in plain.items())
            )
        self._write_board(step + 1, plain)

    def _write_board(self, step: int, values: Mapping[str, float]) -> None:
        try:
            if self._board is None:
                self._board = Board(self.path / "tensorboard", purge_step=self.start)
            self._board.write(step, values)
        except OSError as error:  # the same numbers are in metrics.jsonl
            self._board = Board(None)
            self.log_message(f"no more metrics for TensorBoard: {error}")

    def log_message(self, message: str) -> None:
        """A line for people: terminal and log.txt."""
        line = f"[{self.stage}] {message}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        append_line(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """After `step + 1` finished steps: checkpoint by `write(folder)`, point `latest` at it, drop older ones.

        The older ones go last, when the new one and all that leads to it are on disk.
        """
        folder = self.path / CHECKPOINTS / f"step_{step + 1}"
        folder.parent.mkdir(exist_ok=True)
        self._check_place(folder)
        write(folder)
        sync_files(file for file in [self.path / METRICS] if file.is_file())
        write_text(self.path / LATEST, folder.name + "\n")
        self.checkpoint = folder
        self._drop_older_checkpoints()

    def _drop_older_checkpoints(self) -> None:
        """Our own checkpoints before the last one go, and what a kill left half-written or half-deleted."""
        for older in self._step_folders():
            if self.checkpoint is not None and _step_of(older) < _step_of(self.checkpoint) and is_our_checkpoint(older):
                shutil.rmtree(old_name(older), ignore_errors=True)
                older.rename(old_name(older))
        folder = self.path / CHECKPOINTS
        for entry in list(folder.iterdir()) if folder.is_dir() else []:
            if _LEFTOVER.fullmatch(entry.name) and not entry.is_symlink() and entry.is_dir():
                shutil.rmtree(entry)

    def close(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and not error.args:  # what the program tells when it was stopped
            step = 0 if self.checkpoint is None else _step_of(self.checkpoint)
            error.args = (f"the same command goes on from step {step} of {self.stage}",)
        self.close()


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


class Board:
    """Scalars for TensorBoard, where the `track` extra is installed; without it, or without a folder, nothing.

    Written here and now: the thread of `SummaryWriter` dies with a traceback of its own on a full disk.
    """

    def __init__(self, folder: Path | None, *, purge_step: int = 0) -> None:
        self._path: Path | None = None
        if folder is None:
            return
        try:
            events = require("tensorboard.compat.proto.event_pb2", extra="track")
            self._summary = require("tensorboard.compat.proto.summary_pb2", extra="track").Summary
            self._records = require("tensorboard.summary.writer.record_writer", extra="track").RecordWriter
        except ImportError:  # missing, or without a package of its own: metrics.jsonl has everything
            return
        folder.mkdir(exist_ok=True)
        self._path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._event = events.Event
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log=events.SessionLog(status=events.SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one value for each tag.

        Raises:
            OSError: with the name of the file.
        """
        if self._path is not None:
            pairs = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self._add(step=step, summary=self._summary(value=pairs))

    def _add(self, **content: Any) -> None:
        assert self._path is not None
        with named(self._path), self._path.open("ab") as file:
            self._records(file).write(self._event(wall_time=time.time(), **content).SerializeToString())
