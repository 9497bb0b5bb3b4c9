"""The rows of the GPU table, in the order in which they run, each with the most seconds that it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .decoding import decoding_row
from .equality import equality_row
from .lora import lora_row
from .measured import Measured
from .rendering import rendering_row
from .training import Training, compiled_row, step_row


@dataclass(frozen=True)
class Row:
    """A row, which needs no other one."""

    name: str
    group: str
    seconds: float
    """after which it is ended; it is not begun with less than half of that left"""
    run: Callable[[Training], Measured]


ROWS = (
    Row("equality", "equality", 60, equality_row),
    Row("video prior", "training", 70, partial(step_row, stage="video prior")),
    Row("phase 1", "training", 60, partial(step_row, stage="phase 1")),
    Row("phase 2", "training", 90, partial(step_row, stage="phase 2")),
    Row("policy", "training", 60, partial(step_row, stage="policy")),
    Row("fine-tuning", "training", 60, partial(step_row, stage="fine-tuning")),
    Row("decoding x1", "decoding", 40, partial(decoding_row, batch=1)),
    Row("decoding x16", "decoding", 40, partial(decoding_row, batch=16)),
    Row("LoRA", "lora", 120, lora_row),
    Row("rendering", "rendering", 60, rendering_row),
    Row("phase 1 compiled", "compile", 150, partial(compiled_row, stage="phase 1")),
    Row("phase 2 compiled", "compile", 180, partial(compiled_row, stage="phase 2")),
    Row("policy compiled", "compile", 100, partial(compiled_row, stage="policy")),
)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))


def chosen_rows(names: list[str]) -> list[Row]:
    """Return the rows with one of these names or in one of these groups; all rows for no names.

    Raises:
        ValueError: there is no such row.
    """
    known = {*GROUPS, *(row.name for row in ROWS)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no rows called {', '.join(unknown)}; known: {', '.join(GROUPS)}, and the names in the table")
    return [row for row in ROWS if not names or row.name in names or row.group in names]
