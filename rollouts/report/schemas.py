"""Schemas of the JSON files that the report reads, and the reading with a check.

Run folders may come from other people. A missing key or a value of the wrong type is an error that names the file, the
key and the value, before anything is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from .inline_files import lies_in

MAX_DEPTH = 20
"""nested levels of a JSON file; those of this package have four"""
MAX_NUMBER = 2**53
"""beyond it a float does not represent every whole number"""

Schema = dict[str, tuple[bool, Callable[[Any], bool]]]
"""key -> whether it is required, and the check of its value"""


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number of usual size. JSON's true and false are ints in Python: no."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0."""
    return type(value) is int and 0 <= value < MAX_NUMBER


def is_list(value: Any, check: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list whose entries all pass the check."""
    return isinstance(value, list) and all(map(check, value))


def is_table(value: Any, check: Callable[[Any], bool]) -> bool:
    """Return whether a value is an object whose values all pass the check."""
    return isinstance(value, dict) and all(map(check, value.values()))


def is_interval(value: Any) -> bool:
    """Return whether a value is a list of two numbers."""
    return is_list(value, is_number) and len(value) == 2


def is_task(value: Any) -> bool:
    """Return whether a value is an entry of "per_task" in summary.json."""
    if not (isinstance(value, dict) and is_count(value.get("solved")) and is_count(value.get("attempted"))):
        return False
    return bool(value["solved"] <= value["attempted"])


def is_frequencies(value: Any) -> bool:
    """Return whether a value is a list of numbers from 0."""
    return is_list(value, lambda entry: is_number(entry) and entry >= 0)


def _is_expectation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(is_number(value.get(key)) for key in ("chain", "env_step", "psnr", "psnr_still"))
        and isinstance(value.get("instruction"), str)
        and isinstance(value.get("solved"), bool)
    )


SUMMARY: Schema = {
    "num_sequences": (True, lambda value: is_count(value) and value > 0),
    "success_rates": (True, lambda value: is_list(value, is_number) and 1 <= len(value) <= 100),
    "success_intervals95": (True, lambda value: is_list(value, is_interval)),
    "average_length": (True, is_number),
    "average_length_ci95": (True, is_interval),
    "per_task": (True, lambda value: is_table(value, is_task)),
    "solved_histogram": (False, lambda value: is_list(value, is_count)),
    "policy": (True, lambda value: isinstance(value, str)),
    "policy_hash": (True, lambda value: isinstance(value, str | None)),
    "label_fraction": (True, lambda value: value is None or is_number(value)),
    "env": (True, lambda value: isinstance(value, dict)),
    "n_action_steps": (False, lambda value: value is None or (is_count(value) and value > 0)),
    "seconds": (True, is_number),
    "env_steps": (True, is_count),
}
PROVENANCE: Schema = {
    "policy": (False, lambda value: isinstance(value, dict)),
    "instructions": (False, lambda value: is_table(value, lambda text: isinstance(text, str))),
    "max_steps": (False, lambda value: value is None or is_count(value)),
    "num_sequences": (False, is_count),
}
# "decided_after" alone is read, and compared with a number: any other value means undecided.
COMPARISON: Schema = {}
CODES: Schema = {
    "histogram": (True, lambda value: is_frequencies(value) and len(value) > 0),
    "by_slot": (False, lambda value: value is None or is_list(value, is_frequencies)),
    "used": (False, is_count),
    "perplexity": (False, is_number),
}


EXPECTED: Schema = {
    "offsets": (True, lambda value: is_list(value, is_count)),
    "chains": (True, lambda value: is_list(value, _is_expectation) and len(value) > 0),
}
RECONSTRUCTIONS: Schema = {
    "error_to_still": (True, lambda value: is_table(value, is_number) and 3 <= len(value) <= 4),
}


def read_checked(path: Path, schema: Schema, *, cure: str) -> dict[str, Any] | None:
    """Return the content of a JSON file of a run folder; None where there is no such file.

    Args:
        path: The file.
        schema: What it must hold.
        cure: What the user can do, for the messages.

    Raises:
        InputError: The file cannot be read, or does not fit the schema.
    """
    if not lies_in(path.parent, path):
        return None
    content = with_new_keys(read_json(path, cure=cure))
    if missing := [key for key, (is_required, _) in schema.items() if is_required and key not in content]:
        raise InputError(f"{path} lacks {missing}; {cure}")
    for key, (_, is_valid) in schema.items():
        if key in content and not is_valid(content[key]):
            raise InputError(f"{path} is damaged: {key} is {str(content[key])[:80]!r}; {cure}")
    # Level by level and not by recursion: a deeply nested file would exhaust Python's stack, here or in the templates.
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        values = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in values if isinstance(item, dict | list)]
    if level:
        raise InputError(f"{path} is nested deeper than {MAX_DEPTH} levels; {cure}")
    return content
