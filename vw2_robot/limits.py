"""Which numbers a person may give: one rule for seeds, counts, rates and shares in all programs.

Whole numbers (a seed, a number of steps, of processes) are at least 0, other numbers finite. A field of a configuration
that needs more, or less, says so in its type:

    frames: Count = 9
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
    """What a number must be, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


MOST = 2**63 - 1  # what torch and NumPy hold
WHOLE = Limit("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value <= MOST)
FINITE = Limit("a finite number", math.isfinite)
Unbounded = Annotated[float, Limit("a number", lambda value: not math.isnan(value))]
"""Infinity is allowed, and means never, or no limit."""
Count = Annotated[int, Limit("a whole number of at least 1", lambda value: 1 <= value <= MOST)]
Rate = Annotated[float, Limit("a positive number", lambda value: 0 < value < math.inf)]
"""Hz, frames per second, seconds, learning rates."""
Share = Annotated[float, Limit("a number between 0 and 1, neither of them", lambda value: 0 < value < 1)]


def check_number(hint: Any, value: Any, where: str) -> None:
    """Refuse a number that is not what the type `hint` says; anything else than a number is the type's own business.

    Raises:
        InputError: `where` and the value, what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    for limit in tuple(_limits(hint)) or (FINITE if isinstance(value, float) or _takes_float(hint) else WHOLE,):
        if not limit.holds(value):
            raise InputError(f"{where}={value}, expected {limit.words}")


def _limits(hint: Any) -> Iterator[Limit]:
    """The limits in `Annotated[...]`, also inside `... | None`."""
    for part in get_args(hint):
        if isinstance(part, Limit):
            yield part
        else:
            yield from _limits(part)


def _takes_float(hint: Any) -> bool:
    return hint is float or any(_takes_float(part) for part in get_args(hint))


def number(kind: Any, value: Any, where: str) -> Any:
    """Return a value that is in no dataclass, `int` or `float` by its kind, once it is checked.

    Raises:
        InputError: it is no number of that kind.
    """
    wanted = float if _takes_float(kind) else int
    if isinstance(value, bool) or not isinstance(value, int | float) or (wanted is int and value != int(value)):
        raise InputError(f"{where}={value!r}, expected a number")
    check_number(kind, value, where)
    return wanted(value)
