"""A training run on disk: its folder, its resolved configuration, its log, its checkpoints, and where it stopped.

    run_dir/config.yaml        resolved; a different configuration in the same folder is an error that names the keys
    run_dir/metrics.jsonl      one object a line: "step" and "stage/quantity_unit"
    run_dir/log.txt            the messages printed to the terminal
    run_dir/tensorboard/ or wandb/   the same metrics for a viewer (`vw2_robot.storage.tracking`)
    run_dir/checkpoints/step_N/ and run_dir/latest
    run_dir/kept/step_N/       checkpoints that stay, without optimizer; run_dir/selected may name one of them
    run_dir/.lock              while a process trains here

A folder is written by one process at a time (of several ranks by rank 0), and no file that was not written here is
ever changed or deleted. A signal lets the step in progress end and a checkpoint be written.
Everything random in training comes from `random_numbers`, so a run needs no stored generator state: killed at
any moment and started again it gives the same weights bit for bit. The training loops are in the programs.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch import nn
from tqdm import tqdm

from vw2_robot.aliases import with_new_keys
from vw2_robot.checkpoint import (
    CHECKPOINTS,
    CURE,
    KEPT,
    SELECTED,
    STEP_FOLDER,
    is_our_checkpoint,
    last_checkpoint,
    step_folders,
    step_of,
)
from vw2_robot.devices import Hardware
from vw2_robot.distributed.ranks import any_rank, is_main, main_first
from vw2_robot.errors import InputError
from vw2_robot.process import DeferredStop
from vw2_robot.storage.binding import check_same_config
from vw2_robot.storage.files import (
    append_line,
    old_name,
    read_yaml,
    sync_files,
    verify,
    write_text,
    write_yaml,
)
from vw2_robot.storage.locks import lock_folder
from vw2_robot.storage.normal_ranges import MAIN_METRICS, NormalRanges, main_metric, normal_ranges, range_at
from vw2_robot.storage.tracking import WANDB_ID, Track, Tracker, open_tracker

ModuleT = TypeVar("ModuleT", bound=nn.Module)
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LATEST = "latest"
# What is written in a moment on any disk, so that a stop may always wait for it.
QUICK_BYTES = 10**9
QUICK_SECONDS = 10.0
_LEFTOVER = re.compile(rf"\.{STEP_FOLDER.pattern}\.(tmp|old)")


FIRST_VALUES = {
    "dldm": {"released_decoder": False, "stem": {"factorized": False}},
    "vdm": {"projection": "attention", "context_tokens": 512},
}
"""options that runs of earlier releases do not have, with what they did; an option that is null then needs no entry"""


def _fill(tree: dict[str, Any], first: Mapping[str, Any]) -> None:
    """Give the sections that are in a stored configuration the options that came later."""
    for key, value in first.items():
        if not isinstance(value, dict):
            tree.setdefault(key, value)
        elif isinstance(tree.get(key), dict):
            _fill(tree[key], value)


class Run:
    """One stage of training in one folder, locked by this process until `close` or the end of the `with`.

    Opening it only reads, or removes leftovers of a run that is complete. `begin` is the first change in the folder:
    call it when everything that can be refused has been checked.

    Args:
        path: the folder; made if missing.
        config: plain nested values (`config_tree`) of everything that decides the result of this stage.
        stage: its name, for messages and the progress bar.
        total_steps: training steps of the whole run.
        save_every: steps between checkpoints; the last step is always saved.
        log_every: steps between lines of metrics.
        hardware: how long a stop may take, and the precision, in which metrics are written; None: the defaults.
        track: where metrics go beside metrics.jsonl.

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
        hardware: Hardware | None = None,
        track: Track = "tensorboard",
    ) -> None:
        self.path = Path(path)
        self.stage = stage
        self.total_steps = total_steps
        self.save_every = save_every
        self.log_every = log_every
        self._tree = dict(config)
        self._track = track
        self._tracker: Tracker | None = None
        self._bar: tqdm[int] | None = None
        self._hardware = hardware or Hardware()
        self._state_bytes = 0
        self._stopping: DeferredStop | None = None
        self._began: tuple[int, float] | None = None
        """first step of this process and the time at which it began"""
        self._phases: list[tuple[int, float]] = []
        """last step before each phase of training, and its number, as far as it was logged"""
        self._last_logged = 0
        self._ranges: NormalRanges | None = None
        self._stopped = ""
        """what is said when the run stops after this step; empty: it goes on"""
        with main_first():
            self._lock = lock_folder(self.path, what=f"training ({stage})") if is_main() else None
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        """Find the last checkpoint, and refuse what cannot be continued."""
        # 1. No links among the run's files: what is written or deleted through them lies elsewhere.
        for name in (CONFIG, METRICS, LATEST, CHECKPOINTS, KEPT, SELECTED, "log.txt", "tensorboard", "wandb", WANDB_ID):
            if (self.path / name).is_symlink():
                raise InputError(
                    f"{self.path / name} is a link, and a run writes and deletes in its own folder alone; replace "
                    "it by what it points to, or use another run_dir"
                )
        # 2. The last checkpoint. Without `latest` (lost, or a kill came before it was written): the newest one.
        unnamed = (folder for folder in step_folders(self.path / CHECKPOINTS) if is_our_checkpoint(folder))
        self.checkpoint = last_checkpoint(self.path) or max(unnamed, key=step_of, default=None)
        self.start = 0 if self.checkpoint is None else step_of(self.checkpoint)
        # 3. The configuration, and foreign folders where checkpoints will be written.
        self._check_configuration()
        for folder in step_folders(self.path / CHECKPOINTS):
            if self.start < step_of(folder) <= self.total_steps:
                self._check_place(folder)
        if not is_main():
            return
        # 4. A complete run: its checkpoint will not be loaded here, and `begin` will not be called.
        if self.checkpoint is not None and self.complete:
            verify(self.checkpoint, cure=CURE)
            self._drop_older_checkpoints()
        if self.checkpoint is not None and not (self.path / LATEST).exists():
            write_text(self.path / LATEST, self.checkpoint.name + "\n")  # the next stage reads it

    @property
    def complete(self) -> bool:
        """Return whether the last checkpoint is that of the last step."""
        return self.start >= self.total_steps

    def _check_configuration(self) -> None:
        """Refuse another configuration once training has begun, and a folder of another kind of run always.

        A run of the same kind that never began gets the new configuration.
        """
        file = self.path / CONFIG
        begun = self.checkpoint is not None or (self.path / METRICS).is_file()
        if not file.exists():
            if begun:
                raise InputError(
                    f"{file} is missing, so the configuration of the run in this folder is unknown; restore "
                    "it, use another run_dir, or delete the folder to start over"
                )
            return
        old = with_new_keys(read_yaml(file, cure="restore it, or delete the folder to start over"))
        _fill(old, FIRST_VALUES)
        known = self._tree.keys()
        found = old.keys()
        # Another release may have sections more or fewer; then the comparison below names them.
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

    def _check_place(self, folder: Path) -> None:
        """Refuse a folder under a checkpoint's name that was not written here."""
        if folder.exists() and not is_our_checkpoint(folder):
            raise InputError(
                f"{folder} was not written by this program, and a checkpoint of this run belongs there; move it away, "
                "or use another run_dir"
            )

    def begin(self, *, state_bytes: int = 0) -> None:
        """Write this configuration into the folder, and drop what came after the last checkpoint.

        Args:
            state_bytes: of a checkpoint; one that takes longer than a stop may last is not written at a stop.

        Raises:
            InputError: the disk has no room for the checkpoints.
        """
        self._state_bytes = state_bytes
        with main_first():
            if is_main():
                self._begin()

    def _begin(self) -> None:
        # A new checkpoint is written before the last one is deleted.
        wanted = self._state_bytes * (2 if self.checkpoint is None else 1)
        if (free := shutil.disk_usage(self.path).free) < wanted:
            raise InputError(
                f"{self.path}: two checkpoints of {self._state_bytes / 1e9:.2g} GB lie there at a time, and only "
                f"{free / 1e9:.2g} GB are free; free some space, or use another disk"
            )
        write_yaml(self.path / CONFIG, self._tree, note=f"a {self.stage} run of vw2_robot")
        file = self.path / METRICS
        damaged = 0
        if file.is_file():
            # Metrics after the last checkpoint will be written again, with the steps that they belong to.
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = []
            for line in lines:
                try:
                    values = json.loads(line)
                    if values["step"] <= self.start:
                        kept.append(line + "\n")
                        self._note_phase(values["step"], values)
                except (ValueError, TypeError, KeyError, RecursionError):
                    damaged += line is not lines[-1]  # the last one may have been cut short by a kill
            write_text(file, "".join(kept))
        # Kept checkpoints, too; and whatever was selected, it was selected among those of a shorter run.
        for folder in step_folders(self.path / KEPT):
            if step_of(folder) > self.start and is_our_checkpoint(folder):
                _delete(folder)
        (self.path / SELECTED).unlink(missing_ok=True)
        self._drop_older_checkpoints()
        if damaged:
            self.log_message(f"{file}: {damaged} damaged lines are left out")
        self._tracker = open_tracker(self._track, self.path, stage=self.stage, config=self._tree, start=self.start)

    def steps(self, stop: int | None = None, *, what: str = "") -> Iterator[int]:
        """Yield step numbers from the present one up to `stop` (default: the end), with a progress bar.

        Args:
            stop: the first step that is not run; None: `total_steps`.
            what: part of the stage, for the progress bar.
        """
        stop = self.total_steps if stop is None else stop
        name = f"{self.stage} {what}".strip()
        with tqdm(
            initial=self.start, total=stop, desc=name, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        ) as bar:
            self._bar = bar
            # A little less than the time there is, for the rest of the way out.
            self._began = (self.start, time.monotonic())
            with DeferredStop(max(1.0, self._hardware.grace_seconds - 2.0)) as self._stopping:
                while self.start < stop:
                    yield self.start
                    self.start += 1
                    bar.update()
                    if self._stopped:
                        self._stopping.stop(self._stopped)
            self._bar = None

    def skip_to(self, step: int) -> None:
        """Skip the steps up to `step`; call it at the end of a step, inside the loop, with a checkpoint saved."""
        self.start = step - 1  # the loop counts the present step

    def due(self, step: int, every: int) -> bool:
        """Return whether the step just finished is a multiple of `every`, or the last one."""
        return (step + 1) % every == 0 or step + 1 == self.total_steps

    def checkpoint_due(self, step: int, every: int) -> bool:
        """Return whether a checkpoint is written after this step; call it once at the end of every step, on all ranks.

        Args:
            step: number of the step just finished.
            every: steps between two checkpoints.
        """
        if not any_rank(self._stopping is not None and self._stopping.signal is not None):
            return self.due(step, every)
        fits = self._state_bytes <= QUICK_BYTES or self._hardware.grace_seconds > QUICK_SECONDS
        due = fits or self.due(step, every)
        last = step + 1 if due else 0 if self.checkpoint is None else step_of(self.checkpoint)
        self._stopped = f"resumable: the same command continues from step {last} of {self.stage}"
        if not due:
            self._stopped += (
                f" (a checkpoint of {self._state_bytes / 1e9:.1f} GB is not written within "
                f"{self._hardware.grace_seconds:g} s; hardware.grace_seconds says how long a stop may take)"
            )
        return due

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of metrics (tensors are fetched here) after `step + 1` finished steps; rank 0 writes."""
        if not is_main():
            return
        decimals = 17 if self._hardware.precision == "float64" else 8
        plain = {key: round(float(value), decimals) for key, value in values.items()}
        append_line(self.path / METRICS, json.dumps({"step": step + 1, **plain}))
        self._note_phase(step + 1, plain)
        main = self._main_text(step + 1, plain)
        if self._bar is not None:
            shown = (f"{key.split('/', 1)[1]}={value:.3g}" for key, value in list(plain.items())[:4])
            self._bar.set_postfix_str(main or ", ".join(shown), refresh=False)
        if self._bar is None or self._bar.disable:
            numbers = " ".join(f"{name}={value:.4g}" for name, value in plain.items())
            where = ", ".join(filter(None, [f"step {step + 1}/{self.total_steps}", self._time_text(step + 1), main]))
            self.log_message(f"{where}: {numbers}")
        if self._tracker is None:
            return
        try:
            self._tracker.write(step + 1, plain)
        except OSError as error:  # the same numbers are in metrics.jsonl
            self._tracker = None
            self.log_message(f"no more metrics for {self._track}: {error}")

    def _note_phase(self, step: int, values: Mapping[str, float]) -> None:
        """Keep at which step a phase of training began."""
        phase = next((value for key, value in values.items() if key.endswith("/phase")), 1.0)
        if not self._phases or self._phases[-1][1] != phase:
            self._phases.append((self._last_logged if self._phases else 0, phase))
        self._last_logged = step

    def _time_text(self, step: int) -> str:
        """Return the rate and the time left; "" before there is a rate."""
        if self._began is None or (done := step - self._began[0]) < 1:
            return ""
        seconds = time.monotonic() - self._began[1]
        left = datetime.timedelta(seconds=round(seconds / done * (self.total_steps - step)))
        return f"{done / max(seconds, 1e-9):.3g} steps/s, {left} left"

    def _main_text(self, step: int, values: Mapping[str, float]) -> str:
        """Return the number that matters in this stage with its normal range; "" where it was not logged."""
        if (key := main_metric(values)) is None:
            return ""
        if self._ranges is None:
            self._ranges = normal_ranges(key.split("/")[0], self._tree)
        text = f"{MAIN_METRICS[key]} {values[key]:.3g}"
        bounds = range_at(self._ranges.curve(key, self._phases), step) if self._ranges is not None else None
        return text if bounds is None else f"{text} (normal {bounds[0]:.2g} to {bounds[1]:.2g})"

    def log_message(self, message: str) -> None:
        """Print a message to the terminal, and append it to log.txt; rank 0 does."""
        if not is_main():
            return
        line = f"[{self.stage}] {message}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        append_line(self.path / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Save a checkpoint after `step + 1` finished steps, name it in `latest`, and delete older ones.

        Args:
            step: number of the step just finished, from 0.
            write: writes the checkpoint into the folder that it is given; all ranks call it.
        """
        # The order matters for a kill in between: older ones go last, when the new one and its name are on disk.
        folder = self._write(CHECKPOINTS, step, write)
        with main_first():
            if is_main():
                # Metrics up to this step are on disk before `latest`: a resumed run does not compute them again.
                sync_files(file for file in [self.path / METRICS] if file.is_file())
                write_text(self.path / LATEST, folder.name + "\n")
            self.checkpoint = folder
            if is_main():
                self._drop_older_checkpoints()

    def keep(self, step: int, write: Callable[[Path], None]) -> None:
        """Write a checkpoint that stays beside the last one, after `step + 1` finished steps; no run continues from it.

        Args:
            step: see `save`.
            write: see `save`.
        """
        self._write(KEPT, step, write)

    def _write(self, place: str, step: int, write: Callable[[Path], None]) -> Path:
        folder = self.path / place / f"step_{step + 1}"
        with main_first():
            folder.parent.mkdir(exist_ok=True)
            self._check_place(folder)
        write(folder)
        return folder

    def _drop_older_checkpoints(self) -> None:
        """Delete the run's checkpoints before the last one, and what a kill left half-written or half-deleted."""
        for older in step_folders(self.path / CHECKPOINTS):
            if self.checkpoint is not None and step_of(older) < step_of(self.checkpoint) and is_our_checkpoint(older):
                _delete(older)
        for entry in [*self.path.glob(f"{CHECKPOINTS}/.*"), *self.path.glob(f"{KEPT}/.*")]:
            if _LEFTOVER.fullmatch(entry.name) and not entry.is_symlink() and entry.is_dir():
                shutil.rmtree(entry)

    def close(self) -> None:
        """Release the lock of the folder, and end what was opened for metrics."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and not error.args:  # `process.orderly` prints it
            step = 0 if self.checkpoint is None else step_of(self.checkpoint)
            error.args = (f"the same command continues from step {step} of {self.stage}",)
        self.close()


def _delete(folder: Path) -> None:
    """Delete a checkpoint."""
    # Renamed first: a kill in the middle then leaves nothing half-deleted under a checkpoint's name.
    old = old_name(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder.rename(old))
