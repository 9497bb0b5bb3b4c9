"""What a row of the GPU table holds, and the settings that all rows share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["measured", "failed", "not run"]


class NotMeasuredError(Exception):
    """A row has nothing to measure here; the message gives the reason."""


@dataclass
class Measured:
    """Numbers of a row; None where it has none of that kind."""

    milliseconds: float | None = None
    """of a training step, a decoding, or a step of the simulator"""
    per_second: float | None = None
    unit: str = ""
    """of `per_second`"""
    bound_share: float | None = None
    """of the bound that the row names: arithmetic (MFU) or bandwidth"""
    peak_bytes: int | None = None
    """largest allocation of the device"""
    planned_bytes: int | None = None
    """the same as `benchmarks.memory_plan` computes it, a lower bound"""
    note: str = ""
    values: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """all other numbers, for the JSON file"""


@dataclass
class Outcome:
    """How a row ended: numbers, or the reason why there are none."""

    name: str
    group: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    measured: Measured | None = None


@dataclass(frozen=True)
class Settings:
    """What all rows share."""

    device: str
    toy: bool
    """sizes for a CPU: the same code in about a minute"""
    folder: Path
    """for generated data and checkpoints; deleted at the end"""

    @property
    def output(self) -> Path:
        """Return the file that gets what the process of the rows prints."""
        return self.folder / "output.txt"
