"""Limits of the numbers in a configuration: one rule for seeds, counts, rates and shares in all programs.

Whole numbers (a seed, a number of steps, of processes) are at least 0, other numbers finite. A field of a configuration
that needs another limit has it in its type:

    num_frames: Count = 9
    fps: Rate | None = None

`config_tree.config_from` checks every value that enters a program by `check_number`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from vw2_robot.errors import InputError


@dataclass(frozen=True)
class Limit:
    """What a number must be, as a text for messages and as a test."""

    expected: str
    holds: Callable[[float], bool]


MAX_INT = 2**63 - 1  # the largest integer of torch and NumPy
WHOLE = Limit("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value <= MAX_INT)
FINITE = Limit("a finite number", math.isfinite)
Unbounded = Annotated[float, Limit("a number", lambda value: not math.isnan(value))]
"""infinity is allowed, and means never, or no limit"""
Count = Annotated[int, Limit("a whole number of at least 1", lambda value: 1 <= value <= MAX_INT)]
Rate = Annotated[float, Limit("a positive number", lambda value: 0 < value < math.inf)]
"""Hz, frames per second, seconds, learning rates"""
Share = Annotated[float, Limit("a number between 0 and 1, neither of them", lambda value: 0 < value < 1)]
EXISTING = "a file or folder that exists"
ExistingPath = Annotated[str, EXISTING]
"""checked when a program starts (`command_line.preflight`), and not where a configuration is read from a checkpoint"""


def check_number(annotation: Any, value: Any, where: str) -> None:
    """Refuse a number outside the limits of a field; other values are not checked here.

    Args:
        annotation: the field's type, such as `Count | None`. Without a limit in it: finite, or whole and at least 0.
        value: of the field.
        where: the key, for the message.

    Raises:
        InputError: with key and value, and what was expected.
    """
    # True and False are integers in Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    # A field of floats may be given an integer, and that one may be negative.
    default = FINITE if isinstance(value, float) or _takes_float(annotation) else WHOLE
    for limit in tuple(_limits(annotation)) or (default,):
        if not limit.holds(value):
            raise InputError(f"{where}={value}, expected {limit.expected}")


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_finite_number(value: object) -> bool:
    """Return whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _limits(annotation: Any) -> Iterator[Limit]:
    """Yield the limits in `Annotated[...]`, also inside `... | None`."""
    for part in get_args(annotation):
        if isinstance(part, Limit):
            yield part
        else:
            yield from _limits(part)


def _takes_float(annotation: Any) -> bool:
    return annotation is float or any(_takes_float(part) for part in get_args(annotation))


def number(kind: Any, value: Any, where: str) -> Any:
    """Return a checked number that belongs to no dataclass, as an `int` or `float`.

    Args:
        kind: its type, such as `Count`.
        value: the number.
        where: its name, for the message.

    Raises:
        InputError: it is no number of that kind.
    """
    wanted = float if _takes_float(kind) else int
    if isinstance(value, bool) or not isinstance(value, int | float) or (wanted is int and value != int(value)):
        raise InputError(f"{where}={value!r}, expected a number")
    check_number(kind, value, where)
    return wanted(value)
