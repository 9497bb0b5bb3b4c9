"""A run on disk: its folder, its resolved configuration, its log, its checkpoints, and where it stopped.

    run_dir/config.yaml        resolved; a different configuration in the same folder is an error that names the keys
    run_dir/metrics.jsonl      one object a line: "step" and "stage/quantity_unit"
    run_dir/log.txt            what a person would have seen on the terminal
    run_dir/tensorboard/       the same metrics, when the `track` extra is installed
    run_dir/checkpoints/step_N/ and run_dir/latest

Everything random in training comes from `generator(seed, step)`, so a run needs no stored generator state: killed at
any moment and started again it gives the same weights bit for bit. Learning itself stays in the programs.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import yaml
from tqdm import tqdm

from vw2_robot.checkpoint import write_text
from vw2_robot.config_tree import differing_keys
from vw2_robot.devices import open_device
from vw2_robot.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """Facts of the machine; they may differ between two starts of one run."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:0, ..."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast for matrix products; quantiser, losses and weights stay float32"""
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
    """One stage of training in one folder.

    Args:
        path: the folder; made if missing.
        config: plain nested values (`config_tree`) of everything that decides the result of this stage.
        stage: name shown in progress.
        total_steps: where the run ends; `complete` compares with it.
        save_every: steps between checkpoints; the last step is always saved.
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
        self.path.mkdir(parents=True, exist_ok=True)
        self._claim(dict(config))
        self.start = self._last_step()
        self._forget_after(self.start)
        self._drop_other_checkpoints()
        self._board: Any = None
        self._bar: tqdm[int] | None = None

    @property
    def complete(self) -> bool:
        """Whether the last checkpoint is that of the last step."""
        return self.start >= self.total_steps

    @property
    def checkpoint(self) -> Path | None:
        """The last complete checkpoint, if there is one."""
        latest = self.path / "latest"
        return self.path / "checkpoints" / latest.read_text(encoding="utf-8").strip() if latest.is_file() else None

    def _claim(self, tree: dict[str, Any]) -> None:
        """Refuse another configuration where there is progress to protect; a run that never began is taken over."""
        file = self.path / "config.yaml"
        begun = (self.path / "metrics.jsonl").is_file() or (self.path / "latest").is_file()
        if begun and file.is_file():
            try:
                old = yaml.safe_load(file.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise InputError(
                    f"{file} is damaged ({error}); restore it, or delete the folder to start over"
                ) from error
            if names := differing_keys(old, tree):
                raise InputError(
                    f"{self.path} holds a {self.stage} run with another configuration; these keys differ: "
                    f"{', '.join(names)}. Use another run_dir, or delete this folder to start over"
                )
        write_text(file, yaml.safe_dump(tree, sort_keys=False))

    def _last_step(self) -> int:
        checkpoint = self.checkpoint
        return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step_"))

    def _forget_after(self, step: int) -> None:
        """Drop metric lines written after the last checkpoint: they will be written again."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # the line that a kill cut short
                break
        write_text(file, "".join(kept))

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
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step + 1, **plain}) + "\n")
        if self._bar is not None:
            shown = {key.split("/", 1)[1]: f"{value:.3g}" for key, value in list(plain.items())[:4]}
            self._bar.set_postfix(shown, refresh=False)
        if self._bar is None or self._bar.disable:
            self.say(f"step {step + 1}/{self.total_steps} " + " ".join(f"{k}={v:.4g}" for k, v in plain.items()))
        self._write_board(step + 1, plain)

    def _write_board(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is None:
            # Without this marker tensorboard imports all of TensorFlow, where it is installed, to open a file.
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:  # the `track` extra is optional; metrics.jsonl has everything
                self._board = False
            else:
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self.start)
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
            self._board.flush()

    def say(self, message: str) -> None:
        """A line for people: terminal and log.txt."""
        line = f"[{self.stage}] {message}"
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """After `step + 1` finished steps: checkpoint by `write(folder)`, point `latest` at it, drop older ones."""
        name = f"step_{step + 1}"
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        write(folder / name)
        write_text(self.path / "latest", name + "\n")
        self._drop_other_checkpoints()

    def _drop_other_checkpoints(self) -> None:
        """Only the last checkpoint stays; older ones, and what a kill left half-written, go."""
        last, folder = self.checkpoint, self.path / "checkpoints"
        if not folder.is_dir() or (last is not None and not last.is_dir()):
            return
        for other in folder.iterdir():
            if other != last:
                shutil.rmtree(other)

    def close(self) -> None:
        """Flush the optional board."""
        if self._board:
            self._board.close()


def mark(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically: results that a stage leaves for the next one or for the report."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_mark(path: Path) -> dict[str, Any] | None:
    """The content of such a file, or None where there is none."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
