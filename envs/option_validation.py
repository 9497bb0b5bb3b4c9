"""Validation of options: a name that a user gave, checked against those that exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from vw2_robot.errors import InputError

_SHOWN_WHOLE = 8


def check_choice(what: str, value: object, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Args:
        what: what the name is of, for the message.
        value: what the user gave.
        known: the valid names.

    Raises:
        InputError: it is not; lists the nearest names, or all if they are few.
    """
    names = tuple(known)
    if isinstance(value, str) and value in names:
        return value
    folded = {name.casefold(): name for name in names}
    # Without regard to case, so that "d" suggests "D".
    near = [folded[match] for match in get_close_matches(str(value).casefold(), folded, n=3)]
    if near and len(names) > _SHOWN_WHOLE:
        raise InputError(f"unknown {what} {value!r}; nearest: {', '.join(near)}")
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"unknown {what} {value!r}; known: {', '.join(names)}{guess}")
